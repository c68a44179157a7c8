"""Hosts that fail while the loop runs: nothing is lost or doubled, the work goes on, and somebody answers again."""

import time

import pytest

from schemas.rollout import Decision, Phase
from tests.cluster.asking import Asking, ask
from tests.cluster.cluster import Cluster, until
from tests.cluster.loop import SETTINGS, Loop

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]
LINK_DOWN_S = 60.0
FILE = "/root/cluster-onprem.yaml"


def all_nodes(cluster: Cluster, timeout_s: float = 400.0) -> None:
    names = {host.name for host in cluster.hosts}
    until(lambda: set(cluster.nodes().values()) == names or None, "all nodes", timeout_s)


def test_a_worker_killed_during_ingest_loses_and_doubles_no_document_and_comes_back_by_itself(cluster: Cluster, loop: Loop) -> None:
    before = len(loop.datasets())
    worker = cluster.workers[0]
    loop.produce()
    loop.wait_for(lambda: worker.name in cluster.running("ray::ReadKafka") or None, "ingest tasks on a worker", 200)
    cluster.site.kill(worker)
    assert len(loop.datasets()) == before, "it was killed before the version was committed"
    loop.wait_ingested(400)
    loop.check_documents()
    # A machine that comes back is taken in again without anybody's help.
    cluster.site.boot(worker)
    all_nodes(cluster)


def test_training_goes_on_after_the_link_of_a_host_was_down(cluster: Cluster, loop: Loop) -> None:
    worker = cluster.workers[1]
    loop.wait_for(lambda: len(loop.losses(3)) >= SETTINGS["training.checkpoint_every_steps"] or None, "some steps of model 3", 500)
    cluster.site.link_down(worker)
    steps_before = len(loop.losses(3))
    time.sleep(LINK_DOWN_S)
    cluster.site.link_up(worker)
    assert steps_before < SETTINGS["training.max_steps"], "the link went down while there was still something to do"
    loop.wait_model(3, 600)
    loop.check_losses()
    all_nodes(cluster)


def test_the_service_answers_again_after_the_host_of_the_champion_died_in_a_trial(cluster: Cluster, loop: Loop) -> None:
    with Asking() as asking:
        loop.wait_for(lambda: loop.rollouts()[-1].phase is not Phase.IDLE or None, "the trial of model 3", 300)
        loop.wait_for(lambda: asking.answers["champion"] >= 5 or None, "answers in the trial", 120)
        (name,) = cluster.hosts_of("model-2:engine")
        worker = next(host for host in cluster.workers if host.name == name)
        killed_at_s = time.monotonic()
        cluster.site.kill(worker)
        loop.wait_for(lambda: asking.num_answers_since(killed_at_s + 1.0) >= 20 or None, "answers after the death of a host", 300)
        silence_s = asking.longest_silence_s(killed_at_s)
        cluster.site.boot(worker)
        loop.wait_for(lambda: loop.rollouts()[-1].phase is Phase.IDLE or None, "the end of the trial", 400)
    print(f"\nno answer for {silence_s:.1f} s after the champion's host died; answers: {dict(asking.answers)}; trial: {loop.decisions()[-1].value}")
    assert loop.decisions()[-1] in (Decision.PROMOTE, Decision.ABORT)
    all_nodes(cluster)


def test_after_the_head_was_killed_the_same_commands_take_everything_up_again(cluster: Cluster, loop: Loop) -> None:
    champion, versions = loop.rollouts()[-1].champion, len(loop.datasets())
    killed_at_s = time.monotonic()
    cluster.site.kill(cluster.head)
    cluster.close_all()
    cluster.site.boot(cluster.head)
    cluster.type(f"ray up {FILE} -y")
    cluster.open(f"ray dashboard {FILE}")
    until(lambda: cluster.nodes() or None, "the dashboard", 120)
    loop.submit()
    cluster.open(f"ray attach {FILE} -p 8000")
    loop.wait_for(lambda: ask("anybody"), "an answer of the cluster that was started again", 400)
    print(f"\nno answer for {time.monotonic() - killed_at_s:.0f} s after the head died")
    assert loop.rollouts()[-1].champion == champion
    all_nodes(cluster)
    loop.produce()
    loop.wait_ingested(400)
    assert len(loop.datasets()) > versions
    loop.check_nothing_lost_or_doubled()
