"""``ray up``: from machines with nothing but sshd, Python and a shared folder to a cluster that runs ``headrace up``."""

import pytest

from tests.cluster.cluster import Cluster, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


def test_ray_up_makes_a_cluster_of_the_machines_in_the_file(cluster: Cluster) -> None:
    cluster.type("ray get-auth-token --generate")
    cluster.type("ray up /root/cluster-onprem.yaml -y")
    cluster.open("ray dashboard /root/cluster-onprem.yaml")
    names = {host.name for host in cluster.hosts}
    until(lambda: True if set(cluster.nodes().values()) == names else None, "all nodes", 300)
