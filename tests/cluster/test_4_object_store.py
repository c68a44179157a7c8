"""A root on an object store that several hosts use, and hosts that are killed at random."""

import random
import time
from collections.abc import Iterator

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.held_out import HeldOut
from tests.cluster.hosts import Site
from tests.cluster.loop import Loop
from tests.cluster.store import ENVIRONMENT, running_store

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]


@pytest.fixture
def held_out(site: Site, cluster: Cluster, loop: Loop, monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldOut]:
    """A stream that the loop does not read. Its root is on a store."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with running_store(site):
        held_out = HeldOut(loop)
        yield held_out
        held_out.close()


def test_whatever_is_killed_the_dataset_on_the_store_is_that_of_an_uninterrupted_run_in_a_folder(held_out: HeldOut, cluster: Cluster) -> None:
    print(f"\nseed {(seed := time.time_ns())}")
    held_out.publish()
    reference = held_out.reference()
    held_out.kill_at_random(random.Random(seed))
    found = held_out.finish()
    print(f"{len(reference)} versions; tasks on {sorted(held_out.reading_hosts)}; killed: {held_out.kills}")
    assert found == reference
    assert len(held_out.reading_hosts) >= 2 and held_out.kills
    cluster.wait_nodes()
