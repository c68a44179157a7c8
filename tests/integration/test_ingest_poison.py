"""Documents that raise, and documents that end the process that reads them: everything else is taken in, on both runners."""

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from kafka import TopicPartition

from pipelines.dataset.dataset import Dataset, latest_version
from pipelines.dataset.gc import collect_garbage
from pipelines.dataset.verify import verify
from pipelines.ingest.isolation.quarantine import MARK
from pipelines.kafka.clients import open_consumer
from pipelines.kafka.topics import topic_names
from schemas.arrow import Outcome
from tests.broker_process import BrokerProcess
from tests.ingest_harness import Ingest, Record, document, finish
from tests.poisoned import CRASHES, RAISES, poisoned_environment

TEXT = "water comes down from the hill and the mill turns, so that grain is ground between two stones number"


def documents(bad: dict[int, str], number: int = 60) -> list[Record]:
    return [document(f"doc-{index}", f"{TEXT} {index} {index * 7919} {bad.get(index, '')}", index % 2) for index in range(number)]


def run(ingest: Ingest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> "subprocess.CompletedProcess[str]":
    with monkeypatch.context() as patched:
        for name, value in poisoned_environment(folder).items():
            patched.setenv(name, value)
        child = ingest.start()
    return finish(child)


def assert_only_these_are_dead(ingest: Ingest, errors: dict[str, str]) -> None:
    dataset = Dataset(ingest.root)
    rows = pl.concat([pl.read_parquet(dataset.root / entry.path) for manifest in dataset.manifests() for entry in manifest.documents])
    dead = rows.filter(pl.col("outcome") == "dead")
    assert dead["reason"].to_list() == ["poison"] * len(errors)
    assert len(rows) == 60
    assert {(row["partition"], row["offset"]) for row in dead.to_dicts()} == {(int(name) % 2, int(name) // 2) for name in errors}
    assert verify(dataset.root).problems == []


@pytest.mark.parametrize("runner", ["local", pytest.param("ray", marks=pytest.mark.slow)])
def test_a_document_that_makes_a_step_raise_is_the_only_one_that_is_dead(
    runner: str, broker: BrokerProcess, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest = Ingest(tmp_path / "data", broker.bootstrap_servers, topic_prefix, {"ingest.runner": runner})
    ingest.publish(documents({7: RAISES, 40: RAISES}))
    done = run(ingest, tmp_path, monkeypatch)
    assert done.returncode == 0, done.stderr
    assert_only_these_are_dead(ingest, {"7": "", "40": ""})


def test_a_partition_of_nothing_but_poison_is_dead_lettered_and_blocks_nothing(
    broker: BrokerProcess, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest = Ingest(tmp_path / "data", broker.bootstrap_servers, topic_prefix)
    ingest.publish([document(f"good-{index}", f"{TEXT} {index} {index * 7919}", 0) for index in range(20)])
    ingest.publish([document(f"bad-{index}", f"{TEXT} {RAISES}", 1) for index in range(2)])
    done = run(ingest, tmp_path, monkeypatch)
    assert done.returncode == 0, done.stderr
    manifest = Dataset(ingest.root).manifest
    assert manifest.reasons["dead/poison"] == manifest.outcomes[Outcome.DEAD] == 2
    assert manifest.num_records == 22
    headers = [dict(letter.headers) for letter in letters_of(ingest)]
    assert [(ours["headrace_stage"], ours["headrace_partition"]) for ours in headers] == [(b"prepare", b"1")] * 2


def test_a_dataset_of_nothing_but_dead_records_is_begun_closed_and_opened_again(
    broker: BrokerProcess, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest = Ingest(tmp_path / "data", broker.bootstrap_servers, topic_prefix)
    ingest.publish([document(f"bad-{index}", f"{TEXT} {RAISES}", 0) for index in range(2)])
    for _ in range(2):
        done = run(ingest, tmp_path, monkeypatch)
        assert done.returncode == 0, done.stderr
    manifest = Dataset(ingest.root).manifest
    assert (manifest.num_records, manifest.outcomes[Outcome.DEAD], manifest.shards) == (2, 2, [])
    assert collect_garbage(ingest.root, grace_s=0, by_hand=True, dry_run=True) == []
    assert verify(ingest.root).problems == []


def letters_of(ingest: Ingest) -> list[Any]:
    topic = topic_names(ingest.settings).deadletter
    with open_consumer(ingest.settings, auto_offset_reset="earliest") as consumer:
        keys = [TopicPartition(topic, partition) for partition in consumer.partitions_for_topic(topic)]
        consumer.assign(keys)
        ends, found = consumer.end_offsets(keys), list[Any]()
        while any(consumer.position(key) < ends[key] for key in keys):
            found += [record for batch in consumer.poll(timeout_ms=500).values() for record in batch]
    return found


@pytest.mark.slow
def test_on_ray_a_document_that_crashes_its_worker_is_the_only_one_that_is_dead(
    broker: BrokerProcess, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest = Ingest(
        tmp_path / "data", broker.bootstrap_servers, topic_prefix, {"ingest.runner": "ray", "tokenizer.path": tokenizer(broker, tmp_path)}
    )
    ingest.publish(documents({31: CRASHES}))
    done = run(ingest, tmp_path, monkeypatch)
    assert done.returncode == 0, done.stderr
    assert "ended again and again" in done.stderr
    assert_only_these_are_dead(ingest, {"31": ""})


@pytest.mark.slow
def test_alone_a_process_that_died_twice_of_a_block_prepares_it_in_another(
    broker: BrokerProcess, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest = Ingest(tmp_path / "data", broker.bootstrap_servers, topic_prefix)
    ingest.publish(documents({31: CRASHES}))
    for _ in range(2):  # training the tokenizer meets it first
        assert run(ingest, tmp_path, monkeypatch).returncode == -signal.SIGSEGV
        assert latest_version(ingest.root) == 0
        assert (ingest.root / MARK).is_file()
    done = run(ingest, tmp_path, monkeypatch)
    assert done.returncode == 0, done.stderr
    assert_only_these_are_dead(ingest, {"31": ""})
    assert not (ingest.root / MARK).exists()


def tokenizer(broker: BrokerProcess, folder: Path) -> str:
    """Of another dataset: training one reads documents too."""
    other = Ingest(folder / "other", broker.bootstrap_servers, f"tokenizer-{os.getpid()}-{folder.name[-20:]}")
    other.publish(documents({}))
    other.once()
    return str(other.root / Dataset(other.root).tokenizer.path)
