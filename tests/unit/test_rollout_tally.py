"""What counts as evidence about a rollout state, event by event."""

from datetime import UTC, datetime, timedelta

import pytest

from ray_apps.rollout.evidence import LossComparison
from ray_apps.rollout.tally import TrialTally
from schemas.events import Event, InferenceCompleted, new_event
from schemas.rollout import Decision, Phase, RolloutState

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def trial(phase: Phase) -> TrialTally:
    shares = {"shadow_fraction": 1.0} if phase is Phase.SHADOW else {"canary_fraction": 0.2}
    return TrialTally(
        RolloutState(number=5, created_at=NOW, phase=phase, champion=1, challenger=2, salt="0badcafe", decision=Decision.START, reason="r", **shares)
    )


def answer(version: int, *, shadow: bool = False, pinned: bool = False, status: str = "ok", request_id: str = "r", **others: object) -> Event:
    values = {"request_id": request_id, "model_version": version, "shadow": shadow, "pinned": pinned, "rollout_number": 5, "status": status}
    role = "champion" if version == 1 else "challenger"
    defaults: dict[str, object] = {
        "role": role,
        "prompt_tokens": 4,
        "completion_tokens": 8,
        "latency_s": 99.0,
        "engine_s": 0.2,
        "user_hash": "0" * 16,
    }
    data = InferenceCompleted.model_validate(values | defaults | others)
    return new_event(data, id="e", source="/test", time=NOW)


def counts(tally: TrialTally) -> tuple[int, int, int, int]:
    evidence = tally.evidence(LossComparison())
    return (evidence.champion.answers, evidence.champion.errors, evidence.challenger.answers, evidence.challenger.errors)


@pytest.mark.parametrize("phase", [Phase.SHADOW, Phase.CANARY])
def test_routed_answers_and_errors_of_both_models_count(phase: Phase) -> None:
    tally = trial(phase)
    for version in (1, 2):
        for status in ("ok", "error"):
            tally.add(answer(version, shadow=version == 2 and phase is Phase.SHADOW, status=status))
    assert counts(tally) == (1, 1, 1, 1)


@pytest.mark.parametrize("phase", [Phase.SHADOW, Phase.CANARY])
def test_an_answer_that_nobody_waited_for_is_no_answer(phase: Phase) -> None:
    tally = trial(phase)
    for _ in range(3):
        tally.add(answer(2, shadow=phase is Phase.SHADOW, status="cancelled", completion_tokens=0))
    seen = tally.evidence(LossComparison()).challenger
    assert (seen.answers, seen.cancellations, seen.cancelled_rate, seen.measured) == (0, 3, 1.0, 0)


@pytest.mark.parametrize("champion_first", [True, False])
def test_a_refusal_counts_against_the_challenger_exactly_when_the_champion_answers_the_same_request(champion_first: bool) -> None:
    for phase in (Phase.SHADOW, Phase.CANARY)[: 1 if champion_first else 2]:
        tally = trial(phase)
        for number, champion_says in enumerate(["ok", "refused", "error", "ok"]):
            told = [
                answer(1, status=champion_says, request_id=f"r{number}"),
                answer(2, shadow=phase is Phase.SHADOW, status="refused", request_id=f"r{number}"),
            ]
            for event in told if champion_first else reversed(told):
                tally.add(event)
        seen = tally.evidence(LossComparison()).challenger
        assert (seen.refusals, seen.requests, seen.answers) == (2, 2, 0)


def test_only_answers_with_a_measured_time_of_the_engine_end_the_challengers_silence() -> None:
    tally = trial(Phase.CANARY)
    for number in range(4):
        tally.add(answer(1, request_id=f"r{number}"))
    for change in ({"engine_s": None}, {"completion_tokens": 0}, {"status": "cancelled"}):
        tally.add(answer(2, **change))
    assert tally.evidence(LossComparison()).unanswered == 4
    tally.add(answer(2))
    seen = tally.evidence(LossComparison())
    assert seen.unanswered == 0 and seen.challenger.measured == 1
    median = seen.challenger.median_s_per_token()
    assert median is not None and abs(median / (0.2 / 8) - 1) < 0.05, "the engine's time, and not the client's"


def test_users_are_counted_and_not_their_requests() -> None:
    tally = trial(Phase.CANARY)
    for user in ("a" * 16, "b" * 16, "a" * 16, None):
        tally.add(answer(2, user_hash=user))
    assert len(tally.evidence(LossComparison()).challenger.users) == 2


@pytest.mark.parametrize("status", ["ok", "error", "refused", "cancelled"])
def test_answers_under_another_state_or_of_another_life_of_the_root_are_no_evidence(status: str) -> None:
    tally, nothing = trial(Phase.CANARY), trial(Phase.CANARY).evidence(LossComparison())
    for version in (1, 2):
        for number in (4, 6):
            tally.add(answer(version, status=status, rollout_number=number))
        tally.add(answer(version, status=status).model_copy(update={"time": NOW - timedelta(seconds=61)}))
    assert tally.evidence(LossComparison()) == nothing
    for version in (1, 2):
        tally.add(answer(version).model_copy(update={"time": NOW - timedelta(seconds=59)}))
    assert counts(tally) == (1, 0, 1, 0), "clocks may differ by a minute"


@pytest.mark.parametrize("phase", [Phase.SHADOW, Phase.CANARY])
def test_what_the_phase_does_not_say_is_no_evidence(phase: Phase) -> None:
    tally = trial(phase)
    for status in ("ok", "error", "refused", "cancelled"):
        tally.add(answer(1, shadow=True, status=status))
        tally.add(answer(2, shadow=phase is Phase.CANARY, status=status))
        tally.add(answer(3, status=status))
    assert tally.evidence(LossComparison()) == trial(phase).evidence(LossComparison())


def test_a_failure_of_the_challenger_ends_its_silence_as_an_answer_does() -> None:
    for status in ("error", "refused"):
        tally = trial(Phase.CANARY)
        for number in (1, 2):
            tally.add(answer(1, request_id=f"r{number}"))
        tally.add(answer(2, status=status, request_id="r3"))
        tally.add(answer(1, request_id="r3"))
        assert tally.evidence(LossComparison()).unanswered == (1 if status == "error" else 0)


def test_only_the_champions_answers_pass_a_silent_challenger_by() -> None:
    tally = trial(Phase.CANARY)
    for status in ("error", "refused", "cancelled"):
        tally.add(answer(1, status=status))
    assert tally.evidence(LossComparison()).unanswered == 0


def test_a_request_that_the_challenger_refused_counts_once_however_often_the_champion_answers_it() -> None:
    tally = trial(Phase.CANARY)
    tally.add(answer(2, status="refused"))
    for _ in range(3):
        tally.add(answer(1))
    assert tally.evidence(LossComparison()).challenger.refusals == 1


def test_of_requests_that_wait_for_the_other_models_word_the_oldest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_apps.rollout.tally.MAX_OPEN_REQUESTS", 3)
    tally = trial(Phase.CANARY)
    for number in range(5):
        tally.add(answer(2, status="refused", request_id=f"r{number}"))
    for number, refusals in enumerate((0, 0, 1, 2, 3)):
        tally.add(answer(1, request_id=f"r{number}"))
        assert tally.evidence(LossComparison()).challenger.refusals == refusals


@pytest.mark.parametrize("phase", [Phase.SHADOW, Phase.CANARY])
def test_answers_of_a_version_that_the_client_named_are_no_evidence(phase: Phase) -> None:
    tally = trial(phase)
    for version in (1, 2):
        for shadow in (False, True):
            for status in ("ok", "error", "refused", "cancelled"):
                tally.add(answer(version, shadow=shadow, pinned=True, status=status))
    assert counts(tally) == (0, 0, 0, 0)
    assert tally.evidence(LossComparison()).unanswered == 0
