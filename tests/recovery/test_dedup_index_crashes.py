"""Kill a compaction of the duplicate index anywhere: after a restart the dataset is the one that an uninterrupted run would have made."""

import signal
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pipelines.dataset.compaction import compact
from pipelines.dataset.dataset import Dataset, latest_version
from pipelines.dataset.gc import orphans
from pipelines.dataset.verify import verify
from pipelines.ingest.following import ingest_follow
from pipelines.ingest.stream import Stream
from pipelines.runtime.crash import COMPACTION_CRASH_POINTS
from tests.broker_process import BrokerProcess
from tests.ingest_harness import Ingest, assert_recovered, finish_overtaken, sample_records, state, wait_until

OFTEN = {"dedup.compact_segments": 1}
"""A compaction after each of the two versions with documents."""


@pytest.fixture(scope="module")
def source(broker: BrokerProcess, tmp_path_factory: pytest.TempPathFactory) -> Ingest:
    """A topic with documents, and the dataset that an uninterrupted run made of it."""
    ingest = Ingest(tmp_path_factory.mktemp("reference"), broker.bootstrap_servers, "compactions", OFTEN)
    ingest.publish(sample_records(150))
    ingest.once()
    return ingest


def test_compactions_are_versions_without_documents_and_change_no_outcome(source: Ingest, reference: list[dict[str, Any]], tmp_path: Path) -> None:
    assert [bool(version["base"]) for version in reference] == [False, True, False, True]
    plain = Ingest(tmp_path / "data", source.bootstrap_servers, source.prefix, {"dedup.compact_segments": 0})
    plain.once()
    with_documents = [version for version in reference if not version["base"]]
    for version, expected in zip(state(plain.root), with_documents, strict=True):
        strip = [[{**row, "shard": None} for row in found["documents"]] for found in (version, expected)]
        assert strip[0] == strip[1]
        assert version["segments"] == expected["segments"]
    assert reference[-1]["totals"] == state(plain.root)[-1]["totals"]
    assert verify(source.root).problems == []
    assert orphans(source.root) == []
    assert Dataset(source.root).next_offsets(source.topic) == Dataset(plain.root).next_offsets(plain.topic)


CRASHES = [pytest.param(point, visit, marks=() if visit == 1 else pytest.mark.slow) for visit, point in enumerate(COMPACTION_CRASH_POINTS, 1)]
"""The first one, which leaves a file that nobody lists, is in every run."""


@pytest.mark.parametrize(("point", "visit"), CRASHES)
def test_crash_at_every_step_of_a_compaction_changes_nothing(ingest: Ingest, reference: list[dict[str, Any]], point: str, visit: int) -> None:
    crashed = ingest.run(crash_at=f"{point}:{visit}")
    assert crashed.returncode == -signal.SIGKILL, crashed.stderr
    num_versions = 2 * visit - 1 + (point == "base_published")
    assert state(ingest.root) == reference[:num_versions]
    assert len(orphans(ingest.root)) == (point == "base_written")
    ingest.once()
    assert_recovered(ingest, reference)


@pytest.mark.slow  # starts two processes
def test_a_compaction_that_was_overtaken_is_fenced_and_leaves_only_garbage(ingest: Ingest, reference: list[dict[str, Any]]) -> None:
    finish_overtaken(ingest, "base_written")
    assert_recovered(ingest, reference)
    assert [path.split("/")[0] for path in orphans(ingest.root)] == ["dedup"]


def test_a_follower_compacts_in_the_background_and_goes_on(ingest: Ingest, broker: BrokerProcess) -> None:
    following = Ingest(ingest.root, broker.bootstrap_servers, "followed", {**OFTEN, "ingest.follow_interval_s": 0.1, "ingest.max_wait_s": 0})
    records = sample_records(220)
    stop, found = threading.Event(), []
    follower = threading.Thread(target=lambda: found.extend(ingest_follow(following.settings, stop)))
    following.publish(records[:40])
    follower.start()
    try:
        for start in range(40, 220, 20):
            version = latest_version(following.root)
            following.publish(records[start : start + 20])
            wait_until(lambda version=version: latest_version(following.root) > version, "the next version")  # type: ignore[misc]
            if latest_version(following.root) and any(manifest.dedup_base for manifest in Dataset(following.root).manifests()):
                break
        else:
            raise AssertionError("no compaction was published")
    finally:
        stop.set()
        follower.join()
    following.once()
    assert found
    assert verify(following.root).problems == []


def test_a_base_that_another_writers_compaction_has_passed_is_dropped_and_the_stream_goes_on(ingest: Ingest) -> None:
    with Stream(ingest.settings, in_background=True) as stream:
        assert stream.commit_next()
        assert stream.compact_if_due() is None  # it has begun
        compact(Dataset(ingest.root), ingest.settings, now=datetime.now(UTC))
        wait_until(lambda: "headrace-compaction" not in {thread.name for thread in threading.enumerate()}, "the base to be written")
        assert stream.compact_if_due() is None
        second = stream.commit_next()
        assert second is not None
        assert second.version == 3
        assert stream.compact_if_due() is None  # the next one has begun
        wait_until(lambda: "headrace-compaction" not in {thread.name for thread in threading.enumerate()}, "the base to be written")
        published = stream.compact_if_due()
        assert published is not None
        assert published.dedup_base
    assert verify(ingest.root).problems == []


def test_a_follower_publishes_a_finished_base_also_when_no_document_comes_any_more(tmp_path: Path, broker: BrokerProcess) -> None:
    idle = Ingest(tmp_path / "data", broker.bootstrap_servers, "idle", {**OFTEN, "ingest.follow_interval_s": 0.1, "ingest.max_wait_s": 0})
    idle.publish(sample_records(40))
    stop = threading.Event()
    follower = threading.Thread(target=lambda: ingest_follow(idle.settings, stop))
    follower.start()
    try:
        wait_until(lambda: latest_version(idle.root) > 0 and bool(Dataset(idle.root).manifest.dedup_base), "a compaction to be published")
    finally:
        stop.set()
        follower.join()
    assert verify(idle.root).problems == []
