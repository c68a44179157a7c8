"""What counts as evidence about a rollout state, event by event."""

from datetime import UTC, datetime

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


def answer(version: int, *, shadow: bool = False, pinned: bool = False, status: str = "ok") -> Event:
    values = {"request_id": "r", "model_version": version, "shadow": shadow, "pinned": pinned, "rollout_number": 5, "status": status}
    role = "champion" if version == 1 else "challenger"
    data = InferenceCompleted.model_validate(values | {"role": role, "prompt_tokens": 4, "completion_tokens": 8, "latency_s": 0.2})
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
def test_answers_of_a_version_that_the_client_named_are_no_evidence(phase: Phase) -> None:
    tally = trial(phase)
    for version in (1, 2):
        for shadow in (False, True):
            for status in ("ok", "error"):
                tally.add(answer(version, shadow=shadow, pinned=True, status=status))
    assert counts(tally) == (0, 0, 0, 0)
    assert tally.evidence(LossComparison()).unanswered == 0
