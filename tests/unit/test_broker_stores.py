"""Small durable parts of the broker: offsets journal, producer ids, configurations, the table of versions."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from ops.broker import offsets as offsets_module
from ops.broker.batch import check_produced
from ops.broker.codes import ErrorCode, ProtocolError
from ops.broker.configs import TOPIC_CONFIGS, TopicLimits, check_config
from ops.broker.log import PartitionLog
from ops.broker.offsets import Committed, OffsetStore, TopicPartition
from ops.broker.producers import FORGET_AFTER_S, ProducerIds, ProducerStates
from ops.broker.versions import REQUEST_CLASSES, SUPPORTED
from schemas.errors import BrokerError
from schemas.listen import parse_listen
from schemas.settings import BrokerSettings
from tests.contract.wire import batch
from tests.full_disk import files_no_larger_than


def store_at(path: Path) -> OffsetStore:
    return OffsetStore(path / "offsets.jsonl")


def test_the_last_commit_counts_after_reopening(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    key = TopicPartition("文档", 3)
    store.commit("g", {key: Committed(1, 0, "")})
    store.commit("g", {key: Committed(2, 0, "水")})
    store.close()
    assert dict(store_at(tmp_path).of("g")) == {key: Committed(2, 0, "水")}


def test_an_unfinished_line_is_cut_and_the_journal_goes_on(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    key = TopicPartition("t", 0)
    store.commit("g", {key: Committed(7, 0, "")})
    store.close()
    with (tmp_path / "offsets.jsonl").open("ab") as file:
        file.write(b'{"group": "g", "topic": "t", "part')
    store = store_at(tmp_path)
    assert store.of("g")[key].offset == 7
    store.commit("g", {key: Committed(8, 0, "")})
    store.close()
    assert store_at(tmp_path).of("g")[key].offset == 8


def test_compaction_keeps_what_is_current_and_shortens_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offsets_module, "COMPACT_ABOVE_LINES", 50)
    store = store_at(tmp_path)
    for offset in range(500):
        store.commit("g", {TopicPartition("t", offset % 3): Committed(offset, 0, "")})
    store.delete("g", [TopicPartition("t", 0)])
    store.commit("other", {TopicPartition("t", 0): Committed(5, 0, "")})
    store.delete_group("other")
    store.close()
    assert len((tmp_path / "offsets.jsonl").read_bytes().splitlines()) < 60
    reopened = store_at(tmp_path)
    assert {key.partition: committed.offset for key, committed in reopened.of("g").items()} == {1: 499, 2: 497}
    assert reopened.groups() == ["g"]


def test_producer_ids_never_come_twice_whatever_was_reserved(tmp_path: Path) -> None:
    ids = [ProducerIds(tmp_path / "ids.json").take() for _ in range(3)]
    later = ProducerIds(tmp_path / "ids.json")
    ids += [later.take() for _ in range(1_500)]
    assert len(set(ids)) == len(ids)


def test_a_producer_that_was_forgotten_may_go_on_with_any_sequence() -> None:
    states = ProducerStates()
    states.record(check_produced(batch([b"a"], producer=(1, 0, 0)), 9), 0)
    later = check_produced(batch([b"b"], producer=(1, 0, 50)), 9)
    with pytest.raises(ProtocolError):
        states.original_offset(later)
    states.forget_idle(now_s=FORGET_AFTER_S * 1e6)
    assert states.original_offset(later) is None


def test_only_the_last_five_batches_of_a_producer_are_recognised() -> None:
    states = ProducerStates()
    headers = [check_produced(batch([b"a"], producer=(1, 0, sequence)), 9) for sequence in range(7)]
    for offset, header in enumerate(headers):
        assert states.original_offset(header) is None
        states.record(header, offset)
    assert [states.original_offset(header) for header in headers[2:]] == [2, 3, 4, 5, 6]
    with pytest.raises(ProtocolError) as refused:
        states.original_offset(headers[1])
    assert refused.value.code is ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER


def test_a_full_disk_is_a_storage_error_and_leaves_no_piece_of_a_batch(tmp_path: Path) -> None:
    log = PartitionLog(tmp_path / "0")
    sent = batch([b"x" * 1_000])
    log.append(sent, check_produced(sent, 9), 10**6)
    with files_no_larger_than(len(sent) + 500):
        for _ in range(2):
            with pytest.raises(ProtocolError) as refused:
                log.append(sent, check_produced(sent, 9), 10**6)
            assert refused.value.code is ErrorCode.KAFKA_STORAGE_ERROR
    assert log.append(sent, check_produced(sent, 9), 10**6) == 1
    log.close()
    reopened = PartitionLog(tmp_path / "0")
    assert reopened.next_offset == 2
    reopened.close()


def test_a_full_disk_leaves_no_piece_of_a_commit(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    key = TopicPartition("t", 0)
    store.commit("g", {key: Committed(1, 0, "")})
    with files_no_larger_than(100), pytest.raises(OSError, match=r"fit|large"):
        store.commit("g", {key: Committed(2, 0, "x" * 200)})
    store.commit("g", {key: Committed(3, 0, "")})
    store.close()
    assert store_at(tmp_path).of("g")[key].offset == 3


def test_a_failed_compaction_loses_no_later_commit_and_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offsets_module, "COMPACT_ABOVE_LINES", 20)
    store = store_at(tmp_path)
    key = TopicPartition("t", 0)
    (tmp_path / "offsets.jsonl.tmp").mkdir()  # the journal cannot be rewritten beside itself
    for offset in range(30):
        store.commit("g", {key: Committed(offset, 0, "")})
    store.close()
    store = store_at(tmp_path)
    assert store.of("g")[key].offset == 29
    (tmp_path / "offsets.jsonl.tmp").rmdir()
    for offset in range(30, 100):
        store.commit("g", {key: Committed(offset, 0, "")})
    store.close()
    assert len((tmp_path / "offsets.jsonl").read_bytes().splitlines()) < 30
    assert store_at(tmp_path).of("g")[key].offset == 99


def test_no_producer_id_is_handed_out_that_is_not_reserved(tmp_path: Path) -> None:
    ids = ProducerIds(tmp_path / "ids.json")
    for _ in range(2):
        with files_no_larger_than(1), pytest.raises(OSError, match="large"):
            ids.take()
    taken = ids.take()
    assert ProducerIds(tmp_path / "ids.json").take() > taken


def test_a_damaged_journal_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "offsets.jsonl").write_bytes(
        b'{"group": "g", "topic": "t", "partition": 0, "offset": 1, "leader_epoch": 0, "metadata": ""}\n\x00\x00\n'
    )
    with pytest.raises(BrokerError, match="line 2"):
        store_at(tmp_path)


@pytest.mark.parametrize(
    ("listen", "expected"),
    [("127.0.0.1:1", True), ("localhost:1", True), ("[::1]:1", True), ("0.0.0.0:1", False), ("10.0.0.5:1", False), ("[::]:1", False)],
)
def test_only_loopback_addresses_count_as_loopback(listen: str, expected: bool) -> None:
    assert parse_listen(listen).is_loopback is expected


@pytest.mark.parametrize("listen", ["9092", ":9092", "localhost", "127.0.0.1:99999", "127.0.0.1:-1", "::1:9092", "a b:1", "host:9 092", ""])
def test_an_address_that_names_no_host_or_no_possible_port_is_refused(listen: str) -> None:
    with pytest.raises(ValueError, match=r"HOST:PORT|largest is 65535"):
        parse_listen(listen)
    with pytest.raises(ValidationError, match=r"HOST:PORT|largest is 65535"):
        BrokerSettings(listen=listen)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("message.timestamp.type", "LogAppendTime"),
        ("compression.type", "zstd"),
        ("retention.ms", "-2"),
        ("min.cleanable.dirty.ratio", "much"),
        ("nope", "1"),
        ("retention.ms", None),
    ],
)
def test_configs_that_promise_too_much_or_make_no_sense_are_refused(name: str, value: str | None) -> None:
    with pytest.raises(ProtocolError) as refused:
        check_config(name, value)
    assert refused.value.code is ErrorCode.INVALID_CONFIG


def test_every_default_config_is_one_that_we_would_take() -> None:
    for name, key in TOPIC_CONFIGS.items():
        assert check_config(name, key.default(BrokerSettings())) is not None


def test_limits_come_from_the_topic_then_from_the_settings() -> None:
    settings = BrokerSettings(retention_ms=5, max_message_bytes=2_000)
    assert TopicLimits.of({}, settings).retention_ms == 5
    assert TopicLimits.of({"retention.ms": "-1"}, settings).retention_ms is None
    assert TopicLimits.of({"cleanup.policy": "compact"}, settings).retention_ms is None
    assert TopicLimits.of({"max.message.bytes": "9"}, settings).max_message_bytes == 9


def test_no_version_is_promised_that_cannot_be_decoded() -> None:
    for key, (oldest, newest) in SUPPORTED.items():
        assert 0 <= oldest <= newest <= REQUEST_CLASSES[key].max_version
