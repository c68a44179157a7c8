"""The root on an object store: kill ``headrace ingest`` anywhere, let the store answer badly, let two write at once: the dataset is the one that an
uninterrupted run makes in a folder, byte by byte. Whoever goes on after a kill is another host: it has nothing but the store.
"""

import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.dataset.gc import collect_garbage, orphans
from pipelines.runtime.crash import CRASH_POINTS
from pipelines.storage.mirror import root_folder
from tests.broker_process import BrokerProcess
from tests.ingest_harness import Ingest, assert_recovered, finish, finish_overtaken, sample_records, state, wait_until_stopped
from tests.object_stores import KINDS, Kind, Store, running_store, seeded_faults

pytestmark = pytest.mark.timeout(900)
NUM_RECORDS = 220
FEW_POINTS = ("dead_letters_acked", "published")


@pytest.fixture(scope="module")
def source(broker: BrokerProcess, tmp_path_factory: pytest.TempPathFactory) -> Ingest:
    """A topic with documents, and the dataset that an uninterrupted run made of it in a folder."""
    ingest = Ingest(tmp_path_factory.mktemp("reference"), broker.bootstrap_servers, "object-store")
    ingest.publish(sample_records(NUM_RECORDS))
    assert len(ingest.once()) == 2
    return ingest


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Kind, Store]]:
    """Both stores."""
    with running_store("moto", tmp_path_factory.mktemp("moto")) as moto, running_store("alocals3", tmp_path_factory.mktemp("alocals3")) as alocals3:
        yield {"moto": moto, "alocals3": alocals3}


@pytest.fixture
def store(stores: dict[Kind, Store], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """The one that the test names, by default moto, as the environment says it; no fault is left behind."""
    store = stores[getattr(request, "param", "moto")]
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    yield store
    store.proxy.random_faults = None
    assert store.proxy.left == 0


@pytest.fixture
def ingest(source: Ingest, store: Store, tmp_path: Path) -> Ingest:
    """An empty root on the store that reads the same topic with the same settings."""
    return replace(source, root=root_folder(store.url(tmp_path.name), str(tmp_path)))


def on_another_host(ingest: Ingest) -> Ingest:
    """Nothing of the root is on this host."""
    shutil.rmtree(ingest.root)
    return ingest


def crash_and_go_on(ingest: Ingest, reference: list[dict[str, Any]], point: str) -> None:
    crashed = ingest.run(crash_at=point)
    assert crashed.returncode == -signal.SIGKILL, crashed.stderr
    assert state(on_another_host(ingest).root) == reference[: int(CRASH_POINTS.index(point) >= CRASH_POINTS.index("published"))]
    ingest.once()
    assert_recovered(on_another_host(ingest), reference)


@pytest.mark.parametrize("point", FEW_POINTS)
def test_a_crash_changes_nothing_and_another_host_goes_on(ingest: Ingest, reference: list[dict[str, Any]], point: str) -> None:
    crash_and_go_on(ingest, reference, point)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("store", KINDS, indirect=True)
@pytest.mark.parametrize("point", CRASH_POINTS)
def test_a_crash_at_every_step_changes_nothing(ingest: Ingest, reference: list[dict[str, Any]], point: str) -> None:
    crash_and_go_on(ingest, reference, point)


@pytest.mark.parametrize("store", ["alocals3"], indirect=True)
def test_a_writer_that_was_overtaken_is_fenced_by_the_conditional_put(ingest: Ingest, reference: list[dict[str, Any]]) -> None:
    finish_overtaken(ingest, "dead_letters_acked")
    assert_recovered(on_another_host(ingest), reference)


@pytest.mark.parametrize("store", KINDS, indirect=True)
def test_of_two_writers_at_once_one_commits_each_version_and_the_other_is_fenced(
    ingest: Ingest, store: Store, reference: list[dict[str, Any]], tmp_path: Path
) -> None:
    """They are on two hosts, so they share nothing but the store; both are suspended while they make the same version."""
    other = replace(ingest, root=root_folder(store.url(tmp_path.name), str(tmp_path / "other")))
    children = [writer.start(crash_at="stop@shards_written") for writer in (ingest, other)]
    wait_until_stopped(*children)
    for child in children:
        child.send_signal(signal.SIGCONT)
    ended = [finish(child) for child in children]
    assert sorted(child.returncode for child in ended) == [0, 1], [child.stderr for child in ended]
    assert [child for child in ended if "was published by another writer" in child.stderr]
    assert_recovered(on_another_host(ingest), reference)


@pytest.mark.parametrize("store", KINDS, indirect=True)
def test_a_store_that_answers_badly_changes_nothing(ingest: Ingest, store: Store, reference: list[dict[str, Any]]) -> None:
    print(f"seed {(seed := time.time_ns())}")
    store.proxy.random_faults = seeded_faults(seed, 0.15)
    for fault in ("lost", "done_500", "503"):
        store.proxy.plan("PUT", "/log/00000001.json", fault)  # in a row: the last try finds what the first one did
    assert len(ingest.once()) == len(reference)
    store.proxy.random_faults = None
    assert_recovered(on_another_host(ingest), reference)


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_kills_at_random_moments_with_a_bad_store_change_nothing(ingest: Ingest, store: Store, reference: list[dict[str, Any]]) -> None:
    rng = random.Random(seed := time.time_ns())
    print(f"seed {seed}")
    store.proxy.random_faults = seeded_faults(seed, 0.05)
    kills = 0
    while len(state(ingest.root)) < len(reference) and kills < 12:
        child = ingest.start()
        try:
            child.wait(timeout=rng.uniform(2, 12))
        except subprocess.TimeoutExpired:
            child.kill()
        ended = finish(child)
        assert ended.returncode in (0, -signal.SIGKILL), ended.stderr
        kills += ended.returncode == -signal.SIGKILL
        on_another_host(ingest)
    ingest.once()
    store.proxy.random_faults = None
    assert_recovered(on_another_host(ingest), reference)


def test_what_a_crash_left_in_the_store_is_removed_and_nothing_else(ingest: Ingest, reference: list[dict[str, Any]]) -> None:
    assert ingest.run(crash_at="segment_written").returncode == -signal.SIGKILL
    left = orphans(on_another_host(ingest).root)
    assert {path.split("/")[0] for path in left} == {"shards", "documents", "dedup", "masks"}
    assert collect_garbage(ingest.root, grace_s=0) == [], "of a version that is not committed: its writer may live, on whatever host"
    ingest.once()
    assert collect_garbage(ingest.root, grace_s=3_600) == []
    assert sorted(collect_garbage(ingest.root, grace_s=0, dry_run=True)) == left == sorted(collect_garbage(ingest.root, grace_s=0))
    assert orphans(on_another_host(ingest).root) == []
    assert_recovered(ingest, reference)
