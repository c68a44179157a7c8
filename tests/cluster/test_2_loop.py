"""The whole loop on several hosts: documents from outside, ingest and training on both workers, engines on workers, a second model through its trial."""

import itertools
import time
from collections.abc import Iterator

import pytest

from schemas.rollout import Decision, Phase, RolloutState
from tests.cluster.asking import Asking, ask
from tests.cluster.cluster import Cluster, until
from tests.cluster.loop import Loop, events_of

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]
WORKERS = {"worker-1", "worker-2"}


def test_ingest_tasks_run_on_both_workers(cluster: Cluster, loop: Loop) -> None:
    loop.produce()
    loop.submit()
    loop.wait_ingested(400)
    assert set(cluster.task_hosts("KafkaDatasource")) >= WORKERS or set(cluster.task_hosts("ReadKafka")) >= WORKERS, cluster.task_hosts("")


def test_training_runs_on_two_hosts_at_once(cluster: Cluster, loop: Loop) -> None:
    seen = until(lambda: hosts if len(hosts := cluster.hosts_of("RayTrainWorker")) == 2 else None, "two training workers", 400)
    assert set(seen) == WORKERS
    manifest = loop.wait_model(1, 400)
    assert manifest.training.last_loss < manifest.training.first_loss


def test_the_first_model_answers_through_the_tunnel_from_an_engine_on_a_worker(cluster: Cluster, loop: Loop) -> None:
    cluster.open("ray attach /root/cluster-onprem.yaml -p 8000")
    until(lambda: ask("anybody"), "an answer", 300)
    (engine,) = cluster.hosts_of("model-1:engine")
    assert engine in WORKERS
    print(f"\nengine on {engine}, gateway on {cluster.hosts_of(':gateway')}")
