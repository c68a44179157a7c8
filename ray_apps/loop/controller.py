"""The loop itself: new tokens make a training run, a new model a trial, evidence a champion.

It looks at what is on disk (``plan.LoopFacts``), asks ``plan`` what to do, and does it; then it lets the rollout controller weigh the evidence.
Everything it decides is on disk before it acts on it, so a SIGKILL at any moment costs only the time since. One loop runs per root.
An error in a round is reported, and the round is tried again after a pause that grows. The loop never ends by itself and ends nothing else.
"""

import contextlib
import logging
import queue
import secrets
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pipelines.kafka.events import EventProducer
from pipelines.runtime.backoff import pause_s
from pipelines.runtime.child import tail
from pipelines.storage.leases import Lease
from ray_apps.loop.disk import Disk
from ray_apps.loop.evaluations import Evaluations
from ray_apps.loop.jobs import MAX_EVALUATION_ATTEMPTS, Job, parse_evaluation, train_arguments
from ray_apps.loop.plan import Bootstrap, LoopFacts, StartTrial, TrainingOrder, plan
from ray_apps.rollout import policy
from ray_apps.rollout.controller import RolloutController, announce, by_the_loop, new_salt
from schemas.counting import counted
from schemas.errors import LASTING_FAILURES, WRONG_USAGE, HeadraceError, RolloutError
from schemas.events import AlertFired, new_event
from schemas.rollout import Phase, RolloutState
from schemas.settings import MODEL_SECTIONS, Settings, fingerprint

_log = logging.getLogger(__name__)
SOURCE = "/headrace/loop"
MAX_ATTEMPTS = 3
"""Failures of a training run after which its order is given up, until something that it depends on has changed. One failure is enough if it would
repeat (``LASTING_FAILURES``).
"""
MAX_PAUSE_S = 30.0
"""Longest pause after a round that failed."""


class LoopController:
    """``tell`` is called with one line about everything that happens; ``can_compute`` says whether Ray is there to train on.

    ``lease``: of `up`, where the root is on an object store.
    """

    def __init__(
        self,
        settings: Settings,
        events: EventProducer,
        tell: Callable[[str], None],
        can_compute: Callable[[], bool],
        lease: Lease | None = None,
    ) -> None:
        self._settings = settings
        self._events = events
        self._tell = tell
        self._can_compute = can_compute
        self._disk = Disk(Path(settings.root), settings.drift, settings.loop.view, fingerprint(settings, MODEL_SECTIONS), lease)
        self._evaluations = Evaluations(Path(settings.root), settings.training.evaluate_rows)
        self._rollout = RolloutController(settings, self._disk.rollouts, self._evaluations.validation)
        self._training = Job(settings, "train")
        self._evaluation = Job(settings, "evaluate")
        self._asked: tuple[int, int] | None = None
        self._ordered: TrainingOrder | None = None
        """The order that the training job carries out."""
        self._damaged: frozenset[int] = frozenset()
        """Models that are not put on trial, because their files are not those that were registered."""
        self._troubles = 0
        """Rounds in a row that failed."""
        self._trouble = ""
        self.compute_lost = threading.Event()
        """Set it when Ray went away: what runs on it would wait for ever. The order to train stands and is carried out again."""
        self.alarms: queue.SimpleQueue[str] = queue.SimpleQueue()
        """Texts of ``service.down`` alerts; any thread may add one, the next round sends it."""
        self._seen = LoopFacts()
        self._disk.forget_refusal()

    def run(self, stop: threading.Event) -> None:
        """Go round until ``stop`` is set; then stop what runs."""
        try:
            while not stop.is_set():
                next_round = time.monotonic() + self._round()
                stop.wait(max(0.0, next_round - time.monotonic()))  # nothing to wait for inside: no trial yet, no broker, or answers at once
        finally:
            self.close()

    def _round(self) -> float:
        """One step, whatever it raises; returns the time from its start to the next one's."""
        interval_s = self._settings.loop.poll_interval_s
        try:
            self.step(interval_s)
        except Exception as error:  # noqa: BLE001  it must not take serving with it: told, and tried again
            self._troubles += 1
            self._failed(error)
            return pause_s(2 * interval_s, self._troubles, MAX_PAUSE_S)
        if self._troubles:
            self._troubles, self._trouble = 0, ""
            self._tell("the loop goes on")
        return interval_s

    def _failed(self, error: Exception) -> None:
        """Tell an error once, also where it comes back in every round."""
        self._rollout.close()
        trouble = f"the loop stands still and tries again: {type(error).__name__}: {error}"
        if trouble != self._trouble:
            self._trouble = trouble
            _log.error("a round of the loop failed", exc_info=error)
            self._alert("loop.failed", "critical", trouble)

    def _alert(self, name: str, severity: Literal["warning", "critical"], summary: str) -> None:
        """Tell the person, and everybody who reads the events."""
        self._tell(summary)
        data = AlertFired(name=name, severity=severity, summary=summary)
        self._events.publish(new_event(data, id=f"{name}-{secrets.token_hex(8)}", source=SOURCE, time=datetime.now(UTC)), topic="events", key=name)

    def step(self, timeout_s: float) -> None:
        """One round; takes ``timeout_s`` at most where there is nothing to do, and no time at all while there is no traffic to wait for."""
        while not self.alarms.empty():
            self._alert("service.down", "critical", self.alarms.get())
        if self.compute_lost.is_set():
            self.compute_lost.clear()
            self._training.stop()
        self._collect_training()
        self._collect_evaluation()
        view = self._disk.view()
        self._report(view)
        for todo in plan(view, self._settings.loop):
            if isinstance(todo, TrainingOrder):
                self._train(todo, is_new=view.order is None)
            else:
                self._change_rollout(todo)
        if view.state is not None and view.state.phase is not Phase.IDLE:
            self._evaluate(view.state)
        state = self._rollout.poll(timeout_s)
        if state is not None:
            self._changed(state)

    def close(self) -> None:
        """Stop the jobs and the connection to the broker."""
        self._training.stop()
        self._evaluation.stop()
        self._rollout.close()

    def _train(self, order: TrainingOrder, *, is_new: bool) -> None:
        if self._training.is_running or not self._can_compute():
            return
        if is_new:
            self._disk.give_order(order)
        if order != self._ordered:
            self._ordered = order
            self._training.forget_failures()
        if self._training.start("train", *train_arguments(order)):
            origin = f"from model {order.parent_model}" if order.parent_model else "from scratch"
            self._tell(f"training on {f'view {order.view} of ' if order.view else ''}dataset {order.dataset_version} {origin}")

    def _collect_training(self) -> None:
        ended = self._training.collect()
        if ended is None or ended[0] == 0:
            return
        self._tell(f"training failed: {self._training.failure(ended[0])}")
        if not self._can_compute() and ended[0] not in LASTING_FAILURES:
            self._training.failures -= 1  # Ray went away under it: that says nothing about the order
        if self._training.has_failed(MAX_ATTEMPTS) and self._ordered is not None:
            self._give_up(self._ordered, is_refusal=ended[0] == WRONG_USAGE)

    def _give_up(self, order: TrainingOrder, *, is_refusal: bool) -> None:
        said, attempts = tail(self._training.log, 1), counted(self._training.failures, "attempt")
        ended = f"was refused ({said})" if is_refusal else f"was given up after {attempts} ({said})"
        change = "for you to correct this and restart `headrace up`" if is_refusal else "for other [training] or [model] settings"
        tokens, words = f"{self._settings.loop.min_new_tokens:,} new tokens", " ".join(train_arguments(order))
        reason = f"training on dataset {order.dataset_version} {ended}; it waits {change}, for {tokens}, or for `headrace train {words}` by hand"
        self._disk.give_up(order, reason, datetime.now(UTC), is_refusal=is_refusal)
        self._ordered = None
        self._training.forget_failures()
        self._alert("training.given_up", "critical", reason)

    def _change_rollout(self, todo: Bootstrap | StartTrial) -> None:
        if not self._is_whole(todo.model_version):
            return
        evidence = self._rollout.evidence()

        def change(state: RolloutState | None) -> RolloutState:
            if isinstance(todo, Bootstrap):
                return policy.bootstrap(state, todo.model_version, by_the_loop(), new_salt())
            reason = f"model {todo.model_version} is new and no other model is on trial"
            return policy.start(
                state, todo.model_version, self._settings.rollout, reason=reason, evidence=evidence, author=by_the_loop(), salt=new_salt()
            )

        with contextlib.suppress(RolloutError):  # a person was faster: the next round plans anew
            state = self._disk.rollouts.transition(change)
            if state is not None:
                self._changed(state)

    def _is_whole(self, version: int) -> bool:
        """Whether a model's files are those that were registered; costs one reading of them. What is not whole is told once, and left alone."""
        if version in self._damaged:
            return False
        try:
            self._disk.registry.verified_folder(version)
        except HeadraceError as error:
            self._damaged |= {version}
            self._alert("model.damaged", "critical", f"model {version} is not put into service: {error}")
            return False
        return True

    def _evaluate(self, state: RolloutState) -> None:
        wanted = self._evaluations.wanted(state)
        if wanted is None or self._evaluation.is_running:
            return
        if self._evaluation.has_failed(MAX_EVALUATION_ATTEMPTS):
            attempts = counted(self._evaluation.failures, "attempt")
            said = tail(self._evaluation.log, 1)
            self._abort(state, f"the loss of model {wanted[0]} on dataset {wanted[1]} could not be measured in {attempts} ({said})")
            return
        model_version, dataset_version = wanted
        if self._evaluation.start("models", "evaluate", str(model_version), "--dataset", str(dataset_version)):
            self._asked = wanted
            self._tell(f"evaluating model {model_version} on the validation rows of dataset {dataset_version}")

    def _collect_evaluation(self) -> None:
        ended = self._evaluation.collect()
        if ended is None or self._asked is None:
            return
        code, output = ended
        evaluation = parse_evaluation(output) if code == 0 else None
        if evaluation is None:
            self._tell(f"evaluation failed: {self._evaluation.failure(code)}")
            return
        self._evaluations.add(self._asked[0], evaluation)
        self._tell(f"model {self._asked[0]} has loss {evaluation.loss:.4f} on the validation rows of dataset {evaluation.dataset_version}")

    def _abort(self, seen: RolloutState, reason: str) -> None:
        def change(state: RolloutState | None) -> RolloutState | None:
            return policy.abort(state, reason, {}, by_the_loop()) if state is not None and state.number == seen.number else None

        state = self._disk.rollouts.transition(change)
        self._evaluation.forget_failures()
        if state is not None:
            self._changed(state)

    def _changed(self, state: RolloutState) -> None:
        announce(state, self._events, Path(self._settings.root))
        self._tell(f"rollout {state.number}, {state.decision.value}: {state.reason}")

    def _report(self, view: LoopFacts) -> None:
        """Say what is new on disk since the last round."""
        seen, self._seen = self._seen, view
        if view.dataset_version > seen.dataset_version and (dataset := self._disk.dataset()):
            self._tell(f"dataset {dataset.version}: {counted(dataset.num_records, 'record')}, {counted(dataset.num_tokens, 'new token')}")
        if view.held != seen.held:
            self._tell(f"training waits: {view.held}" if view.held else "training is no longer held back")
        if view.newest_model > seen.newest_model:
            manifest = self._disk.model(view.newest_model)
            loss = f"validation loss {manifest.evaluation.loss:.4f}" if manifest.evaluation else "not evaluated"
            self._tell(f"model {manifest.version}: trained on dataset {manifest.dataset.version}, {loss}")
