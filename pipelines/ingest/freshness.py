"""How far ingest is behind, in numbers: freshness of what a version committed, lag of what waits. Pure.

Freshness is the time from a record's own timestamp (Kafka's CreateTime, the producer's clock, or LogAppendTime) to the commit of the version
that took it in. Lag is what a partition holds beyond the newest version: its offsets, and a bound on the age of the oldest of them.
Clocks that disagree cannot make either negative.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from schemas.manifest import OffsetRange

Ages = npt.NDArray[np.float64]


class Lag(NamedTuple):
    """What one partition holds beyond the newest version."""

    num_records: int
    seconds: float


class Freshness(NamedTuple):
    """Seconds from produce to commit over the records of one version."""

    p50_s: float
    p95_s: float
    max_s: float


@dataclass(frozen=True)
class VersionTimes:
    """What a version cost and how fresh it was."""

    size_bytes: int
    """Keys and values read, and documents that lie outside their records."""
    commit_s: float
    """From fixing its ranges to its publication."""
    ages_s: Ages
    """Of its records at the commit; those without a timestamp are left out."""
    lag: Mapping[int, Lag]
    """By partition, after it."""

    @property
    def freshness(self) -> Freshness | None:
        """None without a single timestamp."""
        if not len(self.ages_s):
            return None
        p50, p95 = np.quantile(self.ages_s, (0.5, 0.95))
        return Freshness(float(p50), float(p95), float(self.ages_s.max()))

    @property
    def attributes(self) -> dict[str, int | float]:
        """For the version's span."""
        freshness = self.freshness._asdict() if self.freshness else {}
        lag = self.lag.values()
        return {
            "headrace.size_bytes": self.size_bytes,
            "headrace.lag_records": sum(item.num_records for item in lag),
            "headrace.lag_s": max((item.seconds for item in lag), default=0.0),
            **{f"headrace.freshness_{name}": value for name, value in freshness.items()},
        }

    def told(self) -> dict[str, Any]:
        """For ``ingest --json``."""
        freshness = self.freshness
        return {
            "size_bytes": self.size_bytes,
            "commit_s": round(self.commit_s, 3),
            "freshness_s": {name.removesuffix("_s"): round(value, 3) for name, value in freshness._asdict().items()} if freshness else None,
            "lag": {partition: {"records": lag.num_records, "seconds": round(lag.seconds, 3)} for partition, lag in self.lag.items()},
        }


class LagWatch:
    """Knows the lag of each partition from what is seen of it; times are seconds since the epoch."""

    def __init__(self) -> None:
        self._waiting: dict[int, OffsetRange] = {}
        self._read_up_to_s: dict[int, float] = {}
        """A time before which nothing that waits was produced: the newest timestamp that was committed, or when the partition was seen empty."""

    def seen(self, waiting: Mapping[int, OffsetRange], now_s: float) -> None:
        """So much waited at a time."""
        self._waiting = dict(waiting)
        for partition, span in waiting.items():
            if not len(span):
                self._read_up_to_s[partition] = now_s

    def committed(self, taken: Mapping[int, OffsetRange], newest_s: Mapping[int, float]) -> None:
        """A version took these ranges; ``newest_s`` are the newest timestamps in them."""
        for partition, span in taken.items():
            before = self._waiting.get(partition, span)
            self._waiting[partition] = OffsetRange(start=span.end, end=max(span.end, before.end))
        for partition, seconds in newest_s.items():
            self._read_up_to_s[partition] = max(seconds, self._read_up_to_s.get(partition, seconds))

    def lag(self, now_s: float) -> dict[int, Lag]:
        """By partition. Before anything of a partition is known, its seconds count from now."""
        return {
            partition: Lag(len(span), max(0.0, now_s - self._read_up_to_s.setdefault(partition, now_s)) if len(span) else 0.0)
            for partition, span in sorted(self._waiting.items())
        }
