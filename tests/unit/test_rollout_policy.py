"""The rollout policy: every state against every kind of evidence, and every transition that a person may ask for."""

from datetime import UTC, datetime
from typing import Any

import pytest

from ray_apps.rollout.evidence import ArmCounts, Evidence, LossComparison
from ray_apps.rollout.policy import Author, abort, bootstrap, decide, guard, hold, missing, promote, release, set_shares, start
from schemas.errors import RolloutError
from schemas.rollout import Decision, Phase, RolloutState
from schemas.settings import RolloutSettings

NOW = datetime(2026, 1, 2, tzinfo=UTC)
BY_HAND = Author(NOW, automatic=False)
BY_LOOP = Author(NOW, automatic=True)
SETTINGS = RolloutSettings()
SALT = "0a1b2c3d"


def idle(champion: int | None = 1) -> RolloutState:
    return RolloutState(
        number=4, created_at=NOW, phase=Phase.IDLE, champion=champion, challenger=None, salt=SALT, decision=Decision.BOOTSTRAP, reason="r"
    )


def shadow() -> RolloutState:
    return start(idle(), 2, SETTINGS, reason="r", evidence={}, author=BY_LOOP, salt="ffffffff")


def canary() -> RolloutState:
    state = decide(shadow(), evidence(20, 20), SETTINGS, NOW)
    assert state is not None
    return state


def tally(
    answers: int, errors: int = 0, s_per_token: float | None = 0.01, *, refusals: int = 0, cancellations: int = 0, users: int = 1_000
) -> ArmCounts:
    result = ArmCounts(errors=errors, refusals=refusals, cancellations=cancellations)
    for number in range(answers):
        result.add_answer(None if s_per_token is None else s_per_token * 8, 8, f"{number % users:016x}")
    return result


def measured(challenger_loss: float = 3.0, champion_loss: float = 3.1) -> LossComparison:
    return LossComparison(status="measured", dataset_version=2, champion_loss=champion_loss, challenger_loss=challenger_loss)


def evidence(champion: int, challenger: int | ArmCounts, *, unanswered: int = 0, validation: LossComparison | None = None) -> Evidence:
    on_trial = challenger if isinstance(challenger, ArmCounts) else tally(challenger)
    return Evidence(tally(champion), on_trial, unanswered, validation or measured())


def test_enough_shadow_answers_advance_to_canary_with_the_configured_share() -> None:
    state = decide(shadow(), evidence(20, 20), SETTINGS, NOW)
    assert state is not None
    assert (state.phase, state.decision, state.canary_fraction, state.shadow_fraction) == (Phase.CANARY, Decision.ADVANCE, 0.2, 0.0)
    assert (state.champion, state.challenger, state.salt, state.number) == (1, 2, "ffffffff", 6)
    assert "20 shadow requests of 20 users" in state.reason and "3.0000 against 3.1000" in state.reason
    assert state.evidence["challenger"]["answers"] == 20


def test_enough_canary_answers_promote_the_challenger() -> None:
    state = decide(canary(), evidence(80, 20), SETTINGS, NOW)
    assert state is not None
    assert (state.phase, state.decision, state.champion, state.challenger, state.automatic) == (Phase.IDLE, Decision.PROMOTE, 2, None, True)


@pytest.mark.parametrize("state", [shadow(), canary()], ids=["shadow", "canary"])
@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (evidence(0, 0, validation=measured(3.2, 3.1)), "+0.1000, at most +0.02"),
        (evidence(0, 0, validation=measured(float("nan"), 3.1)), "validation loss nan"),
        (evidence(20, tally(9, errors=1)), "failed 1 of 10 requests (10.0%)"),
        (evidence(20, tally(9, refusals=1)), "failed 1 of 10 requests (10.0%), 1 of them by refusing what model 1 answered"),
        (evidence(20, tally(0, cancellations=10)), "10 of 10 requests to model 2 were given up before it had answered (100.0%), of model 1 0.0%"),
        (evidence(20, tally(10, s_per_token=0.03)), "times as long, at most 2.0"),
        (evidence(1000, 0, unanswered=1000), "gave no answer that can be judged while model 1 gave 1000"),
    ],
    ids=["loss", "nan-loss", "errors", "refusals", "cancellations", "latency", "silence"],
)
def test_each_guard_aborts_in_each_phase_and_keeps_the_champion(state: RolloutState, seen: Evidence, words: str) -> None:
    after = decide(state, seen, SETTINGS, NOW)
    assert after is not None
    assert (after.decision, after.phase, after.champion, after.challenger) == (Decision.ABORT, Phase.IDLE, 1, None)
    assert words in after.reason


@pytest.mark.parametrize("state", [shadow(), canary()], ids=["shadow", "canary"])
@pytest.mark.parametrize(
    "seen",
    [
        evidence(0, 0),
        evidence(200, 19),
        evidence(200, 20, validation=LossComparison()),
        evidence(20, tally(0, errors=9)),
        evidence(20, tally(9, s_per_token=9.0)),
        evidence(200, tally(200, s_per_token=None)),
        evidence(200, tally(19, cancellations=2)),
        evidence(200, tally(200, users=9)),
        evidence(199, 0, unanswered=199),
    ],
    ids=["nothing", "one-too-few", "loss-pending", "few-errors", "few-slow", "not-timed", "cancelled-is-no-answer", "one-user-too-few", "patience"],
)
def test_too_little_evidence_decides_nothing_and_says_what_is_missing(state: RolloutState, seen: Evidence) -> None:
    assert decide(state, seen, SETTINGS, NOW) is None
    assert missing(state, seen, SETTINGS)


def test_a_latency_is_compared_with_the_champions_in_this_phase_or_the_one_before_and_never_with_nothing() -> None:
    nothing_to_compare = evidence(9, tally(19, s_per_token=9.0))
    assert decide(shadow(), nothing_to_compare, SETTINGS, NOW) is None
    assert "10 answers of model 1 to compare the time per token with" in missing(shadow(), evidence(9, 20), SETTINGS)
    slower = decide(canary(), nothing_to_compare, SETTINGS, NOW)  # the champion was measured while the challenger was its shadow
    assert slower is not None and slower.decision is Decision.ABORT and "times as long" in slower.reason


def test_answers_whose_time_was_not_measured_are_not_enough() -> None:
    half = tally(10)
    half.answers += 10
    assert missing(shadow(), evidence(200, half), SETTINGS) == ["10 more shadow answers of model 2 (10 of 20)"]


def test_clients_that_give_up_on_both_models_alike_do_not_stop_a_trial() -> None:
    impatient = Evidence(tally(70, cancellations=30), tally(20, cancellations=8), 0, measured())
    after = decide(shadow(), impatient, SETTINGS, NOW)
    assert after is not None and after.decision is Decision.ADVANCE


def test_a_dataset_without_validation_rows_does_not_hold_the_trial_up() -> None:
    state = decide(shadow(), evidence(20, 20, validation=LossComparison(status="unavailable")), SETTINGS, NOW)
    assert state is not None and state.decision is Decision.ADVANCE and "could not be compared" in state.reason


@pytest.mark.parametrize("seen", [evidence(1000, 1000), evidence(20, tally(0, errors=20))], ids=["better", "worse"])
def test_idle_never_moves_by_itself(seen: Evidence) -> None:
    assert decide(idle(), seen, SETTINGS, NOW) is None


def by_hand(share: float = 0.5) -> RolloutState:
    return set_shares(idle(), champion=1, challenger=2, share=share, settings=SETTINGS, author=BY_HAND, salt=SALT)


def test_shares_set_by_hand_are_guarded_but_never_promoted_by_the_loop() -> None:
    state = by_hand()
    assert decide(state, evidence(500, 500), SETTINGS, NOW) is None
    assert missing(state, evidence(0, 0), SETTINGS) == missing(state, evidence(500, 500), SETTINGS)
    assert "a person" in missing(state, evidence(0, 0), SETTINGS)[0] and "release" in missing(state, evidence(0, 0), SETTINGS)[0]
    tripped = decide(state, evidence(500, tally(10, errors=10)), SETTINGS, NOW)
    assert tripped is not None and tripped.decision is Decision.ABORT


def test_a_persons_word_holds_through_everything_but_their_own_release_or_start() -> None:
    tripped = decide(by_hand(), evidence(500, tally(10, errors=10)), SETTINGS, NOW)
    for state in (by_hand(), tripped, abort(by_hand(), "r", {}, BY_HAND), promote(by_hand(), "r", {}, BY_HAND), hold(idle(), "r", BY_HAND)):
        assert state is not None and state.held and state.person_decides
        if state.phase is Phase.IDLE:
            with pytest.raises(RolloutError, match="a person decides"):
                start(state, 3, SETTINGS, reason="r", evidence={}, author=BY_LOOP, salt=SALT)
            assert not start(state, 3, SETTINGS, reason="r", evidence={}, author=BY_HAND, salt=SALT).person_decides
        assert not release(state, "r", BY_HAND).person_decides
    written_before = by_hand().model_copy(update={"held": False})
    assert written_before.person_decides, "earlier versions had the decision only"


def test_a_canary_set_by_hand_is_judged_by_the_loop_once_it_is_released() -> None:
    released = release(by_hand(), "r", BY_HAND)
    assert (released.phase, released.challenger, released.canary_fraction, released.salt) == (Phase.CANARY, 2, 0.5, SALT)
    after = decide(released, evidence(500, 500), SETTINGS, NOW)
    assert after is not None and (after.decision, after.champion) == (Decision.PROMOTE, 2)


@pytest.mark.parametrize("champion_answers", [0, 10_000])
def test_a_shadow_phase_that_copies_nothing_asks_for_no_answers(champion_answers: int) -> None:
    settings = RolloutSettings(shadow_fraction=0.0)
    state = start(idle(), 2, settings, reason="r", evidence={}, author=BY_LOOP, salt=SALT)
    after = decide(state, evidence(champion_answers, 0, unanswered=champion_answers), settings, NOW)
    assert after is not None and after.decision is Decision.ADVANCE


def test_a_challenger_that_gets_everything_is_not_compared_with_a_champion_that_gets_nothing() -> None:
    state = release(by_hand(share=1.0), "r", BY_HAND)
    after = decide(state, evidence(0, 20), SETTINGS, NOW)
    assert after is not None and after.decision is Decision.PROMOTE


def test_each_phase_asks_for_its_own_number_of_answers() -> None:
    settings = RolloutSettings(min_shadow_requests=30, min_canary_requests=12)
    for state, needed in ((shadow(), 30), (canary(), 12)):
        assert decide(state, evidence(200, needed - 1), settings, NOW) is None
        assert decide(state, evidence(200, needed), settings, NOW) is not None


def test_what_a_guard_allows_at_most_is_allowed() -> None:
    settings = RolloutSettings(max_error_rate=0.1, max_cancelled_increase=0.25, max_loss_increase=0.5, max_latency_ratio=1.0)
    at_most = Evidence(tally(30), tally(27, errors=3, cancellations=10), 0, measured(3.5, 3.0))
    after = decide(shadow(), at_most, settings, NOW)
    assert after is not None and after.decision is Decision.ADVANCE


def test_silence_is_judged_by_the_challengers_share_of_the_traffic() -> None:
    assert guard(canary(), evidence(999, 0, unanswered=999), SETTINGS) is None
    assert guard(canary(), evidence(1000, 0, unanswered=1000), SETTINGS) is not None


def test_set_with_share_zero_copies_only_and_without_a_share_takes_the_configured_one() -> None:
    copied = set_shares(None, champion=3, challenger=4, share=0.0, settings=SETTINGS, author=BY_HAND, salt=SALT)
    assert (copied.number, copied.phase, copied.shadow_fraction, copied.canary_fraction) == (1, Phase.SHADOW, 1.0, 0.0)
    shared = set_shares(copied, champion=3, challenger=4, share=None, settings=SETTINGS, author=BY_HAND, salt=SALT)
    assert (shared.number, shared.phase, shared.canary_fraction) == (2, Phase.CANARY, 0.2)


def test_a_person_may_promote_from_shadow_and_abort_from_canary() -> None:
    assert promote(shadow(), "asked", {}, BY_HAND).champion == 2
    after = abort(canary(), "asked", {}, BY_HAND)
    assert (after.champion, after.challenger, after.automatic, after.reason) == (1, None, False, "asked")


def test_the_first_model_becomes_champion_without_a_trial() -> None:
    state = bootstrap(None, 1, BY_LOOP, SALT)
    assert (state.number, state.champion, state.decision) == (1, 1, Decision.BOOTSTRAP)


def _start(state: RolloutState | None, challenger: int) -> RolloutState:
    return start(state, challenger, SETTINGS, reason="r", evidence={}, author=BY_HAND, salt=SALT)


def _set(champion: int, challenger: int | None, share: float | None) -> RolloutState:
    return set_shares(None, champion=champion, challenger=challenger, share=share, settings=SETTINGS, author=BY_HAND, salt=SALT)


@pytest.mark.parametrize(
    ("attempt", "words"),
    [
        (lambda: _start(None, 2), "there is no champion to compare model 2 with"),
        (lambda: _start(idle(None), 2), "headrace rollout set --champion VERSION"),
        (lambda: _start(idle(), 1), "model 1 is the champion"),
        (lambda: _start(shadow(), 3), "model 2 is on trial (shadow)"),
        (lambda: _start(canary(), 3), "model 2 is on trial (canary)"),
        (lambda: promote(None, "r", {}, BY_HAND), "no challenger to promote"),
        (lambda: promote(idle(), "r", {}, BY_HAND), "no challenger to promote"),
        (lambda: abort(None, "r", {}, BY_HAND), "no trial to abort"),
        (lambda: abort(idle(), "r", {}, BY_HAND), "no trial to abort"),
        (lambda: hold(None, "r", BY_HAND), "nothing is served yet"),
        (lambda: hold(by_hand(), "r", BY_HAND), "a person decides already"),
        (lambda: release(None, "r", BY_HAND), "the loop decides already"),
        (lambda: release(idle(), "r", BY_HAND), "the loop decides already"),
        (lambda: bootstrap(idle(), 2, BY_LOOP, SALT), "model 1 is champion already"),
        (lambda: _set(1, 1, 0.5), "cannot be champion and challenger"),
        (lambda: _set(1, None, 0.5), "add --challenger VERSION"),
        (lambda: _set(1, 2, 1.5), "between 0 and 1"),
        (lambda: _set(1, 2, float("nan")), "between 0 and 1"),
    ],
)
def test_transitions_that_make_no_sense_are_refused_with_a_sentence(attempt: Any, words: str) -> None:
    with pytest.raises(RolloutError) as error:
        attempt()
    assert words in str(error.value)


def test_the_median_is_right_to_five_percent_and_ignores_answers_without_tokens() -> None:
    seen = ArmCounts()
    for milliseconds in range(1, 102):
        seen.add_answer(milliseconds / 1000 * 10, 10)
    seen.add_answer(5.0, 0)
    median = seen.median_s_per_token()
    assert median is not None and abs(median / 0.051 - 1) < 0.05
    assert ArmCounts().median_s_per_token() is None


@pytest.mark.parametrize("order", [(100, 1, 10), (1, 10, 100), (10, 100, 10, 1), (100, 10, 1, 1000)])
def test_the_median_is_the_middle_answer_in_whatever_order_they_came_and_of_two_the_faster(order: tuple[int, ...]) -> None:
    seen = ArmCounts()
    for milliseconds in order:
        seen.add_answer(milliseconds / 1000, 1)
    median = seen.median_s_per_token()
    assert median is not None and abs(median / 0.01 - 1) < 0.05


def test_users_beyond_what_is_asked_for_take_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_apps.rollout.evidence.MAX_USERS", 3)
    assert len(tally(10).users) == 3
