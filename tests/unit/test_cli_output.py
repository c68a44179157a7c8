"""Nothing that comes from outside steers a terminal, breaks a table, or counts as markup."""

import json
import logging

import pytest

from ops.cli.main import main
from ops.cli.output import print_json, print_table, say, tell
from pipelines.text.log_lines import EscapingFormatter, escaped
from schemas.counting import counted

HOSTILE = "a\x1b[2Jb\x9b31m\x07\r\x00\u202e\ud800 [/red][bold]水\u3000👩\u200d💻"
SHOWN = "a\\x1b[2Jb\\x9b31m\\x07\\r\\x00\\u202e\\ud800 [/red][bold]水\u3000👩\u200d💻"


def test_what_would_steer_a_terminal_is_escaped_and_writing_of_any_script_is_not() -> None:
    assert escaped(HOSTILE) == SHOWN
    assert escaped("two\nlines\tand a tab") == "two\nlines\tand a tab"


def test_lines_tables_and_log_lines_are_escaped_and_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    tell(HOSTILE)
    print_table(("id",), [(HOSTILE,), ("[bold]",)], title=HOSTILE)
    say(f"one line\n{HOSTILE}")
    out, err = capsys.readouterr()
    assert out.count(SHOWN) == 3
    assert "[bold]" in out
    assert err == f"one line\\n{SHOWN}\n"
    record = logging.LogRecord("x", logging.WARNING, "", 1, "an event was dropped: %s", (HOSTILE,), None)
    assert EscapingFormatter("%(message)s").format(record) == f"an event was dropped: {SHOWN}"


def test_json_is_escaped_and_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"id": HOSTILE})
    out = capsys.readouterr().out
    assert json.loads(out) == {"id": HOSTILE}
    assert not set(out) & set("\x1b\x9b\x07\r\x00\u202e\ud800")
    assert "水" in out


def test_an_error_of_a_command_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ingest", "--once", "--set", "a\x1b[2J"]) == 2
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert "\\x1b[2J" in err


def test_counted_uses_the_singular_for_one() -> None:
    assert [counted(number, "dead letter") for number in (0, 1, 2, 1200)] == [
        "0 dead letters",
        "1 dead letter",
        "2 dead letters",
        "1,200 dead letters",
    ]
