"""The whole loop on several hosts: documents from outside, ingest and training on both workers, engines on workers, a model through its trial."""

import pytest

from schemas.rollout import Decision
from tests.cluster.asking import Asking, ask
from tests.cluster.cluster import Cluster
from tests.cluster.loop import Loop

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]
WORKERS = {"worker-1", "worker-2"}


def test_ingest_tasks_run_on_both_workers_at_once(cluster: Cluster, loop: Loop) -> None:
    loop.produce()
    loop.submit()
    loop.wait_for(lambda: cluster.running("ray::ReadKafka") == WORKERS or None, "ingest tasks on both workers", 400)
    assert loop.wait_ingested(400).num_tokens > 0
    assert set(cluster.task_hosts("ReadKafka")) >= WORKERS, "Ray's own record of the tasks says the same"


def test_training_runs_on_two_hosts_at_once(cluster: Cluster, loop: Loop) -> None:
    loop.wait_for(lambda: len(loop.losses(1)) > 0 or None, "the first step of training", 400)
    assert sorted(cluster.hosts_of("RayTrainWorker")) == sorted(WORKERS)
    manifest = loop.wait_model(1, 400)
    assert manifest.training.last_loss < manifest.training.first_loss


def test_the_model_answers_through_the_tunnel_from_an_engine_on_a_worker(cluster: Cluster, loop: Loop) -> None:
    cluster.open_api()
    loop.wait_for(lambda: ask("anybody"), "an answer", 300)
    (engine,), (gateway,) = cluster.hosts_of("model-1:engine"), cluster.hosts_of(":gateway")
    assert engine in WORKERS
    print(f"\nmodel 1 on {engine}, gateway on {gateway}")


def test_a_second_model_passes_shadow_and_canary_and_is_promoted_while_clients_ask(cluster: Cluster, loop: Loop) -> None:
    loop.produce()
    loop.wait_ingested(300)
    with Asking() as asking:
        loop.wait_model(2, 500)
        loop.wait_for(lambda: loop.decisions()[-1] is Decision.PROMOTE or None, "the promotion of model 2", 400)
        assert loop.decisions() == [Decision.BOOTSTRAP, Decision.START, Decision.ADVANCE, Decision.PROMOTE]
        loop.wait_for(lambda: None if cluster.hosts_of("model-1:engine") else True, "the end of model 1", 120)
        assert len(cluster.hosts_of("model-2:engine")) == 1
    print(f"\nanswers: {dict(asking.answers)}")
    assert asking.answers["challenger"] >= 20 and asking.answers["error"] == 0
    loop.check_nothing_lost_or_doubled()
