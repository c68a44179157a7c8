"""Which stored fingerprints lie within Hamming distance k of a query? Exactly, without comparing with all of them.

Tiers. The base, usually mapped from a file (base.py) and perhaps shared out to several processes (shards.py), holds what was compacted.
Immutable tiers in memory hold what came since, and a small growing tier the newest. A growing tier that is full becomes an
immutable one, together with those that are not at least MERGE_RATIO times its size: their sizes form a geometric series, so there
are few of them, and a fingerprint is sorted again only a logarithmic number of times.

Answers depend on what is stored, not on how it came in. Layouts, memory and cost of a query: layout.py.
"""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from pipelines.dedup.growing import GROWING_ROWS, contents, empty_growing, find_all_in_growing, insert_all
from pipelines.dedup.layout import choose_layout
from pipelines.dedup.tables import Found, Tables, build_tables, find_within, stored

MERGE_RATIO = 4
LARGE_TIER_ROWS = 8_192
"""A smaller tier changes soon, and takes less time to ask than to send."""
Lookup = Callable[[npt.NDArray[np.uint64], npt.NDArray[np.bool_]], Found]
"""(queries, which of them are wanted) -> what a tier holds within the distance."""


class FingerprintIndex:
    """Stored fingerprints, each with a row number of the caller's."""

    def __init__(self, max_hamming: int, fingerprints: npt.NDArray[np.uint64], rows: npt.NDArray[np.uint32], base: Lookup | None = None) -> None:
        """Over a base with lower rows, if there is one. ``rows`` must ascend; they are what queries return."""
        self.max_hamming = max_hamming
        self._base = base
        self._tiers: list[Tables] = [_build(max_hamming, fingerprints, rows)] if len(rows) else []
        self.growing = empty_growing(max_hamming, 0)

    @property
    def num_rows(self) -> int:
        """Fingerprints stored, without the base."""
        return sum(tier.num_rows for tier in self._tiers) + int(self.growing.num_rows[0])

    def reserve(self, num_rows: int) -> None:
        """Make room for this many insertions into the growing tier."""
        if int(self.growing.num_rows[0]) > GROWING_ROWS:
            self._freeze()
        old, (fingerprints, rows) = self.growing, contents(self.growing)
        if len(rows) + num_rows > len(old.rows):
            self.growing = empty_growing(self.max_hamming, max(len(rows) + num_rows, GROWING_ROWS))
            insert_all(self.growing, fingerprints, rows)

    def add(self, fingerprints: npt.NDArray[np.uint64], rows: npt.NDArray[np.uint32]) -> None:
        """Store more fingerprints; their rows must be above all rows stored so far."""
        self.reserve(len(rows))
        insert_all(self.growing, fingerprints, rows)

    def find_in_base(self, queries: npt.NDArray[np.uint64], wanted: npt.NDArray[np.bool_]) -> Found:
        """What the base holds."""
        return merge_found([self._base(queries, wanted)] if self._base else [], len(queries))

    def find_in_tiers(self, queries: npt.NDArray[np.uint64], wanted: npt.NDArray[np.bool_], first_row: int = 0) -> Found:
        """What the immutable tiers in memory hold, from row ``first_row`` on."""
        parts = []
        for tier in self._tiers:
            if _end(tier) > first_row:
                found = find_within(tier, self.max_hamming, queries, wanted)
                parts.append(_from_row(found, first_row) if tier.first_row < first_row else found)
        return merge_found(parts, len(queries))

    def large_tiers(self) -> tuple[Tables, ...]:
        """The immutable tiers that are worth a copy for others, in row order: the sizes descend, so these are the first ones."""
        return tuple(itertools.takewhile(lambda tier: tier.num_rows >= LARGE_TIER_ROWS, self._tiers))

    def query(self, fingerprints: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """All pairs (query position, stored row) within the distance, sorted by position, then row."""
        wanted = np.ones(len(fingerprints), bool)
        parts = [self.find_in_base(fingerprints, wanted), self.find_in_tiers(fingerprints, wanted)]
        newest = Found(*find_all_in_growing(self.growing, self.max_hamming, fingerprints))
        found = merge_found([*parts, newest], len(fingerprints))
        positions = np.repeat(np.arange(len(fingerprints)), np.diff(found.starts))
        return positions, found.rows[np.lexsort((found.rows, positions))]

    def _freeze(self) -> None:
        """Turn the growing tier into an immutable one."""
        parts = [contents(self.growing)]
        while self._tiers and self._tiers[-1].num_rows < MERGE_RATIO * sum(len(rows) for _, rows in parts):
            parts.insert(0, stored(self._tiers.pop()))
        fingerprints, rows = (np.concatenate(column) for column in zip(*parts, strict=True))
        self._tiers.append(_build(self.max_hamming, fingerprints, rows))
        self.growing = empty_growing(self.max_hamming, 0)


def end_of(tiers: Sequence[Tables], first_row: int) -> int:
    """The row after the last one of these tiers, which follow ``first_row``."""
    return _end(tiers[-1]) if tiers else first_row


def _end(tier: Tables) -> int:
    return tier.first_row + len(tier.fingerprints)


def _from_row(found: Found, first_row: int) -> Found:
    """Without rows below ``first_row``."""
    later = found.rows >= first_row
    return Found(np.concatenate([[0], np.cumsum(later)])[found.starts], found.rows[later])


def found_by(found: Found, queries: slice) -> Found:
    """What some of the queries found."""
    starts = found.starts[queries.start : queries.stop + 1]
    return Found(starts - starts[0], found.rows[starts[0] : starts[-1]])


def merge_found(parts: Sequence[Found], num_queries: int) -> Found:
    """The union of what several tiers or shards found, which hold different rows or report different pairs."""
    if len(parts) == 1:
        return parts[0]
    starts = np.zeros(num_queries + 1, np.int64)
    queries, rows = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for part in parts:
        starts += part.starts
        queries.append(np.repeat(np.arange(num_queries), np.diff(part.starts)))
        rows.append(part.rows)
    order = np.argsort(np.concatenate(queries), kind="stable")
    return Found(starts, np.concatenate(rows)[order])


def _build(max_hamming: int, fingerprints: npt.NDArray[np.uint64], rows: npt.NDArray[np.uint32]) -> Tables:
    layout = choose_layout(len(rows), max_hamming)
    return build_tables(layout, np.ascontiguousarray(fingerprints), np.ascontiguousarray(rows))
