"""Partitions that come later, hold far more than others, or stay idle."""

import signal
from pathlib import Path

import pytest

from pipelines.dataset.dataset import Dataset
from pipelines.dataset.verify import verify
from pipelines.kafka.clients import open_admin
from pipelines.kafka.reading import Slice, slices
from schemas.manifest import DatasetManifest, OffsetRange
from tests.broker_process import BrokerProcess
from tests.ingest_harness import Ingest, Record, document, finish, wait_until, wait_until_stopped

TEXT = "water comes down from the hill and the mill turns, so that grain is ground between two stones number"


@pytest.fixture
def ingest(broker: BrokerProcess, topic_prefix: str, tmp_path: Path) -> Ingest:
    return Ingest(tmp_path / "data", broker.bootstrap_servers, topic_prefix)


def documents(partition: int, number: int, size_words: int = 0) -> list[Record]:
    return [document(f"p{partition}-{index}", f"{TEXT} {partition} {index * 7919} {'grain ' * size_words}", partition) for index in range(number)]


def grow(ingest: Ingest, num_partitions: int) -> None:
    with open_admin(ingest.settings) as admin:
        admin.create_partitions({ingest.topic: num_partitions})
        wait_until(lambda: len(admin.describe_topics([ingest.topic])[0]["partitions"]) == num_partitions, "the new partitions")


def ranges(ingest: Ingest, manifest: DatasetManifest) -> dict[int, tuple[int, int]]:
    return {partition: (span.start, span.end) for partition, span in manifest.offsets[ingest.topic].items()}


def test_partitions_added_between_runs_are_read_from_their_beginning(ingest: Ingest) -> None:
    ingest.publish([*documents(0, 10), *documents(1, 10)])
    ingest.once()
    grow(ingest, 4)
    ingest.publish([*documents(2, 5), *documents(3, 7)])
    (manifest,) = ingest.once()
    assert ranges(ingest, manifest) == {0: (10, 10), 1: (10, 10), 2: (0, 5), 3: (0, 7)}
    assert verify(ingest.root).problems == []


def test_partitions_added_during_a_run_are_in_the_next_version(ingest: Ingest) -> None:
    ingest.publish([*documents(0, 10), *documents(1, 10)])
    child = ingest.start(crash_at="stop@planned")
    wait_until_stopped(child)
    grow(ingest, 4)
    ingest.publish([*documents(2, 5), *documents(3, 7)])
    child.send_signal(signal.SIGCONT)
    assert finish(child).returncode == 0
    assert ranges(ingest, Dataset(ingest.root).manifest) == {0: (0, 10), 1: (0, 10)}
    (manifest,) = ingest.once()
    assert ranges(ingest, manifest) == {0: (10, 10), 1: (10, 10), 2: (0, 5), 3: (0, 7)}
    assert verify(ingest.root).problems == []


def test_a_crowded_partition_delays_no_other_and_an_idle_one_holds_nothing_up(ingest: Ingest) -> None:
    ingest.publish([])
    grow(ingest, 3)
    ingest.publish([*documents(0, 400), *documents(2, 5)])
    manifests = ingest.once()
    assert ranges(ingest, manifests[0]) == {0: (0, 115), 1: (0, 0), 2: (0, 5)}
    assert [manifest.num_records for manifest in manifests] == [120, 120, 120, 45]


def test_versions_and_slices_shrink_where_records_are_large(
    broker: BrokerProcess, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_slices: list[dict[int, int]] = []

    def noted(topic: str, ranges: dict[int, OffsetRange], slice_records: dict[int, int]) -> list[Slice]:
        whole_slices.append(slice_records)
        return slices(topic, ranges, slice_records)

    monkeypatch.setattr("pipelines.ingest.stream.slices", noted)
    limits = {"ingest.max_batch_bytes": 60_000, "ingest.slice_bytes": 20_000}
    ingest = Ingest(tmp_path / "data", broker.bootstrap_servers, topic_prefix, limits)
    ingest.publish([*documents(0, 30, size_words=1_000), *documents(1, 30)])
    manifests = ingest.once()
    first, second = ranges(ingest, manifests[0]), ranges(ingest, manifests[1])
    assert first == {0: (0, 7), 1: (0, 7)}  # nothing is known of the records' size: 4 KiB is assumed
    assert second[1] == (7, 30)
    assert 6_000 < manifests[0].record_bytes[ingest.topic][0] < 6_300
    assert second[0][1] - second[0][0] == (60_000 - 23 * manifests[0].record_bytes[ingest.topic][1]) // manifests[0].record_bytes[ingest.topic][0]
    assert whole_slices[:2] == [{0: 4, 1: 4}, {0: 20_000 // manifests[0].record_bytes[ingest.topic][0], 1: 35}]
    assert sum(manifest.num_records for manifest in manifests) == 60
    assert set(manifests[-1].record_bytes[ingest.topic]) == {0, 1}, "also of the partition that gave nothing any more"
    other = Ingest(tmp_path / "data", broker.bootstrap_servers, f"{topic_prefix}-other", limits)
    other.publish(documents(0, 3))
    (manifest,) = other.once()
    assert manifest.record_bytes == manifests[-1].record_bytes | {other.topic: manifest.record_bytes[other.topic]}
    assert set(manifest.record_bytes[other.topic]) >= {0}
    assert manifest.leader_epochs == manifests[-1].leader_epochs | {other.topic: manifest.leader_epochs[other.topic]}
    assert set(manifest.leader_epochs[other.topic]) == {0}
