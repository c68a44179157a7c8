"""ingest, datasets and trace as a person or a script uses them."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipelines.ingest.presence import ingest_lock, is_ingest_running
from tests.broker_process import BrokerProcess
from tests.commands import run_command
from tests.ingest_harness import Ingest, sample_records, wait_until

FIXED_FIELDS = [
    "version",
    "parent",
    "offsets",
    "outcomes",
    "num_records",
    "num_tokens",
    "shards",
    "tokenizer",
    "settings_fingerprint",
    "created_at",
]
"""Scripts rely on them."""


@pytest.fixture(scope="module")
def ingest(broker: BrokerProcess, tmp_path_factory: pytest.TempPathFactory) -> Ingest:
    ingest = Ingest(tmp_path_factory.mktemp("commands") / "data", broker.bootstrap_servers, "commands")
    ingest.publish(sample_records(200))
    ingest.once()
    return ingest


def headrace(root: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return run_command([*arguments, "--root", str(root), "--set", "kafka.topic_prefix=commands"], root.parent)


def answer(root: Path, *arguments: str) -> Any:
    done = headrace(root, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_datasets_show_and_list_have_the_promised_fields(ingest: Ingest) -> None:
    shown = answer(ingest.root, "datasets", "show", "1")
    assert list(shown)[: len(FIXED_FIELDS)] == FIXED_FIELDS
    assert shown["offsets"][ingest.topic]["0"]["start"] == 0
    assert sum(shown["outcomes"].values()) == shown["num_records"] == 120
    assert {"path", "rows", "tokens", "sha256"} <= set(shown["shards"][0])
    assert [version["version"] for version in answer(ingest.root, "datasets", "list")["versions"]] == [1, 2]
    assert "version 2" in headrace(ingest.root, "datasets", "show").stdout


def test_datasets_verify_ends_with_one_where_something_is_wrong(ingest: Ingest) -> None:
    assert answer(ingest.root, "datasets", "verify")["ok"] is True
    shard = ingest.root / answer(ingest.root, "datasets", "show", "1")["shards"][0]["path"]
    whole = shard.read_bytes()
    try:
        shard.write_bytes(whole[:-1])
        done = headrace(ingest.root, "datasets", "verify")
    finally:
        shard.write_bytes(whole)
    assert done.returncode == 1
    assert f"{shard.relative_to(ingest.root)}: SHA-256 is" in done.stdout
    assert "restore the file" in done.stdout


def test_trace_answers_by_id_and_by_position_and_says_so_when_nobody_knows(ingest: Ingest) -> None:
    by_position = answer(ingest.root, "trace", f"{ingest.topic}/0/0")
    assert by_position["outcome"] == by_position["records"][0]["outcome"]
    assert answer(ingest.root, "trace", by_position["doc_id"])["dataset_version"] == 1
    unknown = headrace(ingest.root, "trace", "nobody")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "nobody" in unknown.stderr
    assert "no ingest is running" in unknown.stderr
    with ingest_lock(ingest.root):
        assert "no ingest is running" not in headrace(ingest.root, "trace", "nobody").stderr


def test_a_running_ingest_is_seen_until_its_process_ends(ingest: Ingest) -> None:
    child = ingest.start("--follow")
    wait_until(lambda: is_ingest_running(ingest.root), "it is seen")
    child.kill()
    child.wait()
    assert not is_ingest_running(ingest.root)


def test_commands_without_a_dataset_say_what_to_do(tmp_path: Path) -> None:
    for arguments in (("datasets", "list"), ("datasets", "show"), ("datasets", "verify"), ("trace", "x")):
        done = headrace(tmp_path / "nothing", *arguments)
        assert done.returncode == 1
        assert "headrace ingest --once" in done.stderr


def test_a_model_for_personal_data_that_cannot_be_imported_is_told_before_anything_is_read(ingest: Ingest) -> None:
    done = ingest.run("--once", "--set", "pii.ner=no_such_module:f")
    assert done.returncode == 2 and "pii.ner: 'no_such_module:f' cannot be imported" in done.stderr, "though nothing is there to be read"
    assert ingest.run("--once", "--set", "pii.ner=no_such_module:f", "--set", "pii.ner_action=off").returncode == 0


def test_ingest_without_a_mode_is_wrong_usage(tmp_path: Path) -> None:
    assert headrace(tmp_path / "nothing", "ingest").returncode == 2
