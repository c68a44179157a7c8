"""How much the next dataset version takes in, and in which portions it is read: pure functions of what waits and what is known of it.

Everything here is decided before the run, as offsets: a version is what lies in its ranges, however large its records turn out to be. A
wrong guess at their size makes a larger or a smaller version, never another one. The guess is the mean size of each partition's records in
the newest version that read any (``record_bytes`` in its manifest), so a version that is tried again after a crash has the same ranges.

Three limits hold together: records, bytes, and in ``--follow`` the time that a version may take at the pace of those before it. What waits
is less than they allow when the stream is caught up, so versions are small and fresh then, and as large as they may be when it is behind.
Within them partitions are served fairly: none waits while another gets more than it.
"""

from collections.abc import Mapping
from typing import NamedTuple

from pipelines.kafka.shares import fair_shares
from schemas.manifest import OffsetRange
from schemas.settings_data import IngestSettings

UNKNOWN_RECORD_BYTES = 4_096
"""Guess at the size of records of a partition of which none was read yet."""
NEW_PACE_WEIGHT = 0.3
GROWTH = 2
"""A version takes at most so many times what the one before it took, once the pace is known to the limit."""


class Limits(NamedTuple):
    """Most that one version takes in."""

    num_records: int
    size_bytes: int


def plan_batch(waiting: Mapping[int, OffsetRange], record_bytes: Mapping[int, int], limits: Limits) -> dict[int, OffsetRange]:
    """What of the waiting offsets the next version takes; every partition is in the answer, with start == end if it gets nothing.

    Every partition with something waiting gets at least one offset, whatever the limits, so that nothing is ever stuck.
    """
    numbers = {partition: len(span) for partition, span in waiting.items()}
    by_records = fair_shares(numbers, max(limits.num_records, len(numbers)))
    sizes = {partition: number * _size(record_bytes, partition) for partition, number in by_records.items()}
    by_bytes = fair_shares(sizes, limits.size_bytes)
    taken = {partition: min(number, max(1, by_bytes[partition] // _size(record_bytes, partition))) for partition, number in by_records.items()}
    return {partition: OffsetRange(start=span.start, end=span.start + taken[partition]) for partition, span in waiting.items()}


def slice_records(partitions: Mapping[int, OffsetRange], record_bytes: Mapping[int, int], settings: IngestSettings) -> dict[int, int]:
    """Most offsets of one read task in each partition: fewer where records are large, at least one."""
    return {partition: max(1, min(settings.slice_records, settings.slice_bytes // _size(record_bytes, partition))) for partition in partitions}


def new_record_bytes(before: Mapping[int, int], num_records: Mapping[int, int], size_bytes: Mapping[int, int]) -> dict[int, int]:
    """Mean sizes after a version that read so much of each partition; partitions of which it read nothing keep theirs."""
    measured = {partition: -(-size_bytes[partition] // number) for partition, number in num_records.items() if number}
    return {**before, **measured}


def _size(record_bytes: Mapping[int, int], partition: int) -> int:
    return max(1, record_bytes.get(partition, UNKNOWN_RECORD_BYTES))


class Pace:
    """What a version costs by itself and what each of its records adds, learned from recent ones; limits the next to what fits into a target time.

    The two are told apart by a least-squares line through (records, seconds), newer versions counting more. Where a version's own cost leaves
    little of the target to its records, it takes so many that they cost as much as it does: a stream that is behind on a slow machine would
    spend its time on ever more versions of hardly anything, and stay behind.
    """

    def __init__(self, target_s: float, min_records: int) -> None:
        """``min_records`` is taken in any case: after a slow start there would be no way up otherwise."""
        self._target_s = target_s
        self._min_records = min_records
        self._weight, self._mean_records, self._mean_s = 0.0, 0.0, 0.0
        self._spread, self._covariance = 0.0, 0.0
        """Of the number of records, and of it with the seconds; weighted sums."""
        self._last_records = 0

    def committed(self, num_records: int, seconds: float) -> None:
        """A version of so many records took so long."""
        self._last_records = num_records
        before = self._weight * (1 - NEW_PACE_WEIGHT)
        self._weight = before + NEW_PACE_WEIGHT
        more_records, more_s, share = num_records - self._mean_records, seconds - self._mean_s, NEW_PACE_WEIGHT / self._weight
        self._spread = (1 - NEW_PACE_WEIGHT) * self._spread + before * share * more_records**2
        self._covariance = (1 - NEW_PACE_WEIGHT) * self._covariance + before * share * more_records * more_s
        self._mean_records += share * more_records
        self._mean_s += share * more_s

    def limit(self, max_records: int) -> int:
        """Most records of the next version; no more than GROWTH times those of the last one, for what is learned of small versions is not exact."""
        if not self._weight:
            return max_records
        per_record_s = max(self._per_record_s(), 1e-9)
        own_s = self._mean_s - per_record_s * self._mean_records
        fitting = int(max(self._target_s - own_s, own_s) / per_record_s)
        return min(max_records, max(self._min_records, min(fitting, GROWTH * self._last_records)))

    def _per_record_s(self) -> float:
        """Between nothing and what it is if a version costs nothing by itself; a third of that while all were of one size: the next one will tell."""
        mean_s = self._mean_s / max(self._mean_records, 1.0)
        if self._spread <= 1e-6 * self._mean_records**2:
            return mean_s / 3
        return min(max(self._covariance / self._spread, 0.0), mean_s)
