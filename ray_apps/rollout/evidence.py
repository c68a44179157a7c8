"""What a trial has shown so far: counts, failures and latency of both models since the present rollout state was published.

An arm is a model and the requests that were its to answer. An ``ArmCounts`` holds latencies in buckets that grow by a factor of 2^(1/8), so
a median is right to 4.5 % in at most a few hundred integers, whatever the traffic. Adding an answer costs one dictionary update; nothing
here reads a clock or a broker.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from schemas.record import Record

BUCKETS_PER_DOUBLING = 8
SHORTEST_S = 1e-7
"""Everything faster counts as this: it only keeps the logarithm finite."""
MAX_USERS = 10_000
"""Users of an arm that are told apart; more are not asked for, and are not remembered."""


@dataclass
class ArmCounts:
    """What became of the requests of one model version in one rollout state."""

    answers: int = 0
    """Answered to the end."""
    errors: int = 0
    """Failed, or out of time."""
    refusals: int = 0
    """Refused by this model, and answered by the other: not the fault of the request."""
    cancellations: int = 0
    """Given up by the client, or by a gateway that stopped, before the end: neither a success nor a failure."""
    latency_buckets: dict[int, int] = field(default_factory=dict)
    users: set[str] = field(default_factory=set)
    """Hashes of the users who got an answer with a measured time."""

    @property
    def requests(self) -> int:
        """Requests that say whether the model works."""
        return self.answers + self.errors + self.refusals

    @property
    def failures(self) -> int:
        """Errors, and refusals of what the other model answers."""
        return self.errors + self.refusals

    @property
    def measured(self) -> int:
        """Answers whose time per token is known: the only ones that count for a model."""
        return sum(self.latency_buckets.values())

    @property
    def error_rate(self) -> float:
        """Share of requests that failed; 0 without requests."""
        return self.failures / self.requests if self.requests else 0.0

    @property
    def cancelled_rate(self) -> float:
        """Share of all requests that nobody waited for; 0 without requests."""
        total = self.requests + self.cancellations
        return self.cancellations / total if total else 0.0

    def add_answer(self, engine_s: float | None, completion_tokens: int, user: str | None = None) -> None:
        """Count an answer. One without tokens, or of an engine that was not timed, says nothing about the time per token."""
        self.answers += 1
        if engine_s is None or completion_tokens <= 0:
            return
        seconds = max(engine_s / completion_tokens, SHORTEST_S)
        bucket = math.floor(math.log2(seconds) * BUCKETS_PER_DOUBLING)
        self.latency_buckets[bucket] = self.latency_buckets.get(bucket, 0) + 1
        if user is not None and len(self.users) < MAX_USERS:
            self.users.add(user)

    def median_s_per_token(self) -> float | None:
        """Median of the engine's time per completion token in seconds, None without any; the geometric middle of its bucket."""
        remaining = (self.measured + 1) // 2
        for bucket in sorted(self.latency_buckets):
            remaining -= self.latency_buckets[bucket]
            if remaining <= 0:
                return float(2 ** ((bucket + 0.5) / BUCKETS_PER_DOUBLING))
        return None

    def summary(self) -> dict[str, Any]:
        """Numbers for people and for the rollout log."""
        median = self.median_s_per_token()
        return {
            "answers": self.answers,
            "measured": self.measured,
            "errors": self.errors,
            "refusals": self.refusals,
            "cancellations": self.cancellations,
            "users": len(self.users),
            "median_s_per_token": None if median is None else float(f"{median:.4g}"),
        }


class LossComparison(Record):
    """Losses of both models on the same validation rows."""

    status: Literal["pending", "measured", "unavailable"] = "pending"
    """``unavailable``: the dataset has no validation rows, so there is nothing to wait for."""
    dataset_version: int | None = None
    """Whose validation rows: those of the dataset that the challenger was trained on."""
    champion_loss: float | None = None
    """Nats per token."""
    challenger_loss: float | None = None
    """Nats per token."""


@dataclass(frozen=True)
class Evidence:
    """What ``policy.decide`` rests on. Tallies cover the present rollout state only."""

    champion: ArmCounts = field(default_factory=ArmCounts)
    challenger: ArmCounts = field(default_factory=ArmCounts)
    unanswered: int = 0
    """Champion answers since the challenger last gave an answer with a measured time, or failed."""
    validation: LossComparison = field(default_factory=LossComparison)

    def summary(self) -> dict[str, Any]:
        """Numbers for people and for the rollout log."""
        return {
            "champion": self.champion.summary(),
            "challenger": self.challenger.summary(),
            "unanswered": self.unanswered,
            "validation": self.validation.model_dump(mode="json"),
        }
