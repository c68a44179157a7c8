"""A trial judged from real events on a real broker, and by hand at the command line."""

import argparse
import json
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ops.cli import rollout as rollout_command
from ops.cli.main import common_flags, settings_from
from pipelines.kafka.events import EventProducer, read_events
from pipelines.kafka.topics import ensure_topics, topic_names
from ray_apps.rollout import policy
from ray_apps.rollout.controller import RolloutController, announce, by_hand, by_the_loop, read_tally, start_positions
from ray_apps.rollout.evidence import LossComparison
from ray_apps.rollout.log import RolloutLog
from ray_apps.serving.router import route
from schemas.errors import CommitConflict, ManifestCorrupt, RolloutError
from schemas.events import InferenceCompleted, RolloutChanged, new_event
from schemas.rollout import Decision, Phase, RolloutState
from schemas.settings import Settings
from schemas.settings_sources import load_settings
from tests.broker_process import BrokerProcess
from tests.model_factory import make_model

DEADLINE_S = 20.0
BETTER = LossComparison(status="measured", dataset_version=2, champion_loss=3.0, challenger_loss=2.9)


@pytest.fixture
def settings(broker: BrokerProcess, topic_prefix: str, tmp_path: Path) -> Settings:
    values = {"kafka.bootstrap_servers": broker.bootstrap_servers, "kafka.topic_prefix": topic_prefix, "root": str(tmp_path)}
    result = load_settings("", {}, values | {"rollout.min_shadow_requests": 3, "rollout.min_canary_requests": 3})
    ensure_topics(result)
    return result


@pytest.fixture
def events(settings: Settings) -> Iterator[EventProducer]:
    with EventProducer(settings) as producer:
        yield producer


def answer(events: EventProducer, number: int, model: int, *, shadow: bool = False, status: str = "ok", age: timedelta = timedelta()) -> None:
    """Publish one inference.completed event."""
    data = InferenceCompleted.model_validate(
        {
            "request_id": f"r{time.monotonic_ns()}",
            "model_version": model,
            "role": "champion" if model == 1 else "challenger",
            "shadow": shadow,
            "rollout_number": number,
            "status": status,
            "prompt_tokens": 4,
            "completion_tokens": 8,
            "latency_s": 0.2,
            "engine_s": 0.2,
            "user_hash": f"{time.monotonic_ns():016x}",
        }
    )
    events.publish(new_event(data, id=data.request_id, source="/test", time=datetime.now(UTC) - age), topic="inference", key=data.request_id)


def begin(settings: Settings, controller: RolloutController) -> RolloutState:
    log = RolloutLog(Path(settings.root))
    log.transition(lambda state: policy.bootstrap(state, 1, by_the_loop(), "00000000"))
    evidence = controller.evidence()
    state = log.transition(
        lambda state: policy.start(state, 2, settings.rollout, reason="new", evidence=evidence, author=by_the_loop(), salt="11111111")
    )
    assert state is not None and start_positions(state) is not None
    return state


def poll_until_changed(controller: RolloutController) -> RolloutState:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        if (state := controller.poll(0.2)) is not None:
            return state
    raise AssertionError("the rollout did not move")


def controller_for(settings: Settings, validation: LossComparison = BETTER) -> RolloutController:
    return RolloutController(settings, RolloutLog(Path(settings.root)), lambda _: validation)


def test_events_carry_a_challenger_from_shadow_to_champion_across_restarts_of_the_controller(settings: Settings, events: EventProducer) -> None:
    first = controller_for(settings)
    shadow = begin(settings, first)
    for _ in range(3):
        answer(events, shadow.number, 1)
    for _ in range(2):
        answer(events, shadow.number, 2, shadow=True)
    for _ in range(9):  # none of these is about this trial: an earlier state, another model, a visible answer, another life of the topic
        answer(events, shadow.number - 1, 2, shadow=True)
        answer(events, shadow.number, 7, shadow=True)
        answer(events, shadow.number, 2)
        answer(events, shadow.number, 2, shadow=True, age=timedelta(hours=1))
    assert events.flush(DEADLINE_S)
    for _ in range(5):
        assert first.poll(0.2) is None
    first.close()
    second = controller_for(settings)
    answer(events, shadow.number, 2, shadow=True)
    canary = poll_until_changed(second)
    assert (canary.decision, canary.phase, canary.evidence["challenger"]["answers"]) == (Decision.ADVANCE, Phase.CANARY, 3)
    second.close()
    third = controller_for(settings)
    for _ in range(3):
        answer(events, canary.number, 2)
    promoted = poll_until_changed(third)
    assert (promoted.decision, promoted.champion, promoted.challenger) == (Decision.PROMOTE, 2, None)
    third.close()
    assert [state.number for state in RolloutLog(Path(settings.root)).after(0)] == [1, 2, 3, 4]


def test_a_challenger_that_fails_is_withdrawn(settings: Settings, events: EventProducer) -> None:
    controller = controller_for(settings)
    state = begin(settings, controller)
    for _ in range(3):
        answer(events, state.number, 2, shadow=True, status="error")
    after = poll_until_changed(controller)
    assert (after.decision, after.champion, after.phase) == (Decision.ABORT, 1, Phase.IDLE)
    controller.close()


def test_a_person_who_was_faster_is_not_overruled(settings: Settings, events: EventProducer) -> None:
    controller = controller_for(settings)
    state = begin(settings, controller)
    for _ in range(3):
        answer(events, state.number, 2, shadow=True)
    assert events.flush(DEADLINE_S)
    log = RolloutLog(Path(settings.root))
    log.transition(lambda state: policy.abort(state, "no", {}, by_hand()))
    for _ in range(5):
        assert controller.poll(0.2) is None
    latest = log.latest()
    assert latest is not None and latest.decision is Decision.ABORT and latest.reason == "no"
    controller.close()


def test_without_a_broker_the_trial_waits(settings: Settings) -> None:
    values = settings.kafka.model_copy(update={"bootstrap_servers": "127.0.0.1:1", "request_timeout_s": 0.5})
    controller = controller_for(settings.model_copy(update={"kafka": values}))
    log = RolloutLog(Path(settings.root))
    log.transition(lambda state: policy.bootstrap(state, 1, by_the_loop(), "00000000"))
    assert controller.evidence() == {}
    assert controller.poll(0.1) is None


def test_a_race_is_decided_anew_on_what_the_winner_wrote(tmp_path: Path, settings: Settings) -> None:
    log = RolloutLog(tmp_path / "race")
    log.transition(lambda state: policy.bootstrap(state, 1, by_the_loop(), "00000000"))
    seen: list[int] = []

    def start_once_somebody_else_did(state: RolloutState | None) -> RolloutState:
        assert state is not None
        seen.append(state.number)
        mine = policy.start(state, 3, settings.rollout, reason="r", evidence={}, author=by_hand(), salt="00000001")
        if len(seen) == 1:
            log.publish(policy.start(state, 2, settings.rollout, reason="r", evidence={}, author=by_hand(), salt="00000002"))
        return mine

    with pytest.raises(RolloutError, match="model 2 is on trial"):
        log.transition(start_once_somebody_else_did)
    assert seen == [1, 2]
    latest = log.latest()
    assert latest is not None
    with pytest.raises(CommitConflict):
        log.publish(latest)


def test_a_damaged_entry_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "rollout"
    folder.mkdir()
    (folder / "00000001.json").write_text("{}")
    with pytest.raises(ManifestCorrupt, match=r"00000001\.json"):
        RolloutLog(tmp_path).latest()


def command(settings: Settings, *words: str) -> int:
    """Run ``headrace rollout`` in this process."""
    parser = argparse.ArgumentParser()
    rollout_command.add_parser(parser.add_subparsers(), common_flags())
    where = [
        "--root",
        settings.root,
        "--bootstrap-servers",
        settings.kafka.bootstrap_servers,
        "--set",
        f"kafka.topic_prefix={settings.kafka.topic_prefix}",
    ]
    args = parser.parse_args(["rollout", *words, *where])
    return int(args.run(args, settings_from(args)))


def test_the_command_line_walks_a_model_through_a_trial_and_shows_what_is_missing(
    settings: Settings, events: EventProducer, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(settings.root)
    for version in (1, 2):
        make_model(root, version=version)
    assert command(settings, "show") == 0
    assert "nothing is served" in capsys.readouterr().err
    assert command(settings, "set", "--champion", "1", "--json") == 0
    assert json.loads(capsys.readouterr().out)["decision"] == "set"
    assert command(settings, "shadow", "latest") == 0
    assert "model 2 gets copies of 100%" in capsys.readouterr().out
    answer(events, 2, 2, shadow=True)
    assert events.flush(DEADLINE_S)
    assert command(settings, "show", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["state"]["phase"] == "shadow" and shown["evidence"]["challenger"]["answers"] == 1
    assert shown["missing"][0] == "19 more shadow answers of model 2 (1 of 20)" and "validation losses" in shown["missing"][-1]
    assert shown["decides"] == "the loop"
    assert command(settings, "show") == 0
    said = capsys.readouterr().out
    assert "challenger: 1 answer to 1 user, 0 errors, 0 refusals, 0 given up by the client, 2" in said and "the loop decides what comes next" in said
    weights = root / "models/00000002/model.safetensors"
    weights.rename(weights.with_name("aside"))
    with pytest.raises(RolloutError, match="model 2 cannot be served"):
        command(settings, "promote")
    weights.with_name("aside").rename(weights)
    assert command(settings, "promote") == 0
    assert "model 2 is champion" in capsys.readouterr().out
    assert command(settings, "set", "--champion", "1", "--challenger", "2", "--share", "0.5") == 0
    capsys.readouterr()
    assert command(settings, "show") == 0
    said = capsys.readouterr().out
    assert (
        "a person decides what comes next" in said and "waits for a person: `headrace rollout promote`" in said and "more canary answers" not in said
    )
    assert command(settings, "release") == 0
    assert "the loop decides what comes next" in capsys.readouterr().out
    assert command(settings, "hold", "--reason", "we look first") == 0
    assert "hold by a person: we look first" in capsys.readouterr().out
    assert command(settings, "abort", "--reason", "enough") == 0
    assert "abort by a person: enough" in capsys.readouterr().out
    with pytest.raises(RolloutError):
        command(settings, "promote")


def test_a_share_that_is_raised_step_by_step_keeps_everybodys_group(settings: Settings) -> None:
    root = Path(settings.root)
    for version in (1, 2):
        make_model(root, version=version)
    moved: set[int] = set()
    for share in ("0", "0.1", "0.2", "0.2", "0.6", "1"):
        assert command(settings, "set", "--champion", "1", "--challenger", "2", "--share", share) == 0
        state = RolloutLog(root).latest()
        assert state is not None
        challengers = {number for number in range(979) if (found := route(state, f"user-{number}")) and found.primary == 2}
        assert moved <= challengers
        moved = challengers
    assert len(moved) == 979


def break_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def swap_weights(folder: Path) -> None:
    shutil.copy(folder.parent / "00000001" / "model.safetensors", folder / "model.safetensors")


def forget_weights(folder: Path) -> None:
    """The manifest knows of no weights either: the files are those that were registered, and nothing loads."""
    break_weights(folder)
    path = folder.parent / "log" / f"{folder.name}.json"
    manifest = json.loads(path.read_bytes())
    manifest["files"] = [entry for entry in manifest["files"] if not entry["path"].endswith(".safetensors")]
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize("damage", [break_weights, swap_weights, forget_weights])
@pytest.mark.parametrize("words", [("set", "--champion", "2"), ("set", "--champion", "1", "--challenger", "2"), ("shadow", "2")], ids=" ".join)
def test_a_version_that_cannot_answer_is_refused_at_once(tmp_path: Path, damage: Callable[[Path], None], words: tuple[str, ...]) -> None:
    nobody = load_settings("", {}, {"root": str(tmp_path), "kafka.bootstrap_servers": "127.0.0.1:1"})
    for version in (1, 2):
        make_model(tmp_path, version=version, seed=version)
    RolloutLog(tmp_path).transition(lambda state: policy.bootstrap(state, 1, by_the_loop(), "00000000"))
    damage(tmp_path / "models" / "00000002")
    with pytest.raises(RolloutError, match=r"model 2 cannot be served: .*"):
        command(nobody, *words)
    latest = RolloutLog(tmp_path).latest()
    assert latest is not None and latest.number == 1


def test_every_transition_is_an_event(settings: Settings, events: EventProducer) -> None:
    state = RolloutLog(Path(settings.root)).transition(lambda state: policy.bootstrap(state, 1, by_the_loop(), "00000000"))
    assert state is not None
    announce(state, events, Path(settings.root))
    assert events.flush(DEADLINE_S)
    with read_events(settings, topic_names(settings).events) as reader:
        deadline = time.monotonic() + DEADLINE_S
        while not (received := reader.poll(0.5)):
            assert time.monotonic() < deadline
    assert isinstance(received[0].data, RolloutChanged) and received[0].data.champion == 1
    assert read_tally(state, settings, 1.0).evidence(LossComparison()).champion.requests == 0
