"""The same guarantees on real Apache Kafka, and what only it has: transactions and compaction."""

import json
import os
import signal
import threading
from pathlib import Path

import polars as pl
import pytest
from kafka import KafkaProducer, TopicPartition

from pipelines.dataset.dataset import Dataset
from pipelines.dataset.verify import verify
from pipelines.ingest.following import ingest_follow
from pipelines.ingest.progress import Progress
from pipelines.kafka.clients import open_admin, open_producer
from pipelines.runtime.crash import CRASH_POINTS
from schemas.arrow import Outcome
from schemas.errors import OffsetsLost, TopicRecreated
from tests.ingest_harness import Ingest, document, sample_records, state

TEXT = "water comes down from the hill and the mill turns, so that grain is ground between two stones number"


@pytest.fixture(scope="module")
def bootstrap_servers(request: pytest.FixtureRequest) -> str:
    """Apache Kafka, or the broker that HEADRACE_TEST_BOOTSTRAP names."""
    return os.environ.get("HEADRACE_TEST_BOOTSTRAP") or str(request.getfixturevalue("apache_kafka").bootstrap_servers)


@pytest.fixture
def ingest(bootstrap_servers: str, topic_prefix: str, tmp_path: Path) -> Ingest:
    return Ingest(tmp_path / "data", bootstrap_servers, topic_prefix)


def send(producer: KafkaProducer, ingest: Ingest, first: int, number: int) -> None:
    for index in range(first, first + number):
        record = document(f"doc-{index}", f"{TEXT} {index * 7919}", 0)
        producer.send(ingest.topic, key=record.key, value=record.value, partition=0)
    producer.flush()


ALSO = [pytest.param(point, marks=pytest.mark.slow) for point in CRASH_POINTS if point != "dead_letters_acked"]


@pytest.mark.parametrize("point", ["dead_letters_acked", *ALSO])
def test_crashes_change_nothing(ingest: Ingest, tmp_path: Path, point: str) -> None:
    ingest.publish(sample_records(200))
    reference = Ingest(tmp_path / "reference", ingest.bootstrap_servers, ingest.prefix)
    reference.once()
    assert ingest.run(crash_at=point).returncode == -signal.SIGKILL
    ingest.once()
    assert state(ingest.root) == state(reference.root)
    assert verify(ingest.root).problems == []


def test_a_recreated_topic_and_removed_offsets_stop_ingest(ingest: Ingest) -> None:
    ingest.publish(sample_records(40))
    ingest.once()
    before = state(ingest.root)
    ingest.publish(sample_records(40, seed=1))
    end = Dataset(ingest.root).next_offsets(ingest.topic)[0]
    with open_admin(ingest.settings) as admin:
        admin.delete_records({TopicPartition(ingest.topic, 0): end + 1})
    with pytest.raises(OffsetsLost, match=f"offsets {end} to {end}"):
        ingest.once()
    ingest.recreate_topic()
    with pytest.raises(TopicRecreated):
        ingest.once()
    assert state(ingest.root) == before


def what_a_follower_says(ingest: Ingest) -> str:
    """The first thing that a follower says that it waits for."""
    stop, said = threading.Event(), []

    class Listening(Progress):
        def waiting(self, reason: str) -> None:
            said.append(reason)
            stop.set()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("pipelines.ingest.following.HOLDS_EVERY_S", 0.0)
        ingest_follow(ingest.settings, stop, Listening())
    return said[0]


def test_transaction_markers_and_aborted_records_are_control_offsets_and_open_transactions_wait(ingest: Ingest) -> None:
    ingest.publish([])
    with open_producer(ingest.settings, transactional_id=f"{ingest.prefix}-writer") as producer:
        producer.init_transactions()
        producer.begin_transaction()
        send(producer, ingest, 0, 5)
        producer.commit_transaction()  # marker at offset 5
        producer.begin_transaction()
        send(producer, ingest, 5, 4)
        producer.abort_transaction()  # offsets 6 to 9 aborted, marker at 10
        producer.begin_transaction()
        send(producer, ingest, 9, 3)
        (first,) = ingest.once()
        assert first.offsets[ingest.topic][0].end == 11
        assert (first.outcomes[Outcome.CONTROL], first.num_records) == (6, 11)
        assert ingest.once() == []
        producer.flush()
        said = ingest.run()
        assert said.returncode == 0, said.stderr
        assert f"{ingest.topic}[0]: 3 offsets from 11 on wait behind an open transaction" in said.stderr
        assert f"that of '{ingest.prefix}-writer' (producer id " in said.stderr
        assert "open since 20" in said.stderr
        (held,) = json.loads(said.stdout)["held"]
        assert (held["stable_offset"], held["num_records"], held["holders"][0]["transactional_id"]) == (11, 3, f"{ingest.prefix}-writer")
        assert "3 offsets from 11 on wait behind an open transaction" in what_a_follower_says(ingest)
        producer.commit_transaction()
    (second,) = ingest.once()
    assert (second.offsets[ingest.topic][0].start, second.offsets[ingest.topic][0].end) == (11, 15)
    assert (second.outcomes[Outcome.CONTROL], second.num_records) == (1, 4)
    files = [pl.read_parquet(ingest.root / entry.path) for manifest in (first, second) for entry in manifest.documents]
    trail = pl.concat(files).filter(pl.col("partition") == 0)
    assert trail["offset"].to_list() == list(range(15))
    assert trail.filter(pl.col("outcome") == Outcome.CONTROL)["offset"].to_list() == [*range(5, 11), 14]
    assert set(trail["outcome"]) <= {Outcome.CONTROL, Outcome.KEPT, Outcome.DUPLICATE}
    assert verify(ingest.root).problems == []
