"""Leader epochs of one partition: at which offset each start of the broker began to write.

The broker takes a larger epoch at each start, and every batch carries the epoch of the start that wrote it. So a log that lost its end (a power
cut, a folder that was restored from a copy) and grew again shows the place: the epoch of a lost record ends where the next epoch begins.
Epochs are stored in the batches only; opening the log reads their headers anyway. Memory: two integers for each start that wrote a batch.
Source: KIP-101, KIP-320; the answers are those of Apache Kafka's leader epoch cache.
"""

import secrets
import time
from bisect import bisect_right
from typing import NamedTuple

UNKNOWN = -1
BEGINNING_S = 1_767_225_600
"""2026-01-01. Epochs count seconds since then, so they fit into 31 bits until 2094."""


class EpochEnd(NamedTuple):
    """The largest epoch up to the one that was asked for, and the offset where it ends; both UNKNOWN for an epoch that has not begun."""

    epoch: int
    offset: int


NOT_BEGUN = EpochEnd(UNKNOWN, UNKNOWN)


def next_epoch(last: int) -> int:
    """The epoch of a new start. It counts seconds, not starts: a folder that was restored from a copy must not use an epoch twice.

    Where the clock was ahead before and has been set back, chance sees to that.
    """
    now = int(time.time()) - BEGINNING_S
    return now if now > last else last + 1 + secrets.randbelow(1 << 16)


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
        """Records from ``offset`` on are written under this epoch, if it is newer. An epoch without records is forgotten."""
        if self._epochs and epoch <= self._epochs[-1]:
            return
        if self._starts and self._starts[-1] == offset:
            self._epochs.pop()
            self._starts.pop()
        self._epochs.append(epoch)
        self._starts.append(offset)

    def of(self, offset: int) -> int:
        """The epoch of the record at this offset; for deleted records the oldest known epoch."""
        return self._epochs[max(bisect_right(self._starts, offset) - 1, 0)]

    def end_of(self, epoch: int, next_offset: int) -> EpochEnd:
        """Where an epoch ends in a log that ends before ``next_offset``. For an epoch older than all known ones: where the oldest one begins."""
        if epoch < 0 or epoch > self.latest:
            return NOT_BEGUN
        index = bisect_right(self._epochs, epoch)
        known = self._epochs[index - 1] if index else epoch
        return EpochEnd(known, self._starts[index] if index < len(self._starts) else next_offset)
