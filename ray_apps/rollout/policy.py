"""The rollout policy: a pure function from (state, evidence) to the next state, and the transitions a person may ask for.

    BOOTSTRAP            IDLE, no champion      -> IDLE, the first model is champion
    START                IDLE                   -> SHADOW
    ADVANCE              SHADOW                 -> CANARY     enough shadow answers, guards hold
    PROMOTE              SHADOW*, CANARY        -> IDLE, the challenger is champion     (* only by hand)
    ABORT                SHADOW, CANARY         -> IDLE, the champion stays
    SET                  any                    -> what the person says, held
    HOLD                 any                    -> the same, held
    RELEASE              held                   -> the same, the loop decides again

A state that is held is a person's word: the policy guards it (ABORT), and neither advances nor promotes; what follows from it stays held
until START or RELEASE.
Invariants: there is never more than one champion; only a challenger (or, by SET and BOOTSTRAP, a version named by a person or
the very first one) becomes champion; ABORT keeps the champion; the salt changes with START, and with SET where it names another pair, so
that nobody changes groups while a pair is compared. A challenger advances on answers that it gave to the end and whose time was measured,
of enough users. Guards: validation loss; error rate, refusals included; answers that clients did not wait for, compared between the two;
latency ratio; and a challenger that does not answer at all, which is judged by the champion's traffic and not by the clock: a quiet
service proves nothing.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ray_apps.rollout.evidence import Evidence
from schemas.errors import RolloutError
from schemas.rollout import Decision, Phase, RolloutState
from schemas.settings import RolloutSettings

MIN_GUARD_REQUESTS = 10
"""Requests of a model before its error rate or median latency can stop a trial early; at the end of a phase the guards apply anyway."""


@dataclass(frozen=True)
class Author:
    """Who makes a transition, and when."""

    now: datetime
    automatic: bool


def decide(state: RolloutState, evidence: Evidence, settings: RolloutSettings, now: datetime) -> RolloutState | None:
    """The next state, or None while the evidence is not enough. An idle state never moves by itself."""
    if state.phase is Phase.IDLE:
        return None
    author = Author(now, automatic=True)
    tripped = guard(state, evidence, settings)
    if tripped:
        return abort(state, tripped, evidence.summary(), author)
    if missing(state, evidence, settings):
        return None
    if state.phase is Phase.SHADOW:
        return _advance(state, evidence, settings, author)
    return promote(state, _praise(state, evidence), evidence.summary(), author)


def guard(state: RolloutState, evidence: Evidence, settings: RolloutSettings) -> str | None:
    """A sentence that says which guard tripped, or None. The first of: loss, errors, cancellations, latency, silence."""
    enough = _enough(state, settings)
    return (
        _loss_guard(state, evidence, settings)
        or _error_guard(state, evidence, settings, enough)
        or _cancellation_guard(state, evidence, settings, enough)
        or _latency_guard(state, evidence, settings, enough)
        or _silence_guard(state, evidence, settings)
    )


def missing(state: RolloutState, evidence: Evidence, settings: RolloutSettings) -> list[str]:
    """What the next step still waits for, in sentences; empty when the phase's evidence is complete and the loop decides."""
    if state.phase is Phase.IDLE:
        return ["a challenger"]
    if state.person_decides:
        return ["a person: `headrace rollout promote`, `abort` or `set`, or `release`, after which the loop decides"]
    kind = "shadow" if state.phase is Phase.SHADOW else "canary"
    needed, seen = _needed(state, settings), evidence.challenger.measured
    sentences = []
    if seen < needed:
        sentences.append(f"{needed - seen} more {kind} answers of model {state.challenger} ({seen} of {needed})")
    needed_users, users = min(settings.min_users, needed), len(evidence.challenger.users)
    if users < needed_users:
        sentences.append(f"answers of model {state.challenger} to {needed_users - users} more users ({users} of {needed_users})")
    if needed and state.canary_fraction < 1 and _champion_median(state, evidence, _enough(state, settings)) is None:
        sentences.append(f"{_enough(state, settings)} answers of model {state.champion} to compare the time per token with")
    if evidence.validation.status == "pending":
        sentences.append(f"the validation losses of models {state.champion} and {state.challenger} on the same rows")
    return sentences


def bootstrap(state: RolloutState | None, champion: int, author: Author, salt: str) -> RolloutState:
    """The first model becomes champion. Raises RolloutError if there is a champion."""
    if state is not None and state.champion is not None:
        raise RolloutError(f"model {state.champion} is champion already; a new model starts with `headrace rollout shadow {champion}`")
    reason = f"model {champion} is the first model, there is nothing to compare it with"
    return _idle(state, champion, salt=salt, decision=Decision.BOOTSTRAP, reason=reason, evidence={}, author=author)


def start(
    state: RolloutState | None, challenger: int, settings: RolloutSettings, *, reason: str, evidence: dict[str, Any], author: Author, salt: str
) -> RolloutState:
    """A new challenger gets copies of requests. Raises RolloutError if a trial runs or there is no other champion."""
    if state is None or state.champion is None:
        raise RolloutError(f"there is no champion to compare model {challenger} with; name one with `headrace rollout set --champion VERSION`")
    if author.automatic and state.person_decides:
        raise RolloutError(f"a person decides what is served; model {challenger} waits until `headrace rollout release`")
    if state.challenger is not None:
        raise RolloutError(f"model {state.challenger} is on trial ({state.phase.value}); promote or abort it before model {challenger} can start")
    if state.champion == challenger:
        raise RolloutError(f"model {challenger} is the champion; a challenger must be another version")
    return RolloutState(
        number=state.number + 1,
        created_at=author.now,
        phase=Phase.SHADOW,
        champion=state.champion,
        challenger=challenger,
        shadow_fraction=settings.shadow_fraction,
        salt=salt,
        held=False,
        decision=Decision.START,
        reason=reason,
        evidence=evidence,
        automatic=author.automatic,
    )


def promote(state: RolloutState | None, reason: str, evidence: dict[str, Any], author: Author) -> RolloutState:
    """The challenger becomes champion. Raises RolloutError without a challenger."""
    if state is None or state.challenger is None:
        raise RolloutError("there is no challenger to promote; start one with `headrace rollout shadow VERSION`")
    return _idle(state, state.challenger, salt=state.salt, decision=Decision.PROMOTE, reason=reason, evidence=evidence, author=author)


def abort(state: RolloutState | None, reason: str, evidence: dict[str, Any], author: Author) -> RolloutState:
    """The challenger is withdrawn, the champion stays. Raises RolloutError without a challenger."""
    if state is None or state.challenger is None:
        raise RolloutError("there is no trial to abort; `headrace rollout show` says what is served")
    return _idle(state, state.champion, salt=state.salt, decision=Decision.ABORT, reason=reason, evidence=evidence, author=author)


def set_shares(
    state: RolloutState | None, *, champion: int, challenger: int | None, share: float | None, settings: RolloutSettings, author: Author, salt: str
) -> RolloutState:
    """What a person says. A challenger with share 0 gets shadow copies only. Raises RolloutError for what makes no sense.

    ``salt`` is for a new pair; while the pair stays, so does its salt, and a share that grows only moves users to the challenger.
    """
    _check_shares(champion, challenger, share)
    same_pair = state is not None and challenger is not None and (state.champion, state.challenger) == (champion, challenger)
    fraction = settings.canary_fraction if share is None else share
    phase = Phase.IDLE if challenger is None else Phase.CANARY if fraction else Phase.SHADOW
    return RolloutState(
        number=state.number + 1 if state else 1,
        created_at=author.now,
        phase=phase,
        champion=champion,
        challenger=challenger,
        canary_fraction=fraction if phase is Phase.CANARY else 0.0,
        shadow_fraction=settings.shadow_fraction if phase is Phase.SHADOW else 0.0,
        salt=state.salt if state is not None and same_pair else salt,
        held=True,
        decision=Decision.SET,
        reason=_set_reason(champion, challenger, fraction),
        automatic=author.automatic,
    )


def hold(state: RolloutState | None, reason: str, author: Author) -> RolloutState:
    """A person decides from now on. Raises RolloutError if that is so already, or if nothing is served."""
    if state is None:
        raise RolloutError("nothing is served yet, so there is nothing to hold; the first registered model becomes champion")
    if state.person_decides:
        raise RolloutError("a person decides already; `headrace rollout release` gives the decisions back to the loop")
    return _handed_over(state, Decision.HOLD, reason, author)


def release(state: RolloutState | None, reason: str, author: Author) -> RolloutState:
    """The loop decides from now on. Raises RolloutError if that is so already."""
    if state is None or not state.person_decides:
        raise RolloutError("nothing is held: the loop decides already")
    return _handed_over(state, Decision.RELEASE, reason, author)


def _handed_over(state: RolloutState, decision: Decision, reason: str, author: Author) -> RolloutState:
    """The same versions and shares under another hand. Evidence begins anew, as with every state."""
    changes = {
        "number": state.number + 1,
        "created_at": author.now,
        "held": decision is Decision.HOLD,
        "decision": decision,
        "reason": reason,
        "evidence": {},
        "automatic": author.automatic,
    }
    return RolloutState.model_validate(state.model_dump() | changes)


def _set_reason(champion: int, challenger: int | None, fraction: float) -> str:
    if challenger is None:
        return f"set by hand: model {champion} answers everything"
    return f"set by hand: model {champion} is champion, model {challenger} gets {fraction:.0%} of the traffic"


def _check_shares(champion: int, challenger: int | None, share: float | None) -> None:
    if challenger is None and share is not None:
        raise RolloutError(f"a share of {share} needs a challenger: add --challenger VERSION")
    if challenger == champion:
        raise RolloutError(f"model {champion} cannot be champion and challenger; name two versions")
    if share is not None and not 0 <= share <= 1:
        raise RolloutError(f"the share is {share}; it must be between 0 and 1")


def _idle(
    state: RolloutState | None, champion: int | None, *, salt: str, decision: Decision, reason: str, evidence: dict[str, Any], author: Author
) -> RolloutState:
    return RolloutState(
        number=state.number + 1 if state else 1,
        created_at=author.now,
        phase=Phase.IDLE,
        champion=champion,
        challenger=None,
        salt=salt,
        held=state is not None and state.person_decides,
        decision=decision,
        reason=reason,
        evidence=evidence,
        automatic=author.automatic,
    )


def _advance(state: RolloutState, evidence: Evidence, settings: RolloutSettings, author: Author) -> RolloutState:
    changes = {
        "number": state.number + 1,
        "created_at": author.now,
        "phase": Phase.CANARY,
        "canary_fraction": settings.canary_fraction,
        "shadow_fraction": 0.0,
        "decision": Decision.ADVANCE,
        "reason": _praise(state, evidence),
        "evidence": evidence.summary(),
        "automatic": author.automatic,
    }
    return RolloutState.model_validate(state.model_dump() | changes)


def _needed(state: RolloutState, settings: RolloutSettings) -> int:
    """Challenger answers that the phase asks for; none in a shadow phase that copies nothing."""
    if state.phase is Phase.CANARY:
        return settings.min_canary_requests
    return settings.min_shadow_requests if state.shadow_fraction > 0 else 0


def _enough(state: RolloutState, settings: RolloutSettings) -> int:
    """Requests of a model from which on its rates and its median say something."""
    return min(MIN_GUARD_REQUESTS, _needed(state, settings))


def _champion_median(state: RolloutState, evidence: Evidence, enough: int) -> float | None:
    """The champion's time per token in this phase, or, while it has too few answers here, in the phase before; None without either."""
    if evidence.champion.measured >= max(enough, 1):
        return evidence.champion.median_s_per_token()
    before = state.evidence.get("champion")
    median = before.get("median_s_per_token") if isinstance(before, dict) else None
    return float(median) if median else None


def _loss_guard(state: RolloutState, evidence: Evidence, settings: RolloutSettings) -> str | None:
    seen = evidence.validation
    if seen.status != "measured" or seen.champion_loss is None or seen.challenger_loss is None:
        return None
    increase = seen.challenger_loss - seen.champion_loss
    if increase <= settings.max_loss_increase:  # false for a NaN loss too, which must trip
        return None
    return (
        f"model {state.challenger} has validation loss {seen.challenger_loss:.4f}, model {state.champion} {seen.champion_loss:.4f} on the same rows "
        f"of dataset {seen.dataset_version}: {increase:+.4f}, at most +{settings.max_loss_increase} is allowed"
    )


def _error_guard(state: RolloutState, evidence: Evidence, settings: RolloutSettings, enough: int) -> str | None:
    challenger = evidence.challenger
    if challenger.requests < enough or challenger.error_rate <= settings.max_error_rate:
        return None
    refused = f", {challenger.refusals} of them by refusing what model {state.champion} answered" if challenger.refusals else ""
    return (
        f"model {state.challenger} failed {challenger.failures} of {challenger.requests} requests ({challenger.error_rate:.1%}){refused}, "
        f"at most {settings.max_error_rate:.1%} is allowed"
    )


def _cancellation_guard(state: RolloutState, evidence: Evidence, settings: RolloutSettings, enough: int) -> str | None:
    """Clients give up on both models; on one that hangs they give up more often."""
    champion, challenger = evidence.champion, evidence.challenger
    total = challenger.requests + challenger.cancellations
    if total < max(enough, 1) or challenger.cancelled_rate - champion.cancelled_rate <= settings.max_cancelled_increase:
        return None
    return (
        f"{challenger.cancellations} of {total} requests to model {state.challenger} were given up before it had answered "
        f"({challenger.cancelled_rate:.1%}), of model {state.champion} {champion.cancelled_rate:.1%}: "
        f"at most {settings.max_cancelled_increase:.1%} more is allowed"
    )


def _latency_guard(state: RolloutState, evidence: Evidence, settings: RolloutSettings, enough: int) -> str | None:
    champion, challenger = _champion_median(state, evidence, enough), evidence.challenger.median_s_per_token()
    if champion is None or challenger is None or evidence.challenger.measured < max(enough, 1):
        return None
    if challenger <= settings.max_latency_ratio * champion:
        return None
    return (
        f"model {state.challenger} takes {challenger * 1e3:.1f} ms per token, model {state.champion} {champion * 1e3:.1f} ms: "
        f"{challenger / champion:.1f} times as long, at most {settings.max_latency_ratio} is allowed"
    )


def _silence_guard(state: RolloutState, evidence: Evidence, settings: RolloutSettings) -> str | None:
    """The bound grows as the challenger's share shrinks: at 20 % of the traffic, five times as many requests must pass it by."""
    share = state.canary_fraction if state.phase is Phase.CANARY else state.shadow_fraction
    if evidence.unanswered * share < settings.max_unanswered_requests:
        return None
    return (
        f"model {state.challenger} gave no answer that can be judged while model {state.champion} gave {evidence.unanswered}: "
        f"it is not running, hangs, or says nothing"
    )


def _praise(state: RolloutState, evidence: Evidence) -> str:
    """Why the guards hold, with the values."""
    challenger, validation = evidence.challenger, evidence.validation
    parts = [
        f"model {state.challenger} answered {challenger.answers} {state.phase.value} requests of {len(challenger.users)} users "
        f"with {challenger.failures} errors"
    ]
    champion_s, challenger_s = _champion_median(state, evidence, MIN_GUARD_REQUESTS), challenger.median_s_per_token()
    if champion_s and challenger_s:
        parts.append(f"takes {challenger_s / champion_s:.2f} times model {state.champion}'s time per token")
    if validation.champion_loss is not None and validation.challenger_loss is not None:
        parts.append(f"has validation loss {validation.challenger_loss:.4f} against {validation.champion_loss:.4f}")
    else:
        parts.append("could not be compared by validation loss")
    return ", ".join(parts)
