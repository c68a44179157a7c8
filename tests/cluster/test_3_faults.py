"""Hosts that fail or join while the loop runs: nothing is lost or doubled, the work goes on, and the service answers again.

Each test leaves a model on trial, or none, for the next one.
"""

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.faults import (
    HEAD_KILLED,
    LINK_DOWN,
    WORKER_KILLED,
    strike_while_a_model_trains_and_the_champion_answers,
    strike_while_documents_are_ingested_and_a_model_is_on_trial,
)
from tests.cluster.hosts import Site
from tests.cluster.loop import SHORT, Loop

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]


def test_training_and_service_survive_the_death_of_a_worker(loop: Loop) -> None:
    strike_while_a_model_trains_and_the_champion_answers(loop, WORKER_KILLED)


def test_ingest_and_a_trial_survive_the_death_of_a_worker(loop: Loop) -> None:
    strike_while_documents_are_ingested_and_a_model_is_on_trial(loop, WORKER_KILLED)


def test_training_and_service_survive_a_link_that_is_down_for_a_minute(loop: Loop) -> None:
    strike_while_a_model_trains_and_the_champion_answers(loop, LINK_DOWN)


def test_ingest_and_a_trial_survive_a_link_that_is_down_for_a_minute(loop: Loop) -> None:
    strike_while_documents_are_ingested_and_a_model_is_on_trial(loop, LINK_DOWN)


def test_after_the_head_died_in_training_the_same_commands_go_on(loop: Loop) -> None:
    champion = loop.rollouts()[-1].champion
    strike_while_a_model_trains_and_the_champion_answers(loop, HEAD_KILLED)
    assert loop.rollouts()[-1].champion == champion


def test_a_machine_that_joins_while_the_loop_runs_gets_work(cluster: Cluster, site: Site, loop: Loop) -> None:
    """It joins while a model is on trial and the champion serves."""
    loop.wait_trial()
    new = site.add("worker-3", 14)
    cluster.add(new)
    cluster.wait_nodes()
    before = cluster.task_hosts("ReadKafka")
    loop.produce(SHORT)
    loop.wait_for(lambda: new.name in cluster.running("ray::ReadKafka") or None, "ingest tasks on the new machine", 300)
    loop.wait_ingested(300)
    assert cluster.task_hosts("ReadKafka")[new.name] > before[new.name] == 0
    loop.check_nothing_lost_or_doubled()


def test_after_the_head_died_in_ingest_and_in_a_trial_the_same_commands_go_on(loop: Loop) -> None:
    strike_while_documents_are_ingested_and_a_model_is_on_trial(loop, HEAD_KILLED)
