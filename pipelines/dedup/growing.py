"""The growing tier of the index: the newest fingerprints, in linked buckets, searched and extended one by one.

The same layout and the same rule as the immutable tables (tables.py). It is kept small: following links costs a cache miss each.
Memory per fingerprint: 12 + 4 m bytes for m tables.
"""

from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from pipelines.dedup.layout import choose_layout
from pipelines.dedup.tables import Tables, hamming, is_reported_by, tables_over, with_room

GROWING_ROWS = 2_048
"""Beyond this many rows they become an immutable tier, which is asked for many documents at a time."""
NO_ENTRY = -1


class Growing(NamedTuple):
    """c capacity, m tables."""

    tables: Tables  # the layout; its own arrays are empty
    heads: npt.NDArray[np.int32]  # newest entry of each bucket of each table, or NO_ENTRY; placed as in ``tables.first_starts``
    links: npt.NDArray[np.int32]  # [m, c] the entry before it in its bucket
    fingerprints: npt.NDArray[np.uint64]  # [c]
    rows: npt.NDArray[np.uint32]  # [c]
    num_rows: npt.NDArray[np.int64]  # [1]


def empty_growing(max_hamming: int, capacity: int) -> Growing:
    """Room for ``capacity`` fingerprints."""
    layout = choose_layout(GROWING_ROWS, max_hamming)
    nothing = np.empty(0, np.uint32)
    tables = tables_over(layout, nothing, (nothing, nothing), np.empty(0, np.uint64))
    return Growing(
        tables=tables,
        heads=np.full(tables.first_starts[-1], NO_ENTRY, np.int32),
        links=np.empty((len(layout.shifts), capacity), np.int32),
        fingerprints=np.empty(capacity, np.uint64),
        rows=np.empty(capacity, np.uint32),
        num_rows=np.zeros(1, np.int64),
    )


def contents(growing: Growing) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint32]]:
    """Fingerprints and rows so far, in the order in which they came."""
    num_rows = int(growing.num_rows[0])
    return growing.fingerprints[:num_rows], growing.rows[:num_rows]


@numba.njit(cache=True, nogil=True)
def insert(growing, fingerprint, row):  # type: ignore[no-untyped-def]
    """Store one fingerprint; there must be room."""
    tables, heads, links = growing.tables, growing.heads, growing.links
    entry = growing.num_rows[0]
    growing.fingerprints[entry] = fingerprint
    growing.rows[entry] = row
    for table in range(len(tables.shifts)):
        bucket = tables.first_starts[table] + np.int64((fingerprint >> tables.shifts[table]) & tables.key_masks[table])
        links[table, entry] = heads[bucket]
        heads[bucket] = entry
    growing.num_rows[0] = entry + 1


@numba.njit(cache=True, nogil=True)
def insert_all(growing, fingerprints, rows):  # type: ignore[no-untyped-def]
    """Store several, in order."""
    for index in range(len(rows)):
        insert(growing, fingerprints[index], rows[index])


@numba.njit(cache=True, nogil=True)
def find_in_growing(growing, max_hamming, fingerprint, found, count):  # type: ignore[no-untyped-def]
    """Append the rows within the distance to the first ``count`` in ``found``; returns (count, the array, a longer one if it had to grow)."""
    tables, heads, links, stored = growing.tables, growing.heads, growing.links, growing.fingerprints
    for probe in range(len(tables.probe_tables)):
        table = tables.probe_tables[probe]
        key = ((fingerprint >> tables.shifts[table]) & tables.key_masks[table]) ^ tables.probe_flips[probe]
        entry = heads[tables.first_starts[table] + np.int64(key)]
        while entry != NO_ENTRY:
            difference = stored[entry] ^ fingerprint
            if hamming(difference, np.uint64(0)) <= max_hamming and is_reported_by(tables, table, difference):
                found = with_room(found, count)
                found[count] = growing.rows[entry]
                count += 1
            entry = links[table, entry]
    return count, found


@numba.njit(cache=True, nogil=True)
def find_all_in_growing(growing, max_hamming, queries):  # type: ignore[no-untyped-def]
    """(starts, rows) as in tables.Found."""
    starts = np.zeros(len(queries) + 1, np.int64)
    found = np.empty(64, np.int64)
    count = 0
    for query in range(len(queries)):
        count, found = find_in_growing(growing, max_hamming, queries[query], found, count)
        starts[query + 1] = count
    return starts, found[:count]
