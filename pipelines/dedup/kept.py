"""The kept documents' hashes, fingerprints and sketches in growing arrays, with a hash table over the content hashes.

Rows are numbered in the order in which documents were kept. Memory per row: 56 bytes of columns and 8 to 16 of hash table.
"""

from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from schemas.arrow import SKETCH_BYTES

MIN_CAPACITY = 1_024
FREE = -1


class Columns(NamedTuple):
    """One row per document: of a batch, or of all kept documents with spare capacity at the end."""

    fingerprint: npt.NDArray[np.uint64]  # [n]
    content_hash: npt.NDArray[np.uint64]  # [n, 2]
    sketch: npt.NDArray[np.uint8]  # [n, 32]


class Kept(NamedTuple):
    """All that the resolving kernel reads and writes of the kept documents."""

    columns: Columns
    slots: npt.NDArray[np.int32]  # open addressing over content_hash: row number or FREE; at most half full
    num_rows: npt.NDArray[np.int64]  # [1]


def empty_kept() -> Kept:
    """No documents."""
    return Kept(_empty_columns(MIN_CAPACITY), np.full(2 * MIN_CAPACITY, FREE, np.int32), np.zeros(1, np.int64))


def with_room(kept: Kept, num_more: int) -> Kept:
    """The same documents with room for at least ``num_more``; capacity doubles, so that the cost per row is constant."""
    num_rows = int(kept.num_rows[0])
    capacity = len(kept.columns.fingerprint)
    if num_rows + num_more <= capacity:
        return kept
    while capacity < num_rows + num_more:
        capacity *= 2
    columns = _empty_columns(capacity)
    columns.fingerprint[:num_rows] = kept.columns.fingerprint[:num_rows]
    columns.content_hash[:num_rows] = kept.columns.content_hash[:num_rows]
    columns.sketch[:num_rows] = kept.columns.sketch[:num_rows]
    slots = np.full(2 * capacity, FREE, np.int32)
    _fill_slots(slots, columns.content_hash, num_rows)
    return Kept(columns, slots, kept.num_rows)


def append_all(kept: Kept, rows: Columns) -> None:
    """Append the rows of an earlier run, for which there must be room."""
    _append_all(kept, rows)


def _empty_columns(num_rows: int) -> Columns:
    return Columns(np.empty(num_rows, np.uint64), np.empty((num_rows, 2), np.uint64), np.empty((num_rows, SKETCH_BYTES), np.uint8))


@numba.njit(cache=True, nogil=True)
def find_exact(slots, stored, high, low):  # type: ignore[no-untyped-def]
    """Slot of the row whose content hash this is, or the free slot where it belongs. The hash is uniform: linear probing."""
    mask = np.uint64(len(slots) - 1)
    slot = low & mask
    while slots[slot] != FREE and (stored[slots[slot], 0] != high or stored[slots[slot], 1] != low):
        slot = (slot + np.uint64(1)) & mask
    return slot


@numba.njit(cache=True, nogil=True)
def append(kept, rows, index):  # type: ignore[no-untyped-def]
    """Append ``rows[index]``; returns its row number. The first row with a content hash stays the one that is found."""
    row = kept.num_rows[0]
    kept.columns.fingerprint[row] = rows.fingerprint[index]
    kept.columns.content_hash[row] = rows.content_hash[index]
    kept.columns.sketch[row] = rows.sketch[index]
    slot = find_exact(kept.slots, kept.columns.content_hash, rows.content_hash[index, 0], rows.content_hash[index, 1])
    if kept.slots[slot] == FREE:
        kept.slots[slot] = row
    kept.num_rows[0] = row + 1
    return row


@numba.njit(cache=True, nogil=True)
def _append_all(kept, rows):  # type: ignore[no-untyped-def]
    for index in range(len(rows.fingerprint)):
        append(kept, rows, index)


@numba.njit(cache=True, nogil=True)
def _fill_slots(slots, content_hash, num_rows):  # type: ignore[no-untyped-def]
    for row in range(num_rows):
        slot = find_exact(slots, content_hash, content_hash[row, 0], content_hash[row, 1])
        if slots[slot] == FREE:
            slots[slot] = row
