"""The command line explains itself: groups, an example for each command, JSON from each that reports, errors in one line."""

import argparse
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from ops.cli.examples import EXAMPLES
from ops.cli.main import GROUPS, build_parser, main

PRINTS_NO_REPORT = {"datasets card"}
"""Its output is one JSON document in any case."""


def commands(parser: argparse.ArgumentParser, words: tuple[str, ...] = ()) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not inner:
        yield " ".join(words), parser
    for action in inner:
        for name, choice in action.choices.items():
            yield from commands(choice, (*words, name))


ALL = dict(commands(build_parser()))


def test_help_lists_each_command_in_one_group_with_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert ended.value.code == 0
    for title, names in GROUPS.items():
        start = lines.index(f"{title}:")
        listed = lines[start + 1 : start + 1 + len(names)]
        assert [line.split()[0] for line in listed] == list(names) and all(len(line.split()) > 2 for line in listed)


@pytest.mark.parametrize("name", ALL)
def test_each_help_text_begins_with_what_the_command_does(name: str) -> None:
    description = ALL[name].description
    assert description is not None and description[0].isupper() and description.endswith(".") and " " in description


@pytest.mark.parametrize("name", ALL)
def test_each_help_text_ends_with_an_example_that_is_right(name: str) -> None:
    words = shlex.split(EXAMPLES[name])
    assert " ".join(ALL[name].format_help().split()).endswith(f"example: {EXAMPLES[name]}")
    assert " ".join(words[1:]).startswith(name)
    build_parser().parse_args(words[1:])


@pytest.mark.parametrize("name", sorted({" ".join(name.split()[:-1]) for name in ALL if " " in name}))
def test_the_help_of_a_command_with_actions_lists_them_and_ends_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*name.split(), "--help"])
    text = capsys.readouterr().out
    actions = {action.split()[len(name.split())] for action in ALL if action.startswith(f"{name} ")}
    assert actions <= {line.split()[0] for line in text.splitlines() if line.startswith("    ") and len(line.split()) > 1}
    assert f"example: headrace {name} " in " ".join(text.split())


def test_no_example_is_left_of_a_command_that_is_gone() -> None:
    assert set(EXAMPLES) == set(ALL)


@pytest.mark.parametrize("name", sorted(ALL.keys() - PRINTS_NO_REPORT))
def test_each_command_reports_as_json_too(name: str) -> None:
    assert "--json" in ALL[name].format_help()


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert (ended.value.code, capsys.readouterr().out.split()[0]) == (0, "headrace")


def failed(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Exit code, and the one line on standard error."""
    code = main(words)
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1 and "Traceback" not in captured.err, captured.err
    return code, lines[0]


def test_a_settings_file_that_is_not_utf_8_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "headrace.toml").write_bytes(b'root = "\xff\xfe"')
    code, line = failed(capsys, "datasets", "list", "--config", str(tmp_path / "headrace.toml"))
    assert code == 2 and "is not UTF-8 (byte 8)" in line


@pytest.mark.parametrize(
    "command", [("gc",), ("broker", "--listen", "127.0.0.1:0"), ("retract", "a"), ("models", "list"), ("datasets", "list"), ("up",)]
)
def test_a_root_that_is_a_file_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]) -> None:
    (tmp_path / "root").write_text("a file")
    code = main([*command, "--root", str(tmp_path / "root")])
    error = capsys.readouterr().err.splitlines()[-1]
    assert code in (1, 2) and "Traceback" not in error and str(tmp_path / "root") in error


@pytest.mark.parametrize("command", [("ingest", "--once"), ("produce", "--sample"), ("retract", "a"), ("deadletter", "list"), ("serve",)])
def test_a_root_that_cannot_be_made_is_refused_in_one_line(capsys: pytest.CaptureFixture[str], command: tuple[str, ...]) -> None:
    code, line = failed(capsys, *command, "--root", "/proc/headrace")
    assert code == 2 and "nothing can be written under the root /proc/headrace" in line


def test_a_section_is_no_setting_and_its_settings_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    code, line = failed(capsys, "datasets", "list", "--set", "kafka=3")
    assert code == 2 and "'kafka' is a section" in line and "kafka.bootstrap_servers" in line


@pytest.mark.parametrize(("flag", "value", "said"), [("--limit", "many", "whole number of 1 or more"), ("--rate-limit", "fast", "number above 0")])
def test_a_wrong_number_is_answered_with_what_would_be_right(capsys: pytest.CaptureFixture[str], flag: str, value: str, said: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["produce", "--sample", flag, value])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("datasets", "show", "abc"), "'abc' is not a whole number of 1 or more"),
        (("datasets", "list", "--last", "0"), "'0' is not a whole number of 1 or more"),
        (("train", "--dataset", "x"), "'x' is not a whole number of 1 or more"),
        (("deadletter", "show", "documents/7"), "'documents/7' is not topic/partition/offset"),
        (("deadletter", "replay", "t/0/1", "t/0/x"), "'t/0/x' is not topic/partition/offset"),
        (("rollout", "set", "--champion", "1", "--share", "half"), "'half' is not a number"),
    ],
)
def test_a_wrong_version_or_share_is_answered_without_names_of_python_types(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_settings_shows_what_is_changed_and_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    main(["settings", "--changed", "--root", "x", "--set", "serving.port=9001", "--set", "kafka.sasl_plain_password=hidden"])
    shown = capsys.readouterr().out
    assert "serving.port = 9001" in shown and "hidden" not in shown
    main(["settings", "--set", "serving.port=9001", "--set", "kafka.sasl_plain_password=hidden", "--set", "serving.api_keys=hidden"])
    shown = capsys.readouterr().out
    assert "\nport = 9001\n" in shown and "hidden" not in shown


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("produce",), "give either paths"),
        (("produce", "--part", "1/2", "x"), "--part goes with --sample"),
        (("produce", "nowhere.txt"), "nothing to publish: nowhere.txt: there is no such file or folder"),
        (("produce", "nowhere.txt", __file__), "test_cli_help.py: files like this cannot be read"),
        (("produce", "-", "--blobs", __file__), "test_cli_help.py is not a folder"),
        (("ingest", "--accept-loss", "0@5"), "--accept-loss and --reason go together"),
        (("ingest", "--accept-loss", "1@7", "0@5", "0@6", "--reason", "why"), "names partition 0 twice"),
        (("ingest", "--once", "--reason", "why"), "--accept-loss and --reason go together"),
        (("deadletter", "replay"), "name the positions to replay"),
        (("deadletter", "replay", "t/0/1", "--edit", "nowhere"), "cannot read nowhere"),
        (("ingest", "--once", "--set", "=3"), "--set takes SECTION.KEY=VALUE"),
    ],
)
def test_wrong_usage_is_told_before_a_broker_is_started(
    words: tuple[str, ...], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--root", str(tmp_path / "root")]) == 2
    err = capsys.readouterr().err
    assert sentence in err and "starts the embedded broker" not in err
    assert not (tmp_path / "root").exists()
