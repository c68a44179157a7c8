"""The catalogue of topics: durable first, visible second, whatever the disk does; and what retention leaves alone."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ops.broker.app import Broker
from ops.broker.batch import check_produced
from ops.broker.codes import ErrorCode, ProtocolError
from ops.broker.epochs import BEGINNING_S, next_epoch
from ops.broker.offsets import Committed, OffsetStore, TopicPartition
from ops.broker.retention import apply_retention
from ops.broker.topics import Catalogue
from pipelines.ingest.announcer import group_id
from pipelines.kafka.topics import topic_names
from schemas.errors import BrokerError
from schemas.settings import BrokerSettings, KafkaSettings, Settings
from tests.contract.wire import batch
from tests.full_disk import files_no_larger_than

CHANGES: dict[str, Callable[[Catalogue], object]] = {
    "create": lambda catalogue: catalogue.create("new", 2, {}),
    "add partitions": lambda catalogue: catalogue.add_partitions(catalogue.resolve("old", None), 3),
    "set configurations": lambda catalogue: catalogue.set_configs(catalogue.resolve("old", None), {"retention.ms": "1"}),
    "delete": lambda catalogue: catalogue.delete(catalogue.resolve("old", None)),
}


def seen(catalogue: Catalogue) -> list[tuple[str, str, int, dict[str, str]]]:
    return sorted((topic.name, topic.id.hex, len(topic.partitions), topic.configs) for topic in catalogue)


def append(catalogue: Catalogue, name: str, value: bytes = b"x", timestamp_ms: int | None = None) -> int:
    sent = batch([value], timestamps=[timestamp_ms or int(time.time() * 1000)])
    return catalogue.partition(name, None, 0).append(sent, check_produced(sent, 9), 200)


@pytest.mark.parametrize("change", sorted(CHANGES))
def test_a_change_that_the_disk_refuses_is_refused_and_leaves_everything_as_it_was(tmp_path: Path, change: str) -> None:
    catalogue = Catalogue(tmp_path, BrokerSettings())
    catalogue.create("old", 1, {})
    append(catalogue, "old")
    before = seen(catalogue)
    with files_no_larger_than(10), pytest.raises(ProtocolError) as refused:
        CHANGES[change](catalogue)
    assert refused.value.code is ErrorCode.KAFKA_STORAGE_ERROR
    assert seen(catalogue) == before
    assert append(catalogue, "old") == 1
    assert len(list((tmp_path / "topics").iterdir())) == 1
    catalogue.close()
    reopened = Catalogue(tmp_path, BrokerSettings())
    assert seen(reopened) == before
    assert reopened.partition("old", None, 0).next_offset == 2
    CHANGES[change](reopened)
    assert seen(reopened) != before


def test_what_was_acknowledged_to_a_topic_is_there_after_a_restart_whatever_failed_before(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path, BrokerSettings())
    with files_no_larger_than(10), pytest.raises(ProtocolError):
        catalogue.create("t", 1, {})
    with pytest.raises(ProtocolError) as refused:
        append(catalogue, "t")
    assert refused.value.code is ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
    catalogue.create("t", 1, {})
    append(catalogue, "t")
    catalogue.close()
    assert Catalogue(tmp_path, BrokerSettings()).partition("t", None, 0).next_offset == 1


def test_a_new_topic_inherits_no_offsets_even_if_they_could_not_be_deleted_with_the_old_one(tmp_path: Path) -> None:
    broker = Broker(BrokerSettings(), tmp_path)
    broker.catalogue.create("t", 1, {})
    broker.offsets.commit("g", {TopicPartition("t", 0): Committed(7, 0, "")})

    def full(_name: str) -> None:
        raise OSError("no space left")

    forget, broker.catalogue.on_forget = broker.catalogue.on_forget, [full]
    broker.catalogue.delete(broker.catalogue.resolve("t", None))
    with pytest.raises(ProtocolError):
        broker.catalogue.create("t", 1, {})
    broker.catalogue.on_forget = forget
    broker.catalogue.create("t", 1, {})
    assert broker.offsets.of("g") == {}
    broker.close()


def test_the_name_of_every_new_folder_is_flushed_before_the_catalogue_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the system calls: a power cut takes a folder whose parent was not flushed."""
    flushed: list[str] = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        flushed.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    data_dir = tmp_path / "new" / "root" / "broker"
    broker = Broker(BrokerSettings(), data_dir)
    assert {str(folder) for folder in (tmp_path, tmp_path / "new", tmp_path / "new" / "root", data_dir)} <= set(flushed)
    flushed.clear()
    topic = broker.catalogue.create("t", 2, {})
    named = flushed.index(f"{data_dir}/catalogue.json.tmp")
    assert {str(topic.folder.parent), str(topic.folder)} <= set(flushed[:named])
    assert str(data_dir) in flushed[named:]
    flushed.clear()
    broker.catalogue.add_partitions(topic, 3)
    assert str(topic.folder) in flushed[: flushed.index(f"{data_dir}/catalogue.json.tmp")]
    broker.close()
    assert str(topic.folder / "0") in flushed  # its first segment was made without one


def test_a_folder_that_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    from ops.broker.app import open_broker

    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BrokerError, match="another --root"):
        open_broker(BrokerSettings(), tmp_path / "file" / "broker")
    (tmp_path / "catalogue.json").write_text("{")
    with pytest.raises(BrokerError, match=r"catalogue\.json is damaged"):
        open_broker(BrokerSettings(), tmp_path)


SETTINGS = Settings(kafka=KafkaSettings(topic_prefix="mill"))
DOCUMENTS = topic_names(SETTINGS).documents
DAY_MS = 24 * 3_600_000


def kept_from(tmp_path: Path, name: str, committed: int | None, configs: dict[str, str] | None = None, limits: dict[str, int] | None = None) -> int:
    """Log start of a topic with ten records of eight days ago, one per segment, after retention."""
    catalogue = Catalogue(tmp_path, BrokerSettings.model_validate(limits or {}))
    catalogue.create(name, 1, configs or {})
    old_ms = int(time.time() * 1000) - 8 * DAY_MS
    for _ in range(10):
        append(catalogue, name, b"x" * 300, old_ms)
    offsets = OffsetStore(tmp_path / "offsets.jsonl")
    offsets.commit("somebody else", {TopicPartition(name, 0): Committed(10, 0, "")})
    if committed is not None:
        offsets.commit(group_id(SETTINGS), {TopicPartition(name, 0): Committed(committed, 0, "")})
    apply_retention(catalogue, offsets, catalogue.resolve(name, None), time.time() * 1000)
    start = catalogue.partition(name, None, 0).start_offset
    catalogue.close()
    offsets.close()
    return start


@pytest.mark.parametrize("limits", [{}, {"retention_bytes": 1, "retention_ms": -1}], ids=["by age", "by size"])
def test_documents_that_no_version_has_read_are_never_deleted_by_the_brokers_own_limits(tmp_path: Path, limits: dict[str, int]) -> None:
    assert kept_from(tmp_path / "unread", DOCUMENTS, None, limits=limits) == 0
    assert kept_from(tmp_path / "half", DOCUMENTS, 4, limits=limits) == 4
    assert kept_from(tmp_path / "read", DOCUMENTS, 10, limits=limits) >= 9


def test_other_topics_and_documents_topics_with_limits_of_their_own_are_kept_as_long_as_these_say(tmp_path: Path) -> None:
    assert kept_from(tmp_path / "other", "mill.inference", None) == 10
    assert kept_from(tmp_path / "own", DOCUMENTS, None, {"retention.ms": "1000"}) == 10


def test_a_clock_that_was_ahead_gives_no_epoch_that_a_restored_copy_takes_again() -> None:
    ahead = 2**30
    epochs = [next_epoch(ahead) for _ in range(20)]
    assert min(epochs) > ahead
    assert len(set(epochs)) > 1
    assert next_epoch(0) == pytest.approx(time.time() - BEGINNING_S, abs=60)
