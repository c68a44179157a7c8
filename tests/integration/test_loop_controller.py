"""The loop on a real root with a real broker: models are put on trial, measured by real child processes, promoted or withdrawn."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipelines.kafka.events import EventProducer, read_events
from pipelines.kafka.topics import ensure_topics, topic_names
from pipelines.views.store import publish_view
from ray_apps.loop.controller import LoopController
from ray_apps.loop.disk import Disk
from ray_apps.loop.plan import TrainingOrder, plan
from ray_apps.rollout import policy
from ray_apps.rollout.controller import by_hand
from ray_apps.rollout.log import RolloutLog
from schemas.events import AlertFired, InferenceCompleted, RolloutChanged, new_event
from schemas.manifest import TokenizerRef
from schemas.rollout import Decision, Phase, RolloutState
from schemas.settings import Settings
from schemas.settings_sources import load_settings
from schemas.view import View as ChosenDocuments
from tests.broker_process import BrokerProcess
from tests.factories import make_dataset
from tests.model_factory import make_model, make_tokenizer

DEADLINE_S = 90.0


@pytest.fixture
def settings(broker: BrokerProcess, topic_prefix: str, tmp_path: Path) -> Settings:
    values: dict[str, object] = {"kafka.bootstrap_servers": broker.bootstrap_servers, "kafka.topic_prefix": topic_prefix, "root": str(tmp_path)}
    values |= {"rollout.min_shadow_requests": 2, "rollout.min_canary_requests": 2, "rollout.max_loss_increase": 100.0, "training.evaluate_rows": 4}
    result = load_settings("", {}, values | {"loop.min_new_tokens": 10**9, "loop.restart_backoff_s": 0.01})
    ensure_topics(result)
    return result


@pytest.fixture
def events(settings: Settings) -> Iterator[EventProducer]:
    with EventProducer(settings) as producer:
        yield producer


def spoken_tokenizer(root: Path) -> TokenizerRef:
    """The tokenizer that ``make_model`` gives its models, written where a dataset has its own."""
    reference = make_tokenizer(root / "tokenizer" / "new")
    shutil.move(root / "tokenizer" / "new", root / reference.path)
    return reference


class Turning:
    """A loop that is turned by hand, with all that it said."""

    def __init__(self, settings: Settings, events: EventProducer, *, has_ray: bool = False) -> None:
        self.told: list[str] = []
        self.controller = LoopController(settings, events, self.told.append, lambda: has_ray)
        self.log = RolloutLog(Path(settings.root))

    def until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, f"never: {what}; told: {self.told}"
            self.controller.step(0.1)

    def state(self) -> RolloutState:
        state = self.log.latest()
        assert state is not None
        return state


def answer(events: EventProducer, state: RolloutState, version: int) -> None:
    """Publish an answer of a model under a state."""
    data = InferenceCompleted(
        request_id=f"r{time.monotonic_ns()}",
        model_version=version,
        role="champion" if version == state.champion else "challenger",
        shadow=version == state.challenger and state.phase is Phase.SHADOW,
        rollout_number=state.number,
        status="ok",
        prompt_tokens=3,
        completion_tokens=8,
        latency_s=0.1,
        engine_s=0.1,
        user_hash=f"{time.monotonic_ns():016x}",
    )
    events.publish(new_event(data, id=data.request_id, source="/test", time=datetime.now(UTC)), topic="inference")


def test_a_new_model_is_measured_against_the_champion_and_takes_over_also_when_the_loop_is_restarted(
    settings: Settings, events: EventProducer
) -> None:
    root = Path(settings.root)
    tokenizer = spoken_tokenizer(root)
    make_dataset(root, tokenizer=tokenizer)
    make_model(root, version=1)
    first = Turning(settings, events)
    first.until(lambda: first.log.latest() is not None, "bootstrap")
    assert (first.state().champion, first.state().decision) == (1, Decision.BOOTSTRAP)

    make_dataset(root, tokenizer=tokenizer)
    make_model(root, version=2, seed=1)
    first.until(lambda: first.state().challenger == 2, "trial")
    shadow = first.state()
    make_model(root, version=3, seed=2)
    for _ in range(3):
        first.controller.step(0.1)
    assert first.state().number == shadow.number, "a third model waits while the second is on trial"
    first.controller.close()  # the evaluation is stopped with it, and begun again by the next loop

    second = Turning(settings, events)
    for version in (1, 2, 1, 2):
        answer(events, shadow, version)
    second.until(lambda: second.state().decision is Decision.ADVANCE, "canary")
    assert second.state().evidence["validation"]["status"] == "measured"
    assert sorted(path.name for path in (root / "evaluations").iterdir()) == ["00000001-on-00000002-4.json", "00000002-on-00000002-4.json"]
    for _ in range(2):
        answer(events, second.state(), 2)
    second.until(lambda: second.state().decision in (Decision.PROMOTE, Decision.START), "promotion")
    second.until(lambda: second.state().challenger == 3, "the third model's turn")
    assert second.state().champion == 2
    second.controller.close()
    assert events.flush(10.0)
    with read_events(settings, topic_names(settings).events) as reader:
        deadline = time.monotonic() + 20.0
        changes: list[int] = []
        while len(changes) < 5 and time.monotonic() < deadline:
            changes += [event.data.number for event in reader.poll(0.5) if isinstance(event.data, RolloutChanged)]
    assert sorted(changes) == [1, 2, 3, 4, 5]


@pytest.mark.slow
def test_a_champion_that_cannot_be_measured_ends_the_trial_and_stays(settings: Settings, events: EventProducer) -> None:
    root = Path(settings.root)
    make_model(root, version=1)
    make_model(root, version=2, seed=1)  # there is no dataset to measure either on
    loop = Turning(settings, events)
    loop.until(lambda: loop.log.latest() is not None, "bootstrap of the newest")
    assert loop.state().champion == 2
    make_model(root, version=3, seed=2)
    loop.until(lambda: loop.state().decision is Decision.ABORT, "abort")
    assert "could not be measured in 3 attempts" in loop.state().reason and loop.state().champion == 2
    assert sum("evaluation failed: exit code 1" in line for line in loop.told) == 3
    loop.controller.close()


def test_an_order_to_train_survives_and_is_dropped_when_its_model_is_there(tmp_path: Path) -> None:
    order = TrainingOrder(dataset_version=2, parent_model=1)
    Disk(tmp_path).give_order(order)
    assert Disk(tmp_path).view().order == order
    make_model(tmp_path, version=1)
    assert Disk(tmp_path).view().order == order
    make_model(tmp_path, version=2)
    assert Disk(tmp_path).view().order is None


def test_the_loop_trains_on_the_newest_version_of_the_view_that_is_asked_for_and_says_so_while_there_is_none(
    settings: Settings, events: EventProducer
) -> None:
    root = Path(settings.root)
    make_dataset(root)
    asked = settings.model_copy(update={"loop": settings.loop.model_copy(update={"view": "clean", "min_new_tokens": 1})})
    loop = Turning(asked, events)
    loop.controller.step(0.0)
    assert [line for line in loop.told if "there is no view 'clean'" in line and line.startswith("training waits: loop.view is 'clean'")]

    disk = Disk(root, asked.drift, asked.loop.view)
    assert plan(disk.view(), asked.loop) == []
    for version in (1, 2):
        publish_view(root, ChosenDocuments(name="clean", version=version, created_at=datetime.now(UTC)))
    assert plan(disk.view(), asked.loop) == [TrainingOrder(dataset_version=1, parent_model=None, view="clean@2")]
    assert plan(Disk(root, None, "clean@1").view(), asked.loop) == [TrainingOrder(dataset_version=1, parent_model=None, view="clean@1")]
    loop.controller.step(0.0)
    assert loop.told[-1] == "training is no longer held back"
    loop.controller.close()

    publish_view(root, ChosenDocuments(name="clean", version=3, created_at=datetime.now(UTC), dataset_version=1))
    assert "bound to dataset version 1" in (disk.view().held or "")


@pytest.mark.slow
def test_an_order_that_fails_again_and_again_is_given_up_with_its_reason_until_there_is_something_new(
    settings: Settings, events: EventProducer
) -> None:
    root = Path(settings.root)
    make_dataset(root, num_rows=2)  # fewer rows than one batch: training refuses at once
    settings = settings.model_copy(update={"loop": settings.loop.model_copy(update={"min_new_tokens": 1})})
    loop = Turning(settings, events, has_ray=True)
    loop.until(lambda: any("was given up after 3 attempts" in line for line in loop.told), "giving up")
    assert sum("training failed" in line for line in loop.told) == 3
    given_up = Disk(root).given_up()
    assert given_up is not None and "2 training rows, one step takes 16" in given_up.reason and "headrace train --dataset 1" in given_up.reason
    loop.controller.close()

    again = Turning(settings, events, has_ray=True)  # a restart changes nothing
    for _ in range(5):
        again.controller.step(0.0)
    assert not any("training on" in line for line in again.told)
    again.controller.close()
    other = Turning(settings.model_copy(update={"training": settings.training.model_copy(update={"seed": 5})}), events, has_ray=True)
    other.until(lambda: "training on dataset 1 from scratch" in other.told, "other settings are another run")
    other.controller.close()
    make_dataset(root, num_rows=2)
    newer = Turning(settings, events, has_ray=True)
    newer.until(lambda: any(line.startswith("training on dataset 2") for line in newer.told), "the newer order")
    newer.controller.close()


def test_an_order_that_the_settings_refuse_is_tried_once_and_again_when_the_loop_is_restarted(settings: Settings, events: EventProducer) -> None:
    root = Path(settings.root)
    make_dataset(root, num_rows=16)
    training = settings.training.model_copy(update={"num_workers": 3})  # which 16 rows cannot be shared by
    wrong = settings.model_copy(update={"loop": settings.loop.model_copy(update={"min_new_tokens": 1}), "training": training})
    loop = Turning(wrong, events, has_ray=True)
    loop.until(lambda: any("was refused" in line for line in loop.told), "refusal")
    for _ in range(3):
        loop.controller.step(0.0)
    assert loop.told.count("training on dataset 1 from scratch") == 1
    (told,) = [line for line in loop.told if "was refused" in line]
    assert "(16) cannot be shared evenly by training.num_workers (3)" in told and "restart `headrace up`" in told
    given_up = Disk(root).given_up()
    assert given_up is not None and given_up.reason == told
    loop.controller.close()

    restarted = Turning(wrong, events, has_ray=True)
    restarted.until(lambda: "training on dataset 1 from scratch" in restarted.told, "another try")
    restarted.controller.close()


def alerts(settings: Settings) -> list[AlertFired]:
    with read_events(settings, topic_names(settings).events) as reader:
        deadline = time.monotonic() + 20.0
        found: list[AlertFired] = []
        while not found and time.monotonic() < deadline:
            found += [event.data for event in reader.poll(0.5) if isinstance(event.data, AlertFired)]
    return found


def test_an_error_that_nobody_thought_of_stops_neither_the_loop_nor_what_runs_beside_it(settings: Settings, events: EventProducer) -> None:
    root, stop = Path(settings.root), threading.Event()
    make_model(root, version=1)
    log = root / "models" / "log" / "00000001.json"
    whole = log.rename(root / "whole.json")
    log.write_bytes(b"{}")
    quick = settings.model_copy(update={"loop": settings.loop.model_copy(update={"poll_interval_s": 0.01})})
    loop = Turning(quick, events)
    thread = threading.Thread(target=loop.controller.run, args=(stop,))
    thread.start()
    try:
        wait_until(lambda: bool(loop.told), "the error is told")
        whole.replace(log)  # at once: the loop reads it at any moment
        wait_until(lambda: loop.log.latest() is not None, "the loop goes on")
    finally:
        stop.set()
        thread.join(DEADLINE_S)
    assert "ManifestCorrupt" in loop.told[0] and "the loop goes on" in loop.told
    assert len([line for line in loop.told if "ManifestCorrupt" in line]) == 1, "once, and not in every round"
    assert events.flush(10.0)
    assert [(alert.name, alert.severity) for alert in alerts(settings)] == [("loop.failed", "critical")]


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.01)


def test_a_model_whose_files_are_not_those_that_were_registered_is_not_put_into_service(settings: Settings, events: EventProducer) -> None:
    root = Path(settings.root)
    make_model(root, version=1)
    loop = Turning(settings, events)
    loop.until(lambda: loop.log.latest() is not None, "bootstrap")
    make_model(root, version=2, seed=1)
    shutil.copy(root / "models" / "00000001" / "model.safetensors", root / "models" / "00000002" / "model.safetensors")
    loop.until(lambda: any(line.startswith("model 2 is not put into service") for line in loop.told), "the alert")
    loop.controller.step(0.0)
    assert loop.state().challenger is None and sum("is not put into service" in line for line in loop.told) == 1
    loop.controller.close()


def test_a_persons_word_holds_until_it_is_released(settings: Settings, events: EventProducer) -> None:
    root = Path(settings.root)
    make_model(root, version=1)
    loop = Turning(settings, events)
    loop.until(lambda: loop.log.latest() is not None, "bootstrap")
    loop.log.transition(
        lambda state: policy.set_shares(state, champion=1, challenger=None, share=None, settings=settings.rollout, author=by_hand(), salt="00000001")
    )
    make_model(root, version=2, seed=1)
    for _ in range(5):
        loop.controller.step(0.0)
    assert loop.state().challenger is None
    loop.log.transition(lambda state: policy.release(state, "go on", by_hand()))
    loop.until(lambda: loop.state().challenger == 2, "the trial")
    loop.controller.close()
