"""Which model version answers a request: a pure function of the rollout's state and the request's sticky key.

Every key has a fixed point in [0, 1) per trial (the salt makes the trial). The challenger answers the points below
``canary_fraction``; so the same key keeps its variant, and raising the fraction only moves keys from the champion to the
challenger. Whether a request is also copied is decided by a second, independent point. Costs two 64-bit hashes.
"""

from dataclasses import dataclass

import xxhash

from schemas.rollout import RolloutState


@dataclass(frozen=True, slots=True)
class Route:
    """Model versions for one request."""

    primary: int
    """Answers the client."""
    shadow: int | None
    """Gets a copy that nobody sees."""


def point(salt: str, purpose: str, sticky_key: str) -> float:
    """A number in [0, 1), uniform over keys, the same in every process."""
    return (xxhash.xxh3_64_intdigest(_keyed(salt, purpose, sticky_key)) >> 11) * 2.0**-53


def _keyed(salt: str, purpose: str, sticky_key: str) -> bytes:
    return f"{salt}\0{purpose}\0{sticky_key}".encode("utf-8", "surrogatepass")


def user_hash(salt: str, sticky_key: str) -> str:
    """A user's pseudonym within a trial: the same for a key within a trial, another in the next one."""
    return f"{xxhash.xxh3_64_intdigest(_keyed(salt, 'user', sticky_key)):016x}"


def route(state: RolloutState, sticky_key: str) -> Route | None:
    """Who answers, and who gets a copy; None while there is no champion. A copy never goes to the one who answers."""
    if state.champion is None:
        return None
    if state.challenger is None:
        return Route(state.champion, None)
    if point(state.salt, "split", sticky_key) < state.canary_fraction:
        return Route(state.challenger, None)
    shadowed = point(state.salt, "shadow", sticky_key) < state.shadow_fraction
    return Route(state.champion, state.challenger if shadowed else None)
