"""``ray up``: from machines with nothing but sshd, Python and a shared folder to a cluster that runs ``headrace up``."""

import pytest

from tests.cluster.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


def test_ray_up_makes_a_cluster_of_the_machines_in_the_file(cluster: Cluster) -> None:
    cluster.type("ray get-auth-token --generate")
    cluster.up()
    cluster.wait_nodes()
