"""A stream that breaks its promises stops ingest with exit code 1 and a sentence; the committed version stays as it was."""

import json
import signal
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from kafka import TopicPartition

from pipelines.dataset import checkpoints
from pipelines.dataset.dataset import Dataset, dataset_log, latest_version
from pipelines.dataset.names import documents_path
from pipelines.ingest import dead_rows
from pipelines.ingest.announcer import group_id
from pipelines.ingest.decisive import only_dead
from pipelines.ingest.following import Follower
from pipelines.ingest.progress import Progress
from pipelines.ingest.stream import Stream, ingest_once
from pipelines.kafka.clients import open_admin, open_consumer
from pipelines.kafka.events import read_events
from pipelines.kafka.topics import topic_names
from schemas.arrow import Outcome, prepared
from schemas.errors import SettingsError, TokenizerMismatch, TopicMissing, TopicRecreated
from schemas.settings import Settings
from tests.broker_process import BrokerProcess
from tests.ingest_harness import Ingest, Record, document, finish, sample_records, state, wait_until, wait_until_stopped

TEXT = "water comes down from the hill and the mill turns, so that grain is ground between two stones number"


@pytest.fixture
def ingest(broker: BrokerProcess, topic_prefix: str, tmp_path: Path) -> Ingest:
    return Ingest(tmp_path / "data", broker.bootstrap_servers, topic_prefix)


def documents(first: int, number: int) -> list[Record]:
    return [document(f"doc-{index}", f"{TEXT} {index} {'x' * (index % 7)}", index % 2) for index in range(first, first + number)]


def delete_records(ingest: Ingest, partition: int, before: int) -> None:
    """What retention does, at once."""
    with open_admin(ingest.settings) as admin:
        admin.delete_records({TopicPartition(ingest.topic, partition): before})


def assert_stopped(done: "subprocess.CompletedProcess[str]", sentence: str) -> None:
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_topic_recreated_between_runs_stops_ingest(ingest: Ingest) -> None:
    ingest.publish(documents(0, 20))
    ingest.once()
    before = state(ingest.root)
    ingest.recreate_topic()
    ingest.publish(documents(0, 40))  # offsets that fit: only the topic's id tells
    assert_stopped(ingest.run(), "was deleted and created again")
    assert state(ingest.root) == before


@pytest.mark.parametrize("has_dataset", [False, True])
def test_a_topic_recreated_during_a_run_stops_ingest(ingest: Ingest, has_dataset: bool) -> None:
    ingest.publish(documents(0, 20))
    if has_dataset:
        ingest.once()
        ingest.publish(documents(20, 20))
    before = state(ingest.root)
    child = ingest.start(crash_at="stop@segment_written")
    wait_until_stopped(child)
    ingest.recreate_topic()
    child.send_signal(signal.SIGCONT)
    done = finish(child)
    assert_stopped(done, "was deleted and created again")
    assert ("--accept-loss" in done.stderr) is has_dataset, "where no version read it, nothing is lost"
    assert state(ingest.root) == before


def test_a_follower_says_that_a_topic_was_recreated_also_when_nothing_is_new(ingest: Ingest) -> None:
    ingest.publish(documents(0, 20))
    ingest.once()
    ingest.recreate_topic()
    ingest.publish(documents(0, 20))  # it ends where the dataset ends
    with pytest.raises(TopicRecreated):
        follow_where_nothing_is_new(ingest)


def test_a_topic_recreated_while_a_dataset_of_another_topic_begins_to_read_it_stops_ingest(ingest: Ingest) -> None:
    ingest.publish(documents(0, 20))
    ingest.once()
    other = replace(ingest, prefix=f"{ingest.prefix}-other")
    other.publish([document("new", f"{TEXT} of another topic", 0)])

    class Recreating(Progress):
        def advanced(self, num_records: int) -> None:
            other.recreate_topic()

    with pytest.raises(TopicRecreated, match=r"this batch was read from .* Start again$"):
        ingest_once(other.settings, Recreating())
    assert latest_version(ingest.root) == 1


def test_offsets_lost_to_retention_stop_ingest(ingest: Ingest) -> None:
    ingest.publish(documents(0, 20))
    ingest.once()
    before = state(ingest.root)
    ingest.publish(documents(20, 40))
    delete_records(ingest, 0, before=15)
    assert_stopped(ingest.run(), "offsets 10 to 14")
    assert state(ingest.root) == before


def test_offsets_lost_while_they_are_read_stop_ingest(ingest: Ingest) -> None:
    ingest.publish(documents(0, 20))
    child = ingest.start(crash_at="stop@planned")
    wait_until_stopped(child)
    delete_records(ingest, 1, before=5)
    child.send_signal(signal.SIGCONT)
    assert_stopped(finish(child), "no longer holds offsets")
    assert latest_version(ingest.root) == 0


def test_a_partition_that_retention_emptied_after_it_was_read_is_no_loss(ingest: Ingest) -> None:
    ingest.publish(documents(0, 20))
    ingest.once()
    delete_records(ingest, 0, before=10)
    assert ingest.once() == []
    ingest.publish(documents(20, 2))
    (manifest,) = ingest.once()
    assert manifest.num_records == 2


def test_a_first_version_starts_where_the_log_starts(ingest: Ingest) -> None:
    ingest.publish(documents(0, 20))
    delete_records(ingest, 0, before=4)
    (manifest,) = ingest.once()
    assert [(span.start, span.end) for span in manifest.offsets[ingest.topic].values()] == [(4, 10), (0, 10)]


def test_a_missing_topic_stops_ingest_and_is_not_created(ingest: Ingest) -> None:
    assert_stopped(ingest.run(), f"there is no topic '{ingest.topic}'")
    with pytest.raises(TopicMissing):
        ingest.once()
    with open_admin(ingest.settings) as admin:
        assert ingest.topic not in admin.list_topics()


def test_a_deleted_topic_stops_ingest_and_is_not_created_again(ingest: Ingest) -> None:
    ingest.publish(documents(0, 4))
    ingest.once()
    with open_admin(ingest.settings) as admin:
        admin.delete_topics([ingest.topic])
        wait_until(lambda: ingest.topic not in admin.list_topics(), "the topic to be gone")
        assert_stopped(ingest.run("--follow"), f"there is no topic '{ingest.topic}'")
        assert ingest.topic not in admin.list_topics()


def test_settings_that_do_not_fit_the_dataset_are_refused(ingest: Ingest, tmp_path: Path) -> None:
    ingest.publish(documents(0, 4))
    ingest.once()
    folder = tmp_path / "tokenizer"
    other = Ingest(tmp_path / "other", ingest.bootstrap_servers, ingest.prefix, {"tokenizer.vocab_size": 400})
    ingest.publish(documents(4, 4))
    other.once()
    (tmp_path / "other" / Dataset(other.root).tokenizer.path).rename(folder)
    for overrides, error, what_to_do in (
        ({"packing.sequence_length": 64}, SettingsError, "under another --root"),
        ({"tokenizer.vocab_size": 501}, TokenizerMismatch, "headrace tokenizer switch"),
        ({"tokenizer.path": str(folder)}, TokenizerMismatch, "headrace tokenizer switch"),
    ):
        with pytest.raises(error, match=what_to_do):
            Ingest(ingest.root, ingest.bootstrap_servers, ingest.prefix, overrides).once()
        with pytest.raises(error, match=what_to_do):
            follow_where_nothing_is_new(Ingest(ingest.root, ingest.bootstrap_servers, f"{ingest.prefix}-empty", overrides))
    assert latest_version(ingest.root) == 1
    with pytest.raises(SettingsError, match="cannot be used"):
        follow_where_nothing_is_new(Ingest(tmp_path / "new", ingest.bootstrap_servers, f"{ingest.prefix}-empty", {"tokenizer.path": "nowhere"}))


def follow_where_nothing_is_new(ingest: Ingest) -> None:
    with Stream(ingest.settings) as stream:
        Follower(stream, ingest.settings, threading.Event()).turn()


def test_what_a_dataset_fixed_stays_where_the_settings_say_nothing_else(ingest: Ingest) -> None:
    ingest.publish(documents(0, 4))
    first = ingest.once()[0]
    ingest.publish(documents(4, 4))
    defaults = Settings()
    untouched = {"packing.sequence_length": defaults.packing.sequence_length, "tokenizer.vocab_size": defaults.tokenizer.vocab_size}
    (second,) = Ingest(ingest.root, ingest.bootstrap_servers, ingest.prefix, untouched).once()
    assert (second.sequence_length, second.tokenizer, second.settings_fingerprint) == (
        first.sequence_length,
        first.tokenizer,
        first.settings_fingerprint,
    )


def test_ingest_once_takes_in_no_more_than_was_there_at_its_start(ingest: Ingest) -> None:
    ingest.publish(documents(0, 260))
    child = ingest.start(crash_at="stop@planned:2")
    wait_until_stopped(child)
    ingest.publish(documents(260, 40))
    child.send_signal(signal.SIGCONT)
    done = finish(child)
    assert done.returncode == 0, done.stderr
    versions = json.loads(done.stdout)["versions"]
    assert [version["num_records"] for version in versions] == [120, 120, 20]
    assert sum(manifest.num_records for manifest in ingest.once()) == 40


def test_a_writer_leaves_checkpoints_of_the_log_behind(ingest: Ingest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "GROWTH", 2)
    for first in (0, 4, 8):
        ingest.publish(documents(first, 4))
        ingest.once()
    assert [(found.first, found.last) for found in checkpoints.listed(ingest.root)] == [(1, 2)]


def test_what_a_crash_left_of_a_version_is_removed_when_the_stream_that_commits_it_ends(ingest: Ingest) -> None:
    left = ingest.root / documents_path(1, "f" * 12)
    left.parent.mkdir(parents=True)
    left.touch()
    ingest.publish(documents(0, 4))
    replace(ingest, overrides={"ingest.gc_grace_s": 0}).once()
    assert not left.exists()


def test_topics_that_ingest_writes_to_are_made_as_the_settings_say_where_they_are_missing(ingest: Ingest) -> None:
    names = topic_names(ingest.settings)
    ingest.publish([*documents(0, 4), Record(b"{")])
    with open_admin(ingest.settings) as admin:
        admin.delete_topics([names.deadletter])
        wait_until(lambda: names.deadletter not in admin.list_topics(), "the topic to be gone")
        replace(ingest, overrides={"kafka.num_partitions": 5}).once()
        assert len(admin.describe_topics([names.deadletter])[0]["partitions"]) == 5
    assert len(letters(ingest, 1)) == 1


def test_nothing_new_publishes_no_version(ingest: Ingest) -> None:
    ingest.publish(documents(0, 4))
    assert len(ingest.once()) == 1
    entry = dataset_log(ingest.root).path(1).read_bytes()
    assert ingest.once() == []
    assert latest_version(ingest.root) == 1
    assert dataset_log(ingest.root).path(1).read_bytes() == entry


def test_lag_monitors_and_people_are_told_after_the_commit(ingest: Ingest) -> None:
    ingest.publish(sample_records(60))
    (manifest,) = ingest.once()
    dataset = Dataset(ingest.root)
    with open_consumer(ingest.settings, group_id=group_id(ingest.settings)) as consumer:
        partitions = {TopicPartition(ingest.topic, partition): end for partition, end in dataset.next_offsets(ingest.topic).items()}
        assert {key: consumer.committed(key) for key in partitions} == partitions
    ingest.once()  # a second start tells the newest version again, recognisably
    with read_events(ingest.settings, topic_names(ingest.settings).events) as reader:
        events = []
        wait_until(lambda: events.extend(reader.poll(0.5)) or len(events) >= 2, "two events")  # type: ignore[func-returns-value]
    assert len({event.id for event in events}) == 1
    assert events[0].data.model_dump()["num_records"] == manifest.num_records


def letters(ingest: Ingest, number: int) -> list[bytes]:
    """Keys of all dead letters, once there are so many."""
    topic, keys = topic_names(ingest.settings).deadletter, list[bytes]()
    with open_consumer(ingest.settings, auto_offset_reset="earliest") as consumer:
        consumer.assign([TopicPartition(topic, partition) for partition in consumer.partitions_for_topic(topic)])
        wait_until(
            lambda: keys.extend(r.key for records in consumer.poll(500).values() for r in records) or len(keys) >= number,  # type: ignore[func-returns-value]
            f"{number} dead letters",
        )
    return keys


def test_every_dead_record_has_a_dead_letter_and_a_crash_repeats_it_under_the_same_key(ingest: Ingest) -> None:
    ingest.publish(sample_records(100))
    assert ingest.run(crash_at="dead_letters_acked").returncode == -signal.SIGKILL
    (manifest,) = ingest.once()
    num_dead = manifest.outcomes[Outcome.DEAD]
    keys = letters(ingest, 2 * num_dead)
    assert num_dead > 0
    assert len(keys) == 2 * num_dead
    assert len(set(keys)) == num_dead


def dead_block(first: int, number: int) -> pa.Table:
    """So many dead rows, and a kept one behind them."""
    row = {"topic": "t", "partition": 0, "outcome": str(Outcome.DEAD), "reason": "not_utf8", "error": "byte 0 is 0xff", "value": b"\xff"}
    rows = [row | {"offset": offset} for offset in range(first, first + number)]
    return pa.Table.from_pylist([*rows, row | {"offset": first + number, "outcome": str(Outcome.KEPT)}], schema=prepared(300))


def test_dead_rows_of_many_blocks_are_published_each_once_however_many_blocks_make_a_window(ingest: Ingest, monkeypatch: pytest.MonkeyPatch) -> None:
    ingest.publish([])
    blocks = [dead_block(11 * number, 10) for number in range(5)]
    monkeypatch.setattr(dead_rows, "WINDOW_BYTES", int(1.5 * blocks[0].nbytes))  # two blocks, two blocks, and one that is left
    with dead_rows.DeadRows(ingest.root.parent) as dead:
        for block in blocks:
            dead.put(only_dead(block))
        dead.publish(ingest.settings)
    expected = [offset for block in blocks for offset in block["offset"].to_pylist()[:-1]]
    assert sorted(int(key.rpartition(b"/")[2]) for key in letters(ingest, len(expected))) == expected
