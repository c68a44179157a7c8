"""Which Kafka a command uses when none is named: the one that runs for its root, else the embedded broker for as long as it takes."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from ops.cli.kafka_of_root import kafka_of
from tests.commands import Command, run_command

TEXTS = [
    f"The miller of village {number} opened the gate of the headrace, and the water turned the {name} wheel until night."
    for number, name in enumerate(("old", "new", "third"))
]
SMALL = (
    "--set",
    "tokenizer.vocab_size=300",
    "--set",
    "packing.sequence_length=16",
    "--set",
    "ingest.runner=local",
    "--set",
    "tokenizer.min_training_bytes=0",
)


@pytest.fixture
def lines(tmp_path: Path) -> str:
    path = tmp_path / "documents.jsonl"
    path.write_text("".join(json.dumps({"id": f"doc-{number}", "text": text}) + "\n" for number, text in enumerate(TEXTS)))
    return str(path)


def answer(folder: Path, *words: str) -> Any:
    done = run_command([*words, "--json"], folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_without_any_kafka_the_commands_work_one_after_the_other(tmp_path: Path, lines: str) -> None:
    root = ("--root", str(tmp_path / "root"))
    assert answer(tmp_path, "produce", lines, *root)["published"] == 3
    assert kafka_of(tmp_path / "root") is None, "the broker ends with the command"
    (version,) = answer(tmp_path, "ingest", "--once", *root, *SMALL)["versions"]
    assert version["num_records"] == 3
    answer(tmp_path, "retract", "doc-1", *root)
    (version,) = answer(tmp_path, "ingest", "--once", *root, *SMALL)["versions"]
    assert version["outcomes"]["retracted"] == 1
    assert answer(tmp_path, "deadletter", "list", *root)["letters"] == []


def test_commands_use_the_broker_that_runs_for_their_root(tmp_path: Path, lines: str) -> None:
    root = ("--root", str(tmp_path / "root"))
    broker = Command(["broker", "--listen", "127.0.0.1:0", *root], tmp_path, os.environ, tmp_path / "output")
    try:
        while kafka_of(tmp_path / "root") is None:
            assert broker.poll() is None
        address = kafka_of(tmp_path / "root")
        assert address is not None
        assert answer(tmp_path, "produce", lines, *root)["published"] == 3
        (version,) = answer(tmp_path, "ingest", "--once", "--bootstrap-servers", address, *root, *SMALL)["versions"]
        assert version["num_records"] == 3
    finally:
        broker.send_signal(signal.SIGTERM)
        broker.wait(30)
    assert kafka_of(tmp_path / "root") is None


def test_a_broker_that_was_killed_is_not_taken_for_a_running_one(tmp_path: Path) -> None:
    broker = Command(["broker", "--listen", "127.0.0.1:0", "--root", str(tmp_path)], tmp_path, os.environ, tmp_path / "output")
    while kafka_of(tmp_path) is None:
        assert broker.poll() is None
    broker.kill()
    broker.wait(30)
    assert (tmp_path / "broker" / "lock").read_text() != "", "its word is still there"
    assert kafka_of(tmp_path) is None
