"""One cluster for all tests of this folder: a switch, a Kafka, an operator's machine, a head and two workers. The files run in their order."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.hosts import Site, why_no_hosts
from tests.cluster.kafka import running_kafka
from tests.cluster.leftovers import left_in_the_end
from tests.cluster.loop import Loop
from tests.cluster.network import joined


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A switch without hosts. At the end nothing of it and of its hosts is left on the machine."""
    if (reason := why_no_hosts()) is not None:
        pytest.skip(reason)
    with Site(tmp_path_factory.mktemp("site")) as site:
        yield site
    assert left_in_the_end(site.folder) == []


@pytest.fixture(scope="session")
def kafka(site: Site) -> Iterator[str]:
    """Address of a Kafka that all hosts reach."""
    with running_kafka(site, 5) as address:
        yield address


@pytest.fixture(scope="session")
def cluster(site: Site, kafka: str) -> Iterator[Cluster]:
    """Hosts on which nothing runs yet; this thread is in the operator's network."""
    operator = site.add("operator", 2, visible=[Path(sys.prefix)], sees_repository=True)
    head = site.add("head", 11)
    workers = [site.add(f"worker-{number}", 11 + number) for number in (1, 2)]
    cluster = Cluster(site, operator, head, workers)
    with joined(operator):
        try:
            yield cluster
        finally:
            cluster.close_all()


@pytest.fixture(scope="session")
def loop(cluster: Cluster, kafka: str) -> Loop:
    """What runs on the cluster from its first job on."""
    return Loop(cluster, kafka)
