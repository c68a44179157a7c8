"""Ray's workers take the same lines out as one process."""

from pathlib import Path

import pytest

from tests.broker_process import BrokerProcess
from tests.ingest_harness import Ingest, state
from tests.recovery.test_ingest_boilerplate import ON, articles

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated.*:DeprecationWarning")  # Ray Data, about its own defaults


def test_versions_made_on_ray_lose_the_same_lines(broker: BrokerProcess, tmp_path: Path) -> None:
    local = Ingest(tmp_path / "local", broker.bootstrap_servers, "lines-on-ray", ON)
    local.publish(articles(30))
    on_ray = Ingest(tmp_path / "ray", broker.bootstrap_servers, "lines-on-ray", {**ON, "ingest.runner": "ray"})
    assert len(local.once()) == len(on_ray.once()) == 2
    assert state(on_ray.root) == state(local.root)
