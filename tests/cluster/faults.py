"""What may happen to a host, and what must hold whatever the loop is doing then.

Two states of the loop have all its phases: a model is trained while the champion answers, and documents are ingested while a model is on trial.
A trial needs requests, so it stays open until somebody asks. Each fault comes in each of the two states.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.cluster.asking import Asking, ask
from tests.cluster.cluster import Cluster
from tests.cluster.hosts import Host
from tests.cluster.loop import SETTINGS, SHORT, Loop
from tests.cluster.waiting import until

LINK_DOWN_S = 60.0
NUM_ANSWERS = 20
"""So many answers show that the service is there again."""
EVERY_STEPS, MAX_STEPS = int(SETTINGS["training.checkpoint_every_steps"]), int(SETTINGS["training.max_steps"])


@dataclass(frozen=True)
class Fault:
    """``strike`` hits a host; ``mend`` does what a person or time does about it."""

    name: str
    strike: Callable[[Cluster, Host], None]
    mend: Callable[[Loop, Host], None]


def _boot(loop: Loop, worker: Host) -> None:
    """Switch it on when Ray has noticed that it is gone; Ray then starts it again by itself."""
    until(lambda: worker.name not in loop.cluster.nodes().values() or None, "Ray to notice that a host is gone", 180)
    loop.cluster.site.boot(worker)


def _plug_in(loop: Loop, worker: Host) -> None:
    time.sleep(LINK_DOWN_S)
    loop.cluster.site.link_up(worker)


def _start_again(loop: Loop, _: Host) -> None:
    """What the page says: the same commands."""
    cluster = loop.cluster
    cluster.site.boot(cluster.head)
    cluster.up()
    until(lambda: cluster.nodes() or None, "the dashboard", 120)
    loop.submit()
    cluster.open_api()


WORKER_KILLED = Fault("a worker was killed", lambda cluster, worker: cluster.site.kill(worker), _boot)
LINK_DOWN = Fault(f"the link of a worker was down for {LINK_DOWN_S:g} s", lambda cluster, worker: cluster.site.link_down(worker), _plug_in)
HEAD_KILLED = Fault("the head was killed", lambda cluster, _: cluster.site.kill(cluster.head), _start_again)


def strike_while_a_model_trains_and_the_champion_answers(loop: Loop, fault: Fault) -> None:
    """The champion's host has a training worker too: there are two of each."""
    number = loop.num_models + 1
    assert not loop.is_on_trial
    loop.produce()
    loop.wait_ingested(400)
    host = loop.wait_champion()
    with Asking() as asking:
        loop.wait_for(lambda: asking.num_answers_since(0) or None, "an answer", 120)
        loop.wait_for(lambda: len(loop.losses(number)) >= 2 * EVERY_STEPS or None, f"some steps of model {number}", 500)
        struck_at_s = time.monotonic()
        fault.strike(loop.cluster, host)
        steps = loop.losses(number)
        assert len(steps) < MAX_STEPS, "there was still something to do"
        fault.mend(loop, host)
        _wait_answers(loop, asking, struck_at_s, f"{fault.name} while a model was trained")
    loop.wait_model(number, 600)
    _check_curve(loop, number, steps[0].duration_s, {record.step: record.loss for record in steps})
    loop.cluster.wait_nodes()
    loop.check_nothing_lost_or_doubled()


def _check_curve(loop: Loop, number: int, first_duration_s: float, losses: dict[int, float]) -> None:
    """The run went on from a checkpoint, and steps that were done again gave the same."""
    curve = loop.losses(number)
    assert curve[0].duration_s == first_duration_s, "it did not begin anew"
    assert losses.items() <= {record.step: record.loss for record in curve}.items()
    assert loop.num_models == number


def strike_while_documents_are_ingested_and_a_model_is_on_trial(loop: Loop, fault: Fault) -> None:
    """A worker that is hit has the champion's engine and tasks of ingest."""
    loop.wait_trial()
    num_versions, host = len(loop.datasets()), loop.wait_champion()
    hit = {worker.name for worker in loop.cluster.workers} if fault is HEAD_KILLED else {host.name}
    loop.produce(SHORT)
    loop.wait_for(lambda: loop.cluster.running("ray::ReadKafka") & hit or None, f"ingest tasks on {sorted(hit)}", 300)
    with Asking() as asking:
        struck_at_s = time.monotonic()
        fault.strike(loop.cluster, host)
        assert len(loop.datasets()) == num_versions, "the version was not committed yet"
        assert loop.is_on_trial
        fault.mend(loop, host)
        loop.wait_ingested(400)
        _wait_answers(loop, asking, struck_at_s, f"{fault.name} while a model was on trial")
        loop.wait_for(lambda: not loop.is_on_trial or None, "the end of the trial", 400)
    print(f"the trial ended: {loop.decisions()[-1].value}")
    loop.cluster.wait_nodes()
    loop.check_nothing_lost_or_doubled()


def _wait_answers(loop: Loop, asking: Asking, struck_at_s: float, what: str) -> None:
    """Until the service answers as before; prints how long it did not."""
    loop.wait_for(lambda: ask("anybody"), "an answer", 400)
    loop.wait_for(lambda: asking.num_answers_since(struck_at_s + 1.0) >= NUM_ANSWERS or None, "answers after the fault", 400)
    print(f"\n{what}: no answer for {asking.longest_silence_s(struck_at_s):.1f} s; answers: {dict(asking.answers)}")
