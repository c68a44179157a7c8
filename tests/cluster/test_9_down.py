"""``ray down`` ends what ``ray up`` started, and the hosts leave nothing behind."""

import pytest

from tests.cluster.cluster import FILE, Cluster
from tests.cluster.waiting import until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


def test_ray_down_ends_everything_on_every_node(cluster: Cluster) -> None:
    cluster.type(f"ray down {FILE} -y")

    def left() -> list[str]:
        return [f"{host.name}: {pid}" for host in cluster.hosts for pid in host.processes("raylet") + host.processes("gcs_server")]

    until(lambda: True if not left() else None, "the end of Ray on all nodes", 120)
