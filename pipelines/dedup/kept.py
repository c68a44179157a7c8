"""The kept documents' hashes, fingerprints and sketches: those of the base where it maps them, newer ones in growing arrays.

Rows are numbered in the order in which documents were kept, from the first version on. Among the newer rows a hash table finds a content
hash. Of equal content hashes only the latest can be in force, because it was kept after the others had been retracted.
Memory per newer row: 57 bytes of columns and 8 to 16 of hash table.
"""

from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.dedup.tables import read_only
from schemas.arrow import CONTENT_HASH_BYTES, SKETCH_BYTES

MIN_CAPACITY = 1_024
FREE = -1


class Columns(NamedTuple):
    """One row per document: of a batch, of the base, or of all newer documents with spare capacity at the end."""

    fingerprint: npt.NDArray[np.uint64]  # [n]
    content_hash: npt.NDArray[np.uint64]  # [n, 2]
    sketch: npt.NDArray[np.uint8]  # [n, 32]


class Kept(NamedTuple):
    """All that the resolving kernel reads and writes of the kept documents. Row r >= b is position r - b of the newer ones."""

    base: Columns  # [b] read-only arrays, as those of a mapped file are
    base_retracted: npt.NDArray[np.bool_]  # [b]
    columns: Columns
    retracted: npt.NDArray[np.bool_]
    slots: npt.NDArray[np.int32]  # open addressing over content_hash: position of the latest row that has it, or FREE; at most half full
    num_new: npt.NDArray[np.int64]  # [1]


def empty_kept(base: Columns | None = None) -> Kept:
    """Nothing newer than the base. The zeros of ``base_retracted`` cost no memory until they are written."""
    if base is None:
        empty = _empty_columns(0)
        base = Columns(read_only(empty.fingerprint), read_only(empty.content_hash), read_only(empty.sketch))
    flags = np.zeros(len(base.fingerprint), bool), np.zeros(MIN_CAPACITY, bool)
    return Kept(base, flags[0], _empty_columns(MIN_CAPACITY), flags[1], np.full(2 * MIN_CAPACITY, FREE, np.int32), np.zeros(1, np.int64))


def with_room(kept: Kept, num_more: int) -> Kept:
    """The same documents with room for at least ``num_more``; capacity doubles, so that the cost per row is constant."""
    num_new = int(kept.num_new[0])
    capacity = len(kept.columns.fingerprint)
    if num_new + num_more <= capacity:
        return kept
    while capacity < num_new + num_more:
        capacity *= 2
    columns, retracted = _empty_columns(capacity), np.zeros(capacity, bool)
    grown: list[npt.NDArray[Any]] = [*columns, retracted]
    stored: list[npt.NDArray[Any]] = [*kept.columns, kept.retracted]
    for new, old in zip(grown, stored, strict=True):
        new[:num_new] = old[:num_new]
    slots = np.full(2 * capacity, FREE, np.int32)
    _fill_slots(slots, columns.content_hash, num_new)
    return kept._replace(columns=columns, retracted=retracted, slots=slots)


def append_all(kept: Kept, rows: Columns) -> None:
    """Append the rows of an earlier run, for which there must be room."""
    _append_all(kept, rows)


def columns_of(rows: pa.Table) -> Columns:
    """The fixed-width columns of SEGMENT rows as NumPy arrays; the content hash as two words, for equality only."""
    content_hash = np.frombuffer(_fixed_bytes(rows["content_hash"], CONTENT_HASH_BYTES), np.uint64).reshape(-1, 2)
    sketch = np.frombuffer(_fixed_bytes(rows["sketch"], SKETCH_BYTES), np.uint8).reshape(-1, SKETCH_BYTES)
    return Columns(rows["fingerprint"].to_numpy(), content_hash, sketch)


def _fixed_bytes(column: pa.ChunkedArray, width: int) -> bytes:
    """The bytes of a fixed-size binary column without nulls."""
    return b"".join(
        memoryview(chunk.buffers()[1])[chunk.offset * width : (chunk.offset + len(chunk)) * width] for chunk in column.chunks if len(chunk)
    )


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
    """Append ``rows[index]``; returns its row number. From now on it is the one that is found by its content hash."""
    position = kept.num_new[0]
    columns = kept.columns
    columns.fingerprint[position] = rows.fingerprint[index]
    columns.content_hash[position] = rows.content_hash[index]
    columns.sketch[position] = rows.sketch[index]
    slot = find_exact(kept.slots, columns.content_hash, rows.content_hash[index, 0], rows.content_hash[index, 1])
    kept.slots[slot] = position
    kept.num_new[0] = position + 1
    return len(kept.base_retracted) + position


@numba.njit(cache=True, nogil=True)
def is_retracted(kept, row):  # type: ignore[no-untyped-def]
    """Whether the row has left the index."""
    num_base = len(kept.base_retracted)
    return kept.base_retracted[row] if row < num_base else kept.retracted[row - num_base]


@numba.njit(cache=True, nogil=True)
def retract(kept, row):  # type: ignore[no-untyped-def]
    """The row leaves the index; whether it was still in it."""
    num_base = len(kept.base_retracted)
    flags, position = (kept.base_retracted, row) if row < num_base else (kept.retracted, row - num_base)
    was_in_force = not flags[position]
    flags[position] = True
    return was_in_force


@numba.njit(cache=True, nogil=True)
def retract_all(kept, rows):  # type: ignore[no-untyped-def]
    """Several rows leave the index."""
    for row in rows:
        retract(kept, row)


@numba.njit(cache=True, nogil=True)
def _append_all(kept, rows):  # type: ignore[no-untyped-def]
    for index in range(len(rows.fingerprint)):
        append(kept, rows, index)


@numba.njit(cache=True, nogil=True)
def _fill_slots(slots, content_hash, num_rows):  # type: ignore[no-untyped-def]
    for position in range(num_rows):
        slot = find_exact(slots, content_hash, content_hash[position, 0], content_hash[position, 1])
        slots[slot] = position
