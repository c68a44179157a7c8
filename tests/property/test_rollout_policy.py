"""Whatever the evidence and whatever a person asks for, a rollout never leaves its rails."""

from datetime import UTC, datetime

from hypothesis import example, given, settings
from hypothesis import strategies as st

from ray_apps.rollout.evidence import ArmCounts, Evidence, LossComparison
from ray_apps.rollout.policy import Author, abort, decide, missing, promote, set_shares, start
from ray_apps.serving.router import route
from schemas.errors import RolloutError
from schemas.rollout import Decision, Phase, RolloutState
from schemas.settings import RolloutSettings

NOW = datetime(2026, 1, 2, tzinfo=UTC)
SETTINGS = RolloutSettings()
AUTHOR = Author(NOW, automatic=True)

counts = st.integers(0, 2000)
buckets = st.dictionaries(st.integers(-80, 40), st.integers(1, 50), max_size=5)
users = st.integers(0, 30).map(lambda number: {f"{user:016x}" for user in range(number)})
tallies = st.builds(ArmCounts, answers=counts, errors=counts, refusals=counts, cancellations=counts, latency_buckets=buckets, users=users)
losses = st.none() | st.floats(allow_nan=True, allow_infinity=True)
statuses = st.sampled_from(["pending", "measured", "unavailable"])
validations = st.builds(
    LossComparison,
    status=statuses,
    dataset_version=st.just(2),
    champion_loss=losses,
    challenger_loss=losses,
)
evidences = st.builds(Evidence, champion=tallies, challenger=tallies, unanswered=counts, validation=validations)
versions = st.integers(1, 5)
asked = st.one_of(
    st.tuples(st.just("decide"), evidences),
    st.tuples(st.just("start"), versions),
    st.tuples(st.just("promote"), st.none()),
    st.tuples(st.just("abort"), st.none()),
    st.tuples(st.just("set"), st.tuples(versions, st.none() | versions, st.none() | st.floats(0, 1))),
)


def apply(state: RolloutState, name: str, value: object) -> RolloutState | None:
    if isinstance(value, Evidence):
        return decide(state, value, SETTINGS, NOW)
    if isinstance(value, int):
        return start(state, value, SETTINGS, reason="r", evidence={}, author=AUTHOR, salt="00000001")
    if isinstance(value, tuple):
        champion, challenger, share = value
        return set_shares(state, champion=champion, challenger=challenger, share=share, settings=SETTINGS, author=AUTHOR, salt="00000002")
    return promote(state, "r", {}, AUTHOR) if name == "promote" else abort(state, "r", {}, AUTHOR)


@given(st.lists(asked, max_size=12))
def test_no_sequence_of_transitions_makes_a_champion_of_what_was_not_challenger_or_named(steps: list[tuple[str, object]]) -> None:
    state = set_shares(None, champion=1, challenger=None, share=None, settings=SETTINGS, author=AUTHOR, salt="00000000")
    for name, value in steps:
        try:
            after = apply(state, name, value)
        except RolloutError:
            continue
        if after is None:
            continue
        assert after.number == state.number + 1
        assert after.champion is not None and after.champion != after.challenger
        if after.decision is Decision.PROMOTE:
            assert after.champion == state.challenger and after.challenger is None
        elif after.decision is not Decision.SET:
            assert after.champion == state.champion
        same_pair = (after.champion, after.challenger) == (state.champion, state.challenger)
        drawn = {Decision.START: "00000001", Decision.SET: state.salt if same_pair and after.challenger is not None else "00000002"}
        assert after.salt == drawn.get(after.decision, state.salt)
        assert after.person_decides or after.decision is Decision.START or not state.person_decides
        state = after


def arm(number: int, *, bucket: int = 0, errors: int = 0) -> ArmCounts:
    """This many measured answers, each to a different user."""
    return ArmCounts(answers=number, errors=errors, latency_buckets={bucket: number}, users={f"{user:016x}" for user in range(number)})


EQUAL = LossComparison(status="measured", dataset_version=2, champion_loss=3.0, challenger_loss=3.0)
phases = st.sampled_from([Phase.SHADOW, Phase.CANARY])
near_the_bounds = st.builds(
    Evidence,
    champion=st.builds(arm, st.integers(8, 12)),
    challenger=st.builds(arm, st.integers(8, 22), bucket=st.integers(6, 10), errors=st.integers(0, 1)),
    unanswered=st.integers(0, 1100),
    validation=st.just(EQUAL),
)


@settings(max_examples=300)
@given(evidences | near_the_bounds, phases)
@example(Evidence(arm(10), arm(20), 0, EQUAL), Phase.SHADOW)
@example(Evidence(arm(10), arm(20), 0, EQUAL), Phase.CANARY)
@example(Evidence(arm(10), arm(19), 0, EQUAL), Phase.CANARY)
@example(Evidence(arm(10), arm(9, errors=1), 0, EQUAL), Phase.CANARY)
def test_a_trial_moves_on_exactly_when_nothing_is_missing_or_a_guard_trips(seen: Evidence, phase: Phase) -> None:
    state = RolloutState(
        number=2,
        created_at=NOW,
        phase=phase,
        champion=1,
        challenger=2,
        canary_fraction=0.2 if phase is Phase.CANARY else 0,
        shadow_fraction=1.0 if phase is Phase.SHADOW else 0,
        salt="00000001",
        decision=Decision.START,
        reason="r",
    )
    after = decide(state, seen, SETTINGS, NOW)
    moved_on = Decision.ADVANCE if phase is Phase.SHADOW else Decision.PROMOTE
    assert (after and after.decision) == (Decision.ABORT if is_worse(seen, phase) else moved_on if is_complete(seen) else None)
    assert (missing(state, seen, SETTINGS) == []) == is_complete(seen)
    RolloutState.model_validate_json((after or state).model_dump_json())


def is_complete(seen: Evidence) -> bool:
    """Whether there is enough evidence to end the phase, whatever the evidence says."""
    enough = seen.challenger.measured >= 20 and len(seen.challenger.users) >= 10 and seen.champion.measured >= 10
    return enough and seen.validation.status != "pending"


def is_worse(seen: Evidence, phase: Phase) -> bool:
    """Whether the challenger is so much worse that the phase ends at once; the numbers are the default settings."""
    champion, challenger, validation = seen.champion, seen.challenger, seen.validation
    failed, answered = challenger.errors + challenger.refusals, challenger.answers
    total = failed + answered + challenger.cancellations
    shares = [arm.cancellations / ((arm.answers + arm.errors + arm.refusals + arm.cancellations) or 1) for arm in (champion, challenger)]
    medians = [arm.median_s_per_token() for arm in (champion, challenger) if arm.measured >= 10]
    losses = (validation.champion_loss, validation.challenger_loss) if validation.status == "measured" else (None, None)
    return (
        (losses[0] is not None and losses[1] is not None and not losses[1] - losses[0] <= 0.02)
        or (failed + answered >= 10 and failed > 0.02 * (failed + answered))
        or (total >= 10 and shares[1] - shares[0] > 0.1)
        or (len(medians) == 2 and medians[0] is not None and medians[1] is not None and medians[1] > 2 * medians[0])
        or seen.unanswered * (1.0 if phase is Phase.SHADOW else 0.2) >= 200
    )


KEYS = [f"user-{number}" for number in range(1_000)]
salts = st.integers(0, 2**32 - 1).map(lambda number: f"{number:08x}")


@given(st.lists(st.tuples(st.floats(0, 1), salts), min_size=2, max_size=6))
def test_setting_a_larger_share_by_hand_never_moves_a_user_back_to_the_champion(steps: list[tuple[float, str]]) -> None:
    state: RolloutState | None = None
    moved: set[str] = set()
    for share, fresh_salt in sorted(steps):
        state = set_shares(state, champion=1, challenger=2, share=share, settings=SETTINGS, author=AUTHOR, salt=fresh_salt)
        answered_by = {key: found.primary for key in KEYS if (found := route(state, key))}
        assert all(answered_by[key] == 2 for key in moved)
        moved = {key for key, version in answered_by.items() if version == 2}


@given(st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 10_000)), max_size=50))
def test_a_tally_counts_every_answer_and_its_median_lies_between_the_extremes(answers: list[tuple[float, int]]) -> None:
    seen = ArmCounts()
    for latency_s, tokens in answers:
        seen.add_answer(latency_s, tokens)
    rates = [max(latency_s / tokens, 1e-7) for latency_s, tokens in answers if tokens]
    median = seen.median_s_per_token()
    assert seen.answers == len(answers)
    assert (median is None) == (not rates)
    if median is not None:
        assert min(rates) / 1.1 <= median <= max(rates) * 1.1
