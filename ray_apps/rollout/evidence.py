"""What a trial has shown so far: counts, errors and latency of both models since the present rollout state was published.

A ``ArmCounts`` holds latencies in buckets that grow by a factor of 2^(1/8), so a median is right to 4.5 % in at most a few hundred
integers, whatever the traffic. Adding an answer costs one dictionary update; nothing here reads a clock or a broker.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from schemas.record import Record

BUCKETS_PER_DOUBLING = 8
SHORTEST_S = 1e-7
"""Everything faster counts as this: it only keeps the logarithm finite."""


@dataclass
class ArmCounts:
    """Answers of one model version in one rollout state."""

    answers: int = 0
    errors: int = 0
    latency_buckets: dict[int, int] = field(default_factory=dict)

    @property
    def requests(self) -> int:
        """Answers and errors."""
        return self.answers + self.errors

    @property
    def error_rate(self) -> float:
        """Share of requests that ended in an error; 0 without requests."""
        return self.errors / self.requests if self.requests else 0.0

    def add_answer(self, latency_s: float, completion_tokens: int) -> None:
        """Count an answer. One without tokens says nothing about the time per token."""
        self.answers += 1
        if completion_tokens > 0:
            seconds = max(latency_s / completion_tokens, SHORTEST_S)
            bucket = math.floor(math.log2(seconds) * BUCKETS_PER_DOUBLING)
            self.latency_buckets[bucket] = self.latency_buckets.get(bucket, 0) + 1

    def add_error(self) -> None:
        """Count a request that was not answered."""
        self.errors += 1

    def median_s_per_token(self) -> float | None:
        """Median of latency per completion token in seconds, None without any; the geometric middle of its bucket."""
        remaining = (sum(self.latency_buckets.values()) + 1) // 2
        for bucket in sorted(self.latency_buckets):
            remaining -= self.latency_buckets[bucket]
            if remaining <= 0:
                return float(2 ** ((bucket + 0.5) / BUCKETS_PER_DOUBLING))
        return None

    def summary(self) -> dict[str, Any]:
        """Numbers for people and for the rollout log."""
        median = self.median_s_per_token()
        return {"answers": self.answers, "errors": self.errors, "median_s_per_token": None if median is None else round(median, 6)}


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
    """Champion answers since the challenger last answered or failed."""
    validation: LossComparison = field(default_factory=LossComparison)

    def summary(self) -> dict[str, Any]:
        """Numbers for people and for the rollout log."""
        return {
            "champion": self.champion.summary(),
            "challenger": self.challenger.summary(),
            "unanswered": self.unanswered,
            "validation": self.validation.model_dump(mode="json"),
        }
