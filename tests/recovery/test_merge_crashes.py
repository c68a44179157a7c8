"""Kill a merge of small shards anywhere: after a restart the dataset is the one that an uninterrupted run would have made."""

import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.dataset.dataset import Dataset, latest_version
from pipelines.dataset.gc import collect_garbage, orphans
from pipelines.dataset.retractions.tombstones import Tombstones
from pipelines.dataset.verify import verify
from pipelines.dedup.resolve import Resolver
from pipelines.ingest.following import ingest_follow
from pipelines.ingest.progress import Progress
from pipelines.ingest.stream import Stream
from pipelines.runtime.crash import MERGE_CRASH_POINTS
from tests.broker_process import BrokerProcess
from tests.ingest_harness import Ingest, assert_recovered, finish, sample_records, state, wait_until, wait_until_stopped

OFTEN = {"ingest.merge_shards": 2, "ingest.max_batch_records": 40, "packing.shard_rows": 1_000}
"""A merge after every second version with documents."""


@pytest.fixture(scope="module")
def source(broker: BrokerProcess, tmp_path_factory: pytest.TempPathFactory) -> Ingest:
    """A topic with documents, and the dataset that an uninterrupted run made of it."""
    ingest = Ingest(tmp_path_factory.mktemp("reference"), broker.bootstrap_servers, "merges", OFTEN)
    ingest.publish(sample_records(120))
    ingest.once()
    return ingest


def without_numbers(version: dict[str, Any]) -> dict[str, Any]:
    """A version as it is where others stand before it: paths and masks name versions by their numbers."""
    documents = [row | {"shard": None} for row in version["documents"]]
    return {**version, "documents": documents, "masks": [row | {"shard": None, "version": None} for row in version["masks"]]}


def test_merges_are_versions_without_documents_and_change_no_outcome(source: Ingest, reference: list[dict[str, Any]], tmp_path: Path) -> None:
    assert [bool(version["merged"]) for version in reference] == [False, False, True, False]
    plain = Ingest(tmp_path / "data", source.bootstrap_servers, source.prefix, OFTEN | {"ingest.merge_shards": 0})
    plain.once()
    with_documents = [version for version in reference if not version["merged"]]
    assert [without_numbers(version) for version in with_documents] == [without_numbers(version) for version in state(plain.root)]
    assert reference[2]["totals"] == reference[1]["totals"]
    assert verify(source.root).problems == [] and orphans(source.root) == []
    assert Dataset(source.root).next_offsets(source.topic) == Dataset(plain.root).next_offsets(plain.topic)


CRASHES = [pytest.param(point, marks=() if point in ("merge_written", "merge_published") else pytest.mark.slow) for point in MERGE_CRASH_POINTS]
"""Those next to the publication are in every run."""


@pytest.mark.parametrize("point", CRASHES)
def test_crash_at_every_step_of_a_merge_changes_nothing(ingest: Ingest, reference: list[dict[str, Any]], point: str) -> None:
    crashed = ingest.run(crash_at=point)
    assert crashed.returncode == -signal.SIGKILL, crashed.stderr
    assert state(ingest.root) == reference[: 3 if point == "merge_published" else 2]
    left = {"merge_begun": 0, "merged_shard_written": 1, "merge_written": len(reference[2]["merged"]), "merge_published": 0}
    assert len(orphans(ingest.root)) == left[point]
    ingest.once()
    assert_recovered(ingest, reference)
    collect_garbage(ingest.root, grace_s=0)
    assert orphans(ingest.root) == [] and verify(ingest.root).problems == []


@pytest.mark.slow  # starts two processes
def test_a_merge_that_was_overtaken_is_dropped_and_its_file_collected(ingest: Ingest, reference: list[dict[str, Any]]) -> None:
    """The slower writer is suspended one step before its publication; what it was asked to take in, the other one has taken in."""
    slow = ingest.start(crash_at="stop@merge_written")
    wait_until_stopped(slow)
    ingest.once()
    slow.send_signal(signal.SIGCONT)
    ended = finish(slow)
    assert ended.returncode == 0, ended.stderr
    assert_recovered(ingest, reference)
    assert {path.split("/")[0] for path in orphans(ingest.root)} == {"shards"}
    assert set(orphans(ingest.root)) <= set(collect_garbage(ingest.root, grace_s=0))


def test_what_is_known_of_earlier_versions_is_read_once_and_carried_on_also_past_a_merge(
    ingest: Ingest, reference: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Callable[..., Any]] = []

    def noted(kind: Callable[..., Any]) -> Callable[..., Any]:
        def open_noted(*arguments: Any, **named: Any) -> Any:
            opened.append(kind)
            return kind(*arguments, **named)

        return open_noted

    monkeypatch.setattr("pipelines.dataset.duplicates.Resolver", noted(Resolver))
    monkeypatch.setattr("pipelines.dataset.retractions.retractions.Tombstones", noted(Tombstones))
    ingest.once()
    assert opened == [Resolver, Tombstones]
    assert_recovered(ingest, reference)


def test_what_a_batch_left_that_failed_is_not_carried_on_past_a_merge(ingest: Ingest, reference: list[dict[str, Any]]) -> None:
    """Its documents would be duplicates of themselves."""

    class Failing(Progress):
        def advanced(self, num_records: int) -> None:
            if is_failing:
                raise OSError("as a disk does")

    is_failing = False
    patient = replace(ingest, overrides={**ingest.overrides, "ingest.target_commit_s": 600})
    with Stream(patient.settings, Failing(), in_background=True) as stream:
        assert [stream.commit_next() is None for _ in range(2)] == [False, False]
        is_failing = True
        with pytest.raises(OSError, match="as a disk does"):
            stream.commit_next()  # which has begun a merge before
        wait_until(lambda: "headrace-merge" not in {thread.name for thread in threading.enumerate()}, "the merge to be written")
        is_failing = False
        published = stream.compact_if_due()
        assert published is not None and published.merged
        assert stream.commit_next() is not None
    assert_recovered(ingest, reference)


def test_a_follower_merges_in_the_background_also_when_no_document_comes_any_more(tmp_path: Path, broker: BrokerProcess) -> None:
    often = OFTEN | {"ingest.follow_interval_s": 0.1, "ingest.max_wait_s": 0, "ingest.gc_grace_s": 0, "ingest.merged_grace_s": 0}
    following = Ingest(tmp_path / "data", broker.bootstrap_servers, "followed-merges", often)
    stop = threading.Event()
    follower = threading.Thread(target=lambda: ingest_follow(following.settings, stop))
    records = sample_records(120)
    following.publish(records[:60])
    follower.start()
    try:
        wait_until(lambda: latest_version(following.root) > 0 and bool(Dataset(following.root).manifest.merged), "a merge to be published")
        version = latest_version(following.root)
        following.publish(records[60:])
        wait_until(lambda: latest_version(following.root) > version, "the next version")
    finally:
        stop.set()
        follower.join()
    following.once()
    assert verify(following.root).problems == []
    assert not [path for path in Dataset(following.root).placement.replaced() if (following.root / path).exists()]
