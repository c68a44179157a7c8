"""Where documents will stand in shards: a function of their lengths alone, so it is known before anybody has the tokens in hand.

The documents of one split of one version follow each other, each with its end-of-text token, in as few shards as their capacity allows. A
document is never cut by the end of a shard; one that is longer than a shard gets a shard of its own, as long as it needs.
Costs nanoseconds per document; holds two numbers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Spans:
    """Where documents stand, one element per document in the order in which they were added."""

    shard: list[str]
    """Path of the shard, relative to the root."""
    row: Numbers
    """Row in which the document begins …"""
    start: npt.NDArray[np.int32]
    """… and its position in that row."""
    length: Numbers
    """Tokens, the end-of-text token included."""


class Run(NamedTuple):
    """Consecutive documents of one call that stand in one shard."""

    shard: int
    """Number of the shard among those of its split in the version."""
    first: int
    """Documents first, first + 1, … stop - 1 of the call."""
    stop: int
    start: int
    """Token position in the shard at which the first of them begins."""


class Packing:
    """Of one split of one version. A shard is complete when documents are placed in the next one, or when there are no more."""

    def __init__(self, sequence_length: int, shard_rows: int) -> None:
        """``shard_rows``: rows of S tokens that a shard has at most, unless one document needs more."""
        self.capacity = sequence_length * shard_rows
        self._shard, self._num_tokens = 0, 0

    def place(self, lengths: Numbers) -> list[Run]:
        """The runs, in order, of the next documents, of so many tokens each."""
        ends = np.cumsum(lengths)
        runs: list[Run] = []
        first = before = 0
        while first < len(lengths):
            stop = self._num_that_fit(ends, first, before)
            if stop == first:
                self._shard, self._num_tokens = self._shard + 1, 0
                continue
            runs.append(Run(self._shard, first, stop, self._num_tokens))
            end = int(ends[stop - 1])
            self._num_tokens += end - before
            first, before = stop, end
        return runs

    def _num_that_fit(self, ends: Numbers, first: int, before: int) -> int:
        """Index after the last document that the open shard still takes; an empty shard takes at least one."""
        stop = int(np.searchsorted(ends, before + self.capacity - self._num_tokens, side="right"))
        return max(stop, first + (self._num_tokens == 0))


def starts_of(runs: Sequence[Run], lengths: Numbers) -> Numbers:
    """Token position in its shard at which each document begins."""
    starts = np.cumsum(lengths) - lengths
    for run in runs:
        starts[run.first : run.stop] += run.start - starts[run.first]
    return starts


def spans_of(runs: Sequence[Run], lengths: Numbers, sequence_length: int, path_of: Callable[[int], str]) -> Spans:
    """The documents' places as the audit trail says them. ``path_of(number)`` names the shards."""
    row, start = np.divmod(starts_of(runs, lengths), sequence_length)
    paths = [path for run in runs for path in [path_of(run.shard)] * (run.stop - run.first)]
    return Spans(shard=paths, row=row, start=start.astype(np.int32), length=lengths)
