"""After a loss a person can go on without a new root: a version records what is lost, who accepted it and why; nothing is skipped unseen."""

import json
from pathlib import Path

import pytest
from kafka import TopicPartition

from ops.cli.main import main
from pipelines.dataset.dataset import Dataset
from pipelines.dataset.verify import verify
from pipelines.kafka.clients import open_admin
from pipelines.kafka.planning import check_not_cut, plan_ranges
from pipelines.kafka.topics import topic_ids
from schemas.arrow import Outcome
from schemas.errors import OffsetsLost, SourceError, TopicRecreated
from schemas.lost_offsets import LossKind
from tests.broker_process import BrokerProcess
from tests.ingest_harness import Ingest, Record, document, state, wait_until

TEXT = "water comes down from the hill and the mill turns, so that grain is ground between two stones number"
WHY = "retention was too short, agreed with Li"


@pytest.fixture
def ingest(broker: BrokerProcess, topic_prefix: str, tmp_path: Path) -> Ingest:
    return Ingest(tmp_path / "data", broker.bootstrap_servers, topic_prefix)


def documents(first: int, number: int) -> list[Record]:
    return [document(f"doc-{index}", f"{TEXT} {index} {index * 7919}", index % 2) for index in range(first, first + number)]


def delete_records(ingest: Ingest, partition: int, before: int) -> None:
    with open_admin(ingest.settings) as admin:
        admin.delete_records({TopicPartition(ingest.topic, partition): before})


def test_offsets_that_retention_took_are_accepted_by_name_and_accounted_for(ingest: Ingest, capsys: pytest.CaptureFixture[str]) -> None:
    ingest.publish(documents(0, 20))
    ingest.once()
    ingest.publish(documents(20, 40))
    delete_records(ingest, 0, before=15)
    with pytest.raises(OffsetsLost, match="--accept-loss 0@15 "):
        ingest.once()
    before = state(ingest.root)
    for places in (["0@14"], ["0@15", "1@10"], ["1@10"]):  # too little, and what can still be read
        refused = ingest.run("--accept-loss", *places, "--reason", WHY)
        assert (refused.returncode, state(ingest.root)) == (2, before)
        assert "offsets 10 to 14" in refused.stderr
    assert ingest.run("--accept-loss", "0@15").returncode == 2  # no reason
    done = ingest.run("--accept-loss", "0@15", "--reason", WHY)
    assert done.returncode == 0, done.stderr
    (version,) = json.loads(done.stdout)["versions"]
    (loss,) = version["accepted_loss"]["lost"]
    assert (loss["partition"], loss["expected"], loss["resumed"], loss["num_unread"], loss["kind"]) == (0, 10, 15, 5, "removed")
    assert (version["accepted_loss"]["reason"], version["totals"]["num_lost"]) == (WHY, 5)
    assert version["accepted_loss"]["by"]
    assert main(["datasets", "show", "--root", str(ingest.root)]) == 0
    shown = capsys.readouterr().out
    assert "offsets 10 to 14" in shown
    assert WHY in shown
    (after,) = ingest.once()
    assert [(span.start, span.end) for span in after.offsets[ingest.topic].values()] == [(15, 30), (10, 30)]
    assert (after.totals.num_records, after.totals.num_lost) == (20 + 35, 5)
    assert verify(ingest.root).problems == []


def test_what_is_not_lost_cannot_be_accepted(ingest: Ingest) -> None:
    ingest.publish(documents(0, 20))
    ingest.once()
    ingest.publish(documents(20, 4))
    refused = ingest.run("--accept-loss", "0@12", "--reason", WHY)
    assert refused.returncode == 2
    assert "no records of" in refused.stderr
    assert sum(manifest.num_records for manifest in ingest.once()) == 4


def test_a_topic_that_was_created_again_is_accepted_and_read_from_its_beginning(ingest: Ingest) -> None:
    ingest.publish(documents(0, 20))
    ingest.once()
    old_id = Dataset(ingest.root).manifest.topic_ids[ingest.topic]
    ingest.recreate_topic()
    ingest.publish(documents(10, 20))  # half of them are known
    with pytest.raises(TopicRecreated, match=r"--accept-loss 0@0 1@0 .*--reason"):
        ingest.once()
    places = [f"{partition}@0" for partition in plan_ranges(ingest.settings, ingest.topic, {}, 1)]
    done = ingest.run("--accept-loss", *places, "--reason", WHY)
    assert done.returncode == 0, done.stderr
    accepted = Dataset(ingest.root).manifest.accepted_loss
    assert accepted is not None
    assert accepted.topic_id_before == old_id
    assert {loss.kind for loss in accepted.lost} == {LossKind.RECREATED}
    (after,) = ingest.once()
    assert after.topic_ids == topic_ids(ingest.settings, [ingest.topic])
    assert after.num_records == 20
    assert after.outcomes[Outcome.DUPLICATE] >= 10
    assert verify(ingest.root).problems == []
    assert Dataset(ingest.root).ref().offsets[ingest.topic][0].end == 10


def test_a_topic_created_again_with_fewer_partitions_is_accepted_and_later_gaps_are_still_errors(ingest: Ingest) -> None:
    ingest.publish(documents(0, 20))
    ingest.once()
    with open_admin(ingest.settings) as admin:
        admin.delete_topics([ingest.topic])
        wait_until(lambda: ingest.topic not in admin.list_topics(), "the topic to be gone")
        admin.create_topics({ingest.topic: {"num_partitions": 1, "replication_factor": 1}}, wait_for_metadata=True)
    gone = [f"{partition}@gone" for partition in sorted(Dataset(ingest.root).next_offsets(ingest.topic)) if partition]
    assert ingest.run("--accept-loss", "0@0", *gone, "--reason", WHY).returncode == 0
    ingest.publish([document(f"new-{index}", f"{TEXT} {index} anew {index * 31}", 0) for index in range(6)])
    (after,) = ingest.once()
    assert list(after.offsets[ingest.topic]) == [0]
    assert verify(ingest.root).problems == []
    ingest.publish([document(f"more-{index}", f"{TEXT} {index} more {index * 37}", 0) for index in range(6)])
    delete_records(ingest, 0, before=8)
    with pytest.raises(OffsetsLost, match="offsets 6 to 7"):
        ingest.once()


def test_a_gap_that_nobody_accepted_is_found_by_verify(ingest: Ingest) -> None:
    ingest.publish(documents(0, 20))
    ingest.once()
    delete_records(ingest, 0, before=10)
    ingest.publish(documents(20, 20))
    delete_records(ingest, 0, before=13)
    assert ingest.run("--accept-loss", "0@13", "--reason", WHY).returncode == 0
    path = ingest.root / "log" / "00000002.json"
    path.write_text(path.read_text().replace('"expected": 10', '"expected": 9'))
    assert any("is recorded from 9 on" in problem.what for problem in verify(ingest.root).problems)


def test_the_leader_epoch_of_every_end_is_recorded_and_an_epoch_that_ends_below_it_stops_the_plan(ingest: Ingest) -> None:
    """The broker knows nothing of an epoch that is to come: as one that was restored from an old copy."""
    ingest.publish(documents(0, 20))
    ingest.once()
    dataset = Dataset(ingest.root)
    ends, epochs = dataset.next_offsets(ingest.topic), dataset.manifest.leader_epochs[ingest.topic]
    assert set(epochs) == {partition for partition, end in ends.items() if end} == {0, 1}
    later = epochs[1] + 7
    assert all(len(span) == 0 for span in plan_ranges(ingest.settings, ingest.topic, ends, 100, epochs).values())
    with pytest.raises(OffsetsLost, match=r"\[1\] was cut below offset 10.*leader epoch \d+, .*is unknown to its leader.*--accept-loss 1@0"):
        plan_ranges(ingest.settings, ingest.topic, ends, 100, {**epochs, 1: later})
    check_not_cut(ingest.settings, ingest.topic, ends, epochs)
    with pytest.raises(SourceError, match=r"partitions \[1\] of .* were cut while they were read"):
        check_not_cut(ingest.settings, ingest.topic, ends, {**epochs, 1: later})
    ingest.publish([document("only", f"{TEXT} of one partition", 1)])
    (after,) = ingest.once()
    assert after.leader_epochs[ingest.topic] == epochs, "also those of partitions that gave nothing"


def test_a_log_that_is_cut_while_it_is_read_commits_nothing(ingest: Ingest, monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch that the broker does not know any more: what was read may be gone, and other records be at its offsets."""
    ingest.publish(documents(0, 20))
    monkeypatch.setattr("pipelines.ingest.stream.leader_epochs", lambda settings, topic, ends: dict.fromkeys(ends, 7))
    with pytest.raises(SourceError, match="were cut while they were read"):
        ingest.once()
    assert state(ingest.root) == []
