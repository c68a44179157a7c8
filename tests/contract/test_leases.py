"""Leases on two object stores: one holder at a time, whoever was overtaken commits nothing, and lost answers change nothing."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pipelines.storage import leases, objects
from pipelines.storage.leases import Holder, Lease, committed, held, join, take
from pipelines.storage.mirror import mirror_of, root_folder, url_of
from schemas.errors import LeaseLost, StoreUnavailable, TrainingError
from tests.object_stores import KINDS, Fault, Kind, Store, running_store


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Kind, Store]]:
    """Both stores."""
    with running_store("moto", tmp_path_factory.mktemp("moto")) as moto, running_store("alocals3", tmp_path_factory.mktemp("alocals3")) as alocals3:
        yield {"moto": moto, "alocals3": alocals3}


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, stores: dict[Kind, Store], monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """Each of them, with short pauses."""
    store = stores[request.param].use(monkeypatch)
    monkeypatch.setattr(objects, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(leases, "RENEW_S", 0.3)
    monkeypatch.setattr(leases, "EXPIRES_S", 600.0)
    yield store
    assert store.proxy.left == 0


@pytest.fixture
def soon(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease that is not renewed may be taken over within a second."""
    monkeypatch.setattr(leases, "EXPIRES_S", 1.0)


@pytest.fixture
def folder(store: Store, tmp_path: Path) -> Path:
    """Of a lease."""
    return root_folder(store.url(tmp_path.name), str(tmp_path)) / "job" / "log"


def elsewhere(folder: Path) -> Path:
    """The same, as another host sees it."""
    root = folder.parents[1]
    return root_folder(url_of(root), str(root.parents[1] / "elsewhere")) / "job" / "log"


def refused(holder: Holder) -> TrainingError:
    return TrainingError(f"{holder} is at work")


def expired(folder: Path, lease: Lease) -> Lease:
    """Who takes over a lease that is not renewed."""
    other = take(elsewhere(folder), refused)
    assert other.number > lease.number
    return other


def test_one_process_holds_a_lease_until_it_gives_it_back_and_the_next_finds_what_was_committed(folder: Path) -> None:
    with held(folder, refused) as lease:
        with pytest.raises(TrainingError, match=r"process \d+ on .* is at work"):
            take(elsewhere(folder), refused)
        lease.commit({"step": 1})
        assert committed(elsewhere(folder)) == {"step": 1}
    with held(elsewhere(folder), refused) as other:
        assert other.state == {"step": 1}
        assert other.number > lease.number


@pytest.mark.usefixtures("soon")
def test_a_holder_that_was_paused_past_its_lease_commits_nothing(folder: Path) -> None:
    lease = take(folder, refused)
    lease.commit({"step": 1})
    other = expired(folder, lease)
    with pytest.raises(LeaseLost, match="took over"):
        lease.commit({"step": 2})
    other.commit({**other.state, "seen": True})
    with pytest.raises(LeaseLost):
        lease.commit({"step": 3})
    assert committed(folder) == {"step": 1, "seen": True}


@pytest.mark.usefixtures("soon")
def test_a_holder_learns_that_it_was_overtaken_when_it_wakes_up(folder: Path) -> None:
    lost = threading.Event()
    lease = take(folder, refused, lost.set)
    expired(folder, lease)
    lease.keep()
    assert lost.wait(30)
    with pytest.raises(LeaseLost):
        lease.check()
    lease.release()
    assert committed(folder) == {}


def test_of_many_that_take_a_lease_at_once_one_gets_it(folder: Path) -> None:
    got: list[Lease] = []

    def attempt() -> None:
        with suppress(TrainingError):
            lease = take(folder, refused)
            lease.keep()
            got.append(lease)

    threads = [threading.Thread(target=attempt) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1
    got[0].release()


def test_what_a_killed_process_of_this_machine_held_is_taken_at_once(folder: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from pipelines.storage.leases import take; "
        "lease = take(Path(sys.argv[1]), RuntimeError); lease.commit({'step': 1}); print('held', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(folder)], cwd=Path(__file__).parents[2], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        child.kill()
        assert child.wait() == -signal.SIGKILL
    assert take(elsewhere(folder), refused).state == {"step": 1}


@pytest.mark.usefixtures("soon")
def test_of_two_that_joined_a_lease_the_later_one_commits(folder: Path) -> None:
    lease = take(folder, refused)
    first = join(elsewhere(folder), lease.number)
    first.commit({"step": 1})
    second = join(folder, lease.number)
    assert second.state == {"step": 1}
    with pytest.raises(LeaseLost):
        first.commit({"step": 2})
    second.commit({"step": 3})
    lease.look()
    assert lease.state == {"step": 3}
    expired(folder, lease)
    with pytest.raises(LeaseLost):
        join(folder, lease.number)
    with pytest.raises(LeaseLost):
        second.commit({"step": 4})
    assert committed(folder) == {"step": 3}


@pytest.mark.parametrize("fault", ["lost", "done_500", "503", "not_sent"])
def test_a_commit_whose_answers_are_lost_counts_once(folder: Path, store: Store, fault: Fault) -> None:
    lease = take(folder, refused)
    store.proxy.plan("PUT", "/job/log/0000000", fault, times=2)
    lease.commit({"step": 1})
    lease.commit({"step": 2})
    assert committed(elsewhere(folder)) == {"step": 2}
    assert len(_entries(folder)) == 3


def test_a_commit_that_nobody_knows_of_does_not_fence_its_own_holder(folder: Path, store: Store) -> None:
    """All answers are lost, also when it is read back; the next commit finds it."""
    lease = take(folder, refused)
    store.proxy.plan("PUT", "/job/log/00000002", "done_500", times=objects.TRIES)
    store.proxy.plan("GET", "/job/log/00000002", "500", times=objects.TRIES)
    with pytest.raises(StoreUnavailable):
        lease.commit({"step": 1})
    store.proxy._planned.clear()
    lease.commit({"step": 2})
    assert committed(elsewhere(folder)) == {"step": 2}


def test_the_newest_entry_is_found_without_listing_those_that_the_last_renewal_has_seen(folder: Path, store: Store) -> None:
    with held(folder, refused) as lease:
        for step in range(12):
            lease.commit({"step": step})
        _wait_for(lambda: mirror_of(folder).objects.get("job/log/renewed-00000001.json").startswith(b"13 "))  # type: ignore[union-attr]
        store.proxy.paths.clear()
        assert committed(elsewhere(folder)) == {"step": 11}
        listings = [path for path in store.proxy.paths if "list-type" in path]
        assert listings
        assert all("start-after" in path for path in listings)


def _entries(folder: Path) -> list[str]:
    mirror = mirror_of(folder)
    assert mirror is not None
    return [found.key for found in mirror.objects.listed(mirror.key(folder)) if "renewed" not in found.key]


def _wait_for(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
