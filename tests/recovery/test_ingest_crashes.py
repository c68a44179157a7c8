"""Kill ``headrace ingest`` anywhere: after a restart the dataset is the one that an uninterrupted run would have made.

Children are the real command with the in-process runner (the commit protocol is the same; Ray costs seconds per start, so a few kills
with it are in tests/integration). They are killed; the restart that follows runs in this process.
"""

import itertools
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.dataset.gc import orphans
from pipelines.dataset.verify import verify
from pipelines.ingest.stream import Stream
from pipelines.runtime.crash import CRASH_POINTS
from schemas.arrow import Outcome
from tests.broker_process import BrokerProcess
from tests.ingest_harness import Ingest, assert_recovered, finish, finish_overtaken, sample_records, state, wait_until_stopped

NUM_RECORDS = 220
NUM_VERSIONS = 2
"""The first version, which chooses the tokenizer, and one that has a parent: a third would go the way of the second.

Of random kills four are in every run and thirty in the slow one; each of them lands (``kills_that_land``)."""


@pytest.fixture(scope="module")
def source(broker: BrokerProcess, tmp_path_factory: pytest.TempPathFactory) -> Ingest:
    """A topic with documents, and the dataset that an uninterrupted run made of it."""
    ingest = Ingest(tmp_path_factory.mktemp("reference"), broker.bootstrap_servers, "crashes")
    ingest.publish(sample_records(NUM_RECORDS))
    assert len(ingest.once()) == NUM_VERSIONS
    return ingest


def test_the_uninterrupted_run_has_every_offset_once_and_meets_every_outcome(source: Ingest, reference: list[dict[str, Any]]) -> None:
    totals = reference[-1]["totals"]
    assert totals.num_records == sum(totals.outcomes.values()) == NUM_RECORDS
    assert all(totals.outcomes[outcome] for outcome in Outcome if outcome != Outcome.CONTROL)
    assert {"duplicate/exact", "rejected/too_short"} <= set().union(*(version["reasons"] for version in reference))
    assert verify(source.root).problems == []
    assert source.once() == []


@pytest.mark.parametrize("point", CRASH_POINTS)
def test_crash_at_every_step_of_the_commit_protocol_changes_nothing(ingest: Ingest, reference: list[dict[str, Any]], point: str) -> None:
    crashed = ingest.run(crash_at=point)
    assert crashed.returncode == -signal.SIGKILL, crashed.stderr
    is_committed = CRASH_POINTS.index(point) >= CRASH_POINTS.index("published")
    assert state(ingest.root) == reference[: int(is_committed)]
    ingest.once()
    assert_recovered(ingest, reference)


def test_two_crashes_in_a_row_change_nothing(ingest: Ingest, reference: list[dict[str, Any]]) -> None:
    for point in ("segment_written:2", "topic_checked"):
        assert ingest.run(crash_at=point).returncode == -signal.SIGKILL
        assert state(ingest.root) == reference[:1]
    ingest.once()
    assert_recovered(ingest, reference)


def kills_that_land(roots: Iterator[Ingest], kills: int, longest_s: float = 4.0) -> Iterator[Ingest]:
    """Kill running children at random moments until so many died of it, in a new root whenever one has nothing left to do; yields each root used."""
    rng = random.Random(seed := time.time_ns())
    print(f"seed {seed}")
    ingest = next(roots)
    while kills:
        child = ingest.start()
        try:
            child.wait(timeout=rng.uniform(0.2, longest_s))
        except subprocess.TimeoutExpired:
            child.kill()
        ended = finish(child)
        assert ended.returncode in (0, -signal.SIGKILL), ended.stderr
        kills -= ended.returncode == -signal.SIGKILL
        if ended.returncode == 0:
            yield ingest
            ingest = next(roots)
    yield ingest


def new_roots(source: Ingest, folder: Path) -> Iterator[Ingest]:
    return (Ingest(folder / str(number), source.bootstrap_servers, source.prefix) for number in itertools.count())


def test_kills_at_random_moments_change_nothing(source: Ingest, reference: list[dict[str, Any]], tmp_path: Path) -> None:
    for ingest in kills_that_land(new_roots(source, tmp_path), 4):
        ingest.once()
        assert_recovered(ingest, reference)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_thirty_kills_at_random_moments_change_nothing(source: Ingest, reference: list[dict[str, Any]], tmp_path: Path) -> None:
    for ingest in kills_that_land(new_roots(source, tmp_path), 30):
        ingest.once()
        assert_recovered(ingest, reference)


def test_a_writer_that_was_overtaken_is_fenced_and_changes_nothing(ingest: Ingest, reference: list[dict[str, Any]]) -> None:
    """The slower writer is suspended one step before its publication while another one commits the same version."""
    finish_overtaken(ingest, "dead_letters_acked")
    assert_recovered(ingest, reference)


def test_of_two_writers_at_once_one_commits_each_version_and_the_other_is_fenced(ingest: Ingest, reference: list[dict[str, Any]]) -> None:
    """Both are suspended while they make the same version, so that neither can be done before the other begins; then both go on."""
    children = [ingest.start(crash_at="stop@shards_written") for _ in range(2)]
    wait_until_stopped(*children)
    before = len(state(ingest.root))
    for child in children:
        child.send_signal(signal.SIGCONT)
    ended = [finish(child) for child in children]
    assert sorted(child.returncode for child in ended) == [0, 1], [child.stderr for child in ended]
    assert [child for child in ended if "was published by another writer" in child.stderr]
    assert before < len(reference)
    assert_recovered(ingest, reference)


def test_what_crashes_leave_behind_is_removed_when_its_grace_is_over(source: Ingest, reference: list[dict[str, Any]], tmp_path: Path) -> None:
    patient = Ingest(tmp_path / "data", source.bootstrap_servers, source.prefix)
    impatient = Ingest(tmp_path / "data", source.bootstrap_servers, source.prefix, {"ingest.gc_grace_s": 0})
    assert patient.run(crash_at="segment_written").returncode == -signal.SIGKILL
    left_behind = orphans(patient.root)
    with Stream(patient.settings):
        assert orphans(patient.root) == left_behind
    assert {path.split("/")[0] for path in left_behind} == {"shards", "documents", "dedup", "masks"}
    patient.once()
    assert orphans(patient.root) == left_behind
    with Stream(impatient.settings):
        assert orphans(patient.root) == [], "before it reads anything: it may crash again and again"
    impatient.once()
    assert orphans(patient.root) == []
    assert_recovered(patient, reference)
