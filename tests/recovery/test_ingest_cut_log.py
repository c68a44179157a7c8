"""A log that lost its end and grew again under another leader, as after an unclean election: on real Apache Kafka and on ours, with the files cut."""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pipelines.dataset.dataset import Dataset, latest_version
from pipelines.dataset.verify import verify
from pipelines.ingest.progress import Progress
from pipelines.ingest.stream import ingest_once
from pipelines.kafka.planning import plan_ranges
from pipelines.kafka.topics import topic_names
from pipelines.runtime.ports import free_ports
from schemas.errors import BrokerUnavailable, OffsetsLost, SourceError
from schemas.settings import Settings
from tests.apache_kafka import running_apache_kafka
from tests.broker_process import start_broker
from tests.ingest_harness import Ingest, Record, document, state, wait_until

TEXT = "water comes down from the hill and the mill turns, so that grain is ground between two stones number"


def documents(first: int, number: int, word: str = "") -> list[Record]:
    return [document(f"doc-{index}{word}", f"{TEXT} {word} {index} {index * 7919}", 0) for index in range(first, first + number)]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "kafka"


def cut(folder: Path, topic: str, size_bytes: int) -> None:
    """Take the end of partition 0's log away, and what Kafka knows of it beside it."""
    (log,) = folder.rglob(f"{topic}-0")
    for path in log.iterdir():
        if path.suffix == ".log":
            os.truncate(path, size_bytes)
        elif path.suffix in (".index", ".timeindex", ".snapshot"):
            path.unlink()


def log_bytes(folder: Path, topic: str) -> int:
    (log,) = folder.rglob(f"{topic}-0")
    return sum(path.stat().st_size for path in log.iterdir() if path.suffix == ".log")


@pytest.mark.slow
def test_a_log_that_was_cut_and_grew_again_stops_ingest_until_the_loss_is_accepted(folder: Path, tmp_path: Path) -> None:
    port = free_ports(1)[0]
    ingest = Ingest(tmp_path / "data", f"127.0.0.1:{port}", "cut", {"kafka.request_timeout_s": 20})
    with running_apache_kafka(folder, port=port) as kafka:
        ingest.publish(documents(0, 10))
        size_bytes = log_bytes(folder, ingest.topic)
        ingest.publish(documents(10, 10))
        (first,) = ingest.once()
        assert first.offsets[ingest.topic][0].end == 20
        os.kill(kafka.pid, signal.SIGKILL)
    cut(folder, ingest.topic, size_bytes)
    with running_apache_kafka(folder, port=port):
        wait_until(lambda: _ends_at(ingest) == 10, "the log to end at offset 10")
        ingest.publish(documents(20, 15, "anew"))  # beyond offset 20: without epochs, five of them would be skipped in silence
        before = state(ingest.root)
        with pytest.raises(OffsetsLost, match=r"cut below offset 20.*ends at offset 10.*--accept-loss 0@10 "):
            ingest.once()
        assert state(ingest.root) == before
        done = ingest.run("--accept-loss", "0@10", "--reason", "the disk was restored")
        assert done.returncode == 0, done.stderr
        (after,) = ingest.once()
        assert (after.offsets[ingest.topic][0].start, after.offsets[ingest.topic][0].end) == (10, 25)
        epochs = [manifest.leader_epochs[ingest.topic][0] for manifest in Dataset(ingest.root).manifests()]
        assert epochs[0] == epochs[1] < epochs[2]
        assert verify(ingest.root).problems == []
        assert ingest.once() == []


def test_a_log_of_the_embedded_broker_that_was_cut_and_grew_again_stops_ingest_until_the_loss_is_accepted(tmp_path: Path) -> None:
    listen = f"127.0.0.1:{free_ports(1)[0]}"
    ingest = Ingest(tmp_path / "data", listen, "cut")
    with start_broker(Settings(), listen=listen, root=tmp_path) as broker:
        ingest.publish(documents(0, 10))
        log = max((tmp_path / "broker" / "topics").glob("*/0/*.log"), key=lambda path: path.stat().st_size)
        size_bytes = log.stat().st_size
        ingest.publish(documents(10, 10))
        ingest.once()
        broker.kill()
    os.truncate(log, size_bytes)
    with start_broker(Settings(), listen=listen, root=tmp_path):
        ingest.publish(documents(20, 15, "anew"))
        with pytest.raises(OffsetsLost, match=r"cut below offset 20.*ends at offset 10.*--accept-loss 0@10 "):
            ingest.once()
        assert ingest.run("--accept-loss", "0@10", "--reason", "the disk was restored").returncode == 0
        (after,) = ingest.once()
        assert (after.offsets[ingest.topic][0].start, after.offsets[ingest.topic][0].end) == (10, 25)
        epochs = [manifest.leader_epochs[ingest.topic][0] for manifest in Dataset(ingest.root).manifests()]
        assert epochs[0] == epochs[1] < epochs[2]
    with start_broker(Settings(), listen=listen, root=tmp_path):  # a start that loses nothing is no loss
        assert ingest.once() == []
        assert verify(ingest.root).problems == []


def test_a_log_that_is_cut_and_grows_again_while_it_is_read_commits_nothing_and_sends_no_dead_letter(tmp_path: Path) -> None:
    listen = f"127.0.0.1:{free_ports(1)[0]}"
    ingest = Ingest(tmp_path / "data", listen, "cut")
    with ExitStack() as brokers:
        broker = brokers.enter_context(start_broker(Settings(), listen=listen, root=tmp_path))
        ingest.publish(documents(0, 10))
        log = max((tmp_path / "broker" / "topics").glob("*/0/*.log"), key=lambda path: path.stat().st_size)
        size_bytes = log.stat().st_size
        ingest.publish([*documents(10, 10), Record(b"{")])

        class Cutting(Progress):
            def advanced(self, num_records: int) -> None:
                assert num_records == 21, "all of it was read"
                broker.kill()
                os.truncate(log, size_bytes)
                brokers.enter_context(start_broker(Settings(), listen=listen, root=tmp_path))
                ingest.publish(documents(20, 15, "anew"))

        with pytest.raises(SourceError, match=r"partitions \[0\] of .* were cut while they were read"):
            ingest_once(ingest.settings, Cutting())
        letters = plan_ranges(ingest.settings, topic_names(ingest.settings).deadletter, {}, 100)
        assert (latest_version(ingest.root), sum(map(len, letters.values()))) == (0, 0)


def _ends_at(ingest: Ingest) -> int:
    try:
        return plan_ranges(ingest.settings, ingest.topic, {}, 10**6)[0].end
    except BrokerUnavailable:
        return -1
