"""What a worker of Ray writes into its log."""

import logging
import re
from collections.abc import Iterator

import pytest

from pipelines.text.log_lines import PACKAGES, log_about

OURS = logging.getLogger("pipelines.ingest.job")


@pytest.fixture(autouse=True)
def loggers_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, levels = list(root.handlers), root.level, {name: logging.getLogger(name).level for name in PACKAGES}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)


def test_each_line_says_when_how_severe_where_and_what_it_is_about_and_the_next_task_says_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    log_about("headrace.documents/0 100-199")
    OURS.info("reads and prepares %d records", 100)
    log_about("version 3 of wiki, 100 % new")
    OURS.warning("goes on")
    first, second = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"[\d-]{10} [\d:,]{12} INFO pipelines\.ingest\.job \[headrace\.documents/0 100-199\]: reads and prepares 100 records", first)
    assert second.endswith("WARNING pipelines.ingest.job [version 3 of wiki, 100 % new]: goes on")


def test_what_libraries_say_below_a_warning_is_left_out_and_bare_messages_are_not_written_twice(capsys: pytest.CaptureFixture[str]) -> None:
    logging.getLogger().addHandler(logging.StreamHandler())  # as Ray Train does in its workers
    logging.getLogger().setLevel(logging.INFO)
    log_about("model 1 of wiki")
    logging.getLogger("/site-packages/ray/train/context.py").info("Reporting training result 1: TrainingReport(…)")
    logging.getLogger("a.library").warning("is deprecated")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].endswith("WARNING a.library [model 1 of wiki]: is deprecated")


def test_lines_cannot_steer_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    log_about("a\x1b[2Jb")
    OURS.error("c\rd")
    assert "[a\\x1b[2Jb]: c\\rd" in capsys.readouterr().err
