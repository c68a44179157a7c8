"""Routing: shares, stickiness, monotone growth, independence of the shadow choice."""

import math
from datetime import UTC, datetime

from hypothesis import given, settings
from hypothesis import strategies as st

from ray_apps.serving.router import Route, point, route, user_hash
from schemas.rollout import Decision, Phase, RolloutState

KEYS = [f"user-{number}" for number in range(4000)]
FRACTIONS = st.floats(0, 1, allow_nan=False)
SALTS = st.integers(0, 2**32 - 1).map(lambda number: f"{number:08x}")


def state(salt: str = "0badcafe", *, canary: float = 0.0, shadow: float = 0.0, challenger: int | None = 2, champion: int | None = 1) -> RolloutState:
    phase = Phase.IDLE if challenger is None else Phase.CANARY if canary else Phase.SHADOW
    return RolloutState(
        number=1,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        phase=phase,
        champion=champion,
        challenger=challenger,
        canary_fraction=canary,
        shadow_fraction=shadow,
        salt=salt,
        decision=Decision.SET,
        reason="a test",
    )


def within(count: int, total: int, fraction: float) -> bool:
    """Six standard deviations: wrong once in 500 million."""
    return abs(count - total * fraction) <= 6 * math.sqrt(total * fraction * (1 - fraction)) + 1


@settings(max_examples=30)
@given(SALTS, FRACTIONS)
def test_the_challenger_gets_its_share_of_keys(salt: str, fraction: float) -> None:
    routed = [route(state(salt, canary=fraction), key) for key in KEYS]
    assert within(sum(found is not None and found.primary == 2 for found in routed), len(KEYS), fraction)


@given(st.text(), FRACTIONS, SALTS)
def test_a_key_always_gets_the_same_route(key: str, fraction: float, salt: str) -> None:
    assert route(state(salt, canary=fraction, shadow=0.5), key) == route(state(salt, canary=fraction, shadow=0.5), key)


@given(st.text(), FRACTIONS, FRACTIONS, SALTS)
def test_growing_the_fraction_never_moves_a_key_back_to_the_champion(key: str, one: float, other: float, salt: str) -> None:
    small, large = sorted((one, other))
    before, after = route(state(salt, canary=small), key), route(state(salt, canary=large), key)
    assert before is not None and after is not None
    assert before.primary == 1 or after.primary == 2


@settings(max_examples=20)
@given(SALTS, st.sampled_from([0.2, 0.5, 0.8]), st.sampled_from([0.2, 0.5, 0.8]))
def test_the_shadow_is_chosen_independently_of_the_split(salt: str, canary: float, shadow: float) -> None:
    champions = [key for key in KEYS if point(salt, "split", key) >= canary]
    copied = sum(route(state(salt, canary=canary, shadow=shadow), key) == Route(1, 2) for key in champions)
    assert within(copied, len(champions), shadow)


@given(SALTS, SALTS)
def test_another_salt_draws_other_groups(one: str, other: str) -> None:
    first = {key for key in KEYS if point(one, "split", key) < 0.5}
    second = {key for key in KEYS if point(other, "split", key) < 0.5}
    assert one == other or within(len(first & second), len(KEYS), 0.25)


@given(st.text(), FRACTIONS, FRACTIONS)
def test_a_copy_never_goes_to_the_one_who_answers(key: str, canary: float, shadow: float) -> None:
    found = route(state(canary=canary, shadow=shadow), key)
    assert found is not None and found.shadow != found.primary


def test_a_key_that_is_no_valid_unicode_has_a_route_too() -> None:
    found = route(state(canary=0.5, shadow=0.5), "\ud800")  # a JSON body can say so
    assert found is not None and found.primary in (1, 2)


def test_a_user_has_another_pseudonym_in_every_trial_and_one_within_it() -> None:
    names = {user_hash(salt, key) for salt in ("0badcafe", "0badcaff") for key in KEYS[:100]}
    assert len(names) == 200
    assert user_hash("0badcafe", "user-1") == user_hash("0badcafe", "user-1")


def test_the_ends_of_the_range_are_exact() -> None:
    assert {found.primary for key in KEYS if (found := route(state(canary=0.0), key))} == {1}
    assert {found.primary for key in KEYS if (found := route(state(canary=1.0), key))} == {2}


def test_without_a_challenger_the_champion_answers_alone_and_without_a_champion_nobody() -> None:
    assert route(state(challenger=None), "x") == Route(1, None)
    assert route(state(challenger=None, champion=None), "x") is None
