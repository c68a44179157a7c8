"""Leader epochs of one partition: which start of the broker wrote the records from which offset on.

The broker takes a larger epoch at each start, and every batch carries that of the start that wrote it. So a log that lost its end (a power cut, a
folder that was restored from a copy) and grew again shows where: the epoch of a lost record ends where the next one begins.
Nothing is kept beside the batches: opening the log reads their headers anyway. Memory: two integers for each start that wrote something.
Source: KIP-101, KIP-320; the answers are those of Apache Kafka's leader epoch cache.
"""

import time
from bisect import bisect_right
from typing import NamedTuple

UNKNOWN = -1
BEGINNING_S = 1_767_225_600
"""2026-01-01. Epochs count seconds from there, so that they fit into 31 bits until 2094."""


class EpochEnd(NamedTuple):
    """The largest epoch up to the one that was asked for, and the offset where it ends; both UNKNOWN for one that is still to come."""

    epoch: int
    offset: int


NOT_BEGUN = EpochEnd(UNKNOWN, UNKNOWN)


def next_epoch(last: int) -> int:
    """The epoch of a new start. Seconds, and no plain count: a folder that was restored from a copy must not take an epoch for a second time."""
    return max(last + 1, int(time.time()) - BEGINNING_S)


class Epochs:
    """Epochs in the order in which they began; both lists ascend."""

    def __init__(self) -> None:
        self._epochs: list[int] = []
        self._starts: list[int] = []

    @property
    def latest(self) -> int:
        """The epoch under which the next batch is written."""
        return self._epochs[-1]

    def begin(self, epoch: int, offset: int) -> None:
        """Records from ``offset`` on are written under this epoch, if it is a newer one. An epoch that wrote nothing is forgotten."""
        if self._epochs and epoch <= self._epochs[-1]:
            return
        if self._starts and self._starts[-1] == offset:
            self._epochs.pop()
            self._starts.pop()
        self._epochs.append(epoch)
        self._starts.append(offset)

    def of(self, offset: int) -> int:
        """The epoch of the record at this offset; the oldest one that is known for what was deleted."""
        return self._epochs[max(bisect_right(self._starts, offset) - 1, 0)]

    def end_of(self, epoch: int, next_offset: int) -> EpochEnd:
        """Where an epoch ends in a log that ends before ``next_offset``. Of an epoch before all that are known: where these begin."""
        if epoch < 0 or epoch > self.latest:
            return NOT_BEGUN
        index = bisect_right(self._epochs, epoch)
        known = self._epochs[index - 1] if index else epoch
        return EpochEnd(known, self._starts[index] if index < len(self._starts) else next_offset)
