"""Which documents are duplicates, and of which kept document? Decided one by one, in commit order.

The invariant: a document is dropped iff it is a duplicate of a document that was kept before it, in an earlier version,
batch or row, and has not been retracted since. Dropped documents drop nothing themselves: with B a duplicate of A, and C near B but not
near A, C is kept. So the outcome depends on the order of the documents and retractions only, not on how the rows are cut into batches or runs.

A duplicate is exact (equal content hash) or else near: SimHash distance <= ``max_hamming`` to a kept document, confirmed by a
sketch similarity >= ``min_similarity``. Of several such documents the most similar one is named; of equals, the earliest.
Documents without features (all-zero sketch) take no part in near duplicates. Of kept documents that share one and the same
fingerprint, the first MAX_SAME_FINGERPRINT (retracted ones count) are compared with: the work stays bounded when boilerplate makes thousands of them.

A retraction row takes every document with its id that was kept before it out of the index: in earlier versions or earlier in the batch.

State: the base (base.py), the segments after it (the kept rows of each dataset version, in order) and which rows were retracted are all
of it. Opening the same gives the same answers, with or without a base. Memory per kept document after the base: about 70 bytes and the
tables (layout.py); ids stay on disk. Documents are decided in chunks, after what the immutable tiers hold near them was looked up for a whole
chunk, and what the base holds for several chunks at a time: the more are asked together, the fewer cache misses each has (tables.py).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.dedup.base import Base, open_base
from pipelines.dedup.growing import Growing, find_in_growing, insert
from pipelines.dedup.index import FingerprintIndex, Lookup, found_by, merge_found
from pipelines.dedup.kept import (
    FREE,
    Columns,
    Kept,
    append,
    append_all,
    columns_of,
    empty_kept,
    find_exact,
    is_retracted,
    retract,
    retract_all,
    with_room,
)
from pipelines.dedup.kept_ids import KeptIds
from pipelines.dedup.opening import MAX_SAME_FINGERPRINT, Delta, base_lookup, read_delta
from pipelines.dedup.sketch import sketch_similarity
from pipelines.dedup.tables import Found
from schemas.arrow import CONTENT_HASH_BYTES, SEGMENT, SKETCH_BYTES
from schemas.settings_dedup import DedupSettings

RESOLUTION = pa.schema([pa.field("duplicate_of", pa.string()), pa.field("reason", pa.string()), pa.field("similarity", pa.float32())])
"""All null for a kept document, and for a retraction."""
IS_RETRACTION = "is_retraction"
CHUNK_ROWS = 8_192
BASE_LOOKUP_ROWS = 65_536
KEPT, EXACT, NEAR, RETRACTION = 0, 1, 2, 3
REASONS = pa.array([None, "exact", "near", None], pa.string())
_Rows = npt.NDArray[np.int64]


class Verdicts(NamedTuple):
    """One verdict per row of a chunk."""

    row: npt.NDArray[np.int64]  # kept row that this one duplicates; undefined for KEPT
    reason: npt.NDArray[np.uint8]  # KEPT, EXACT, NEAR or RETRACTION
    similarity: npt.NDArray[np.float32]


class Limits(NamedTuple):
    """The settings, as the kernel takes them."""

    near: bool
    max_hamming: int
    min_similarity: np.float32


class State(NamedTuple):
    """What a chunk is decided against, and what it adds to."""

    kept: Kept
    growing: Growing
    limits: Limits


class Known(NamedTuple):
    """What was looked up for some rows before the first of them is decided."""

    exact: _Rows  # latest row of the base with the same content hash, or FREE
    can_be_near: npt.NDArray[np.bool_]  # whether near rows were looked for
    near: Found  # rows within the distance: of the base, or of the immutable tiers too


class Retractions(NamedTuple):
    """The retractions of a chunk of q rows with c distinct ids. Without retractions all arrays are empty."""

    is_retraction: npt.NDArray[np.bool_]  # [q]
    codes: npt.NDArray[np.int64]  # [q] which id
    earlier: Found  # by code: the rows kept before the chunk that have a retracted id
    heads: npt.NDArray[np.int64]  # [c] position of the latest row of the chunk that was kept with this id, or FREE
    links: npt.NDArray[np.int64]  # [q] the one before it
    kept_rows: npt.NDArray[np.int64]  # [q] row number of each kept position


class Resolver:
    """Finds the duplicates of everything that was kept before. It is the state of one writer, not to be shared by threads."""

    def __init__(
        self,
        settings: DedupSettings,
        segments: Sequence[Path],
        *,
        base: Path | None = None,
        retracted: _Rows | None = None,
        shards: Lookup | None = None,
    ) -> None:
        """Know the kept documents of earlier versions: a base, and the segments (Arrow IPC files of SEGMENT) of the versions after it, in order.

        ``retracted``: row numbers, counted over all kept documents from version 1 on, of those that were retracted. ``shards`` answers for the
        base's fingerprints instead of this process.
        """
        self._limits = Limits(settings.near, settings.max_hamming, np.float32(settings.min_similarity))
        self._base: Base | None = open_base(base) if base else None
        delta = read_delta(segments, self._base)
        self._kept = with_room(empty_kept(self._base.columns if self._base else None), delta.num_rows)
        for part in delta.parts:
            append_all(self._kept, part.columns)
        retract_all(self._kept, np.empty(0, np.int64) if retracted is None else retracted.astype(np.int64))
        self._ids = KeptIds(self._base, [part.doc_ids for part in delta.parts])
        self._index = self._open_index(delta, shards)
        self._new_rows: list[pa.Table] = []
        self._newly_retracted = [np.empty(0, np.int64)]

    @property
    def num_kept(self) -> int:
        """Kept documents so far, those of the base and the segments included, retracted ones too."""
        return len(self._kept.base_retracted) + int(self._kept.num_new[0])

    def resolve(self, rows: pa.Table) -> pa.Table:
        """Decide each row (columns of SEGMENT, in commit order) and remember the kept ones; returns RESOLUTION rows in the same order.

        Where the optional column ``is_retraction`` is true only ``doc_id`` counts, the others may be null. Raises ValueError for other nulls.
        """
        rows, is_retraction = _checked(rows)
        parts = [RESOLUTION.empty_table()]
        for start in range(0, len(rows), BASE_LOOKUP_ROWS):
            parts += self._resolve_after_lookup(rows.slice(start, BASE_LOOKUP_ROWS), is_retraction[start : start + BASE_LOOKUP_ROWS])
        return pa.concat_tables(parts)

    def new_segment(self) -> pa.Table:
        """The rows kept since this resolver was opened, or since the last segment was taken, as the next segment."""
        return pa.concat_tables([SEGMENT.empty_table(), *self._new_rows]).combine_chunks()

    def segment_taken(self) -> None:
        """What ``new_segment`` gave is written down for good: it need not be kept for the next one."""
        self._new_rows = []

    def retracted_rows(self) -> tuple[_Rows, pa.Array]:
        """(row numbers, document ids) retracted since this resolver was opened, in the order in which that happened."""
        rows = np.concatenate(self._newly_retracted)
        return rows, self._ids.take(rows)

    def live_ids(self, doc_ids: set[str]) -> set[str]:
        """Those of the ids that a row has which was kept and not retracted."""
        asked = pa.array(sorted(doc_ids), pa.string())
        positions, rows = self._ids.rows_of(asked)
        return {asked[int(position)].as_py() for position, row in zip(positions, rows, strict=True) if not is_retracted(self._kept, row)}

    def _open_index(self, delta: Delta, shards: Lookup | None) -> FingerprintIndex:
        limits, nothing = self._limits, np.empty(0, np.int64)
        if not limits.near:
            return FingerprintIndex(limits.max_hamming, np.empty(0, np.uint64), nothing.astype(np.uint32))
        fingerprints, rows = delta.compared()
        return FingerprintIndex(limits.max_hamming, fingerprints, rows, base_lookup(self._base, limits.max_hamming, shards))

    def _resolve_after_lookup(self, rows: pa.Table, is_retraction: npt.NDArray[np.bool_]) -> list[pa.Table]:
        in_base = self._look_up_base(columns_of(rows), is_retraction)
        parts = []
        for start in range(0, len(rows), CHUNK_ROWS):
            part = slice(start, start + CHUNK_ROWS)
            known = Known(in_base.exact[part], in_base.can_be_near[part], found_by(in_base.near, part))
            parts.append(self._resolve_chunk(rows.slice(start, CHUNK_ROWS).combine_chunks(), is_retraction[part], known))
        return parts

    def _resolve_chunk(self, chunk: pa.Table, is_retraction: npt.NDArray[np.bool_], in_base: Known) -> pa.Table:
        num_rows = len(chunk)
        columns = columns_of(chunk)
        self._kept = with_room(self._kept, num_rows)
        self._index.reserve(num_rows)
        verdicts = Verdicts(np.zeros(num_rows, np.int64), np.zeros(num_rows, np.uint8), np.zeros(num_rows, np.float32))
        in_tiers = self._index.find_in_tiers(columns.fingerprint, in_base.can_be_near)
        known = in_base._replace(near=merge_found([in_base.near, in_tiers], num_rows))
        retractions = self._retractions(chunk["doc_id"], is_retraction)
        retracted = _resolve_rows(columns, State(self._kept, self._index.growing, self._limits), known, retractions, verdicts)
        self._newly_retracted.append(retracted)
        kept = chunk.filter(pa.array(verdicts.reason == KEPT))
        self._ids.append(kept["doc_id"])
        self._new_rows.append(kept)
        return self._resolution(verdicts)

    def _look_up_base(self, columns: Columns, is_retraction: npt.NDArray[np.bool_]) -> Known:
        exact = self._base.rows_by_content(columns.content_hash) if self._base else np.full(len(is_retraction), FREE, np.int64)
        can_be_near = columns.sketch.any(axis=1) & ~is_retraction
        if not is_retraction.any():  # else an exact duplicate may be none any more when its turn comes
            can_be_near &= (exact == FREE) | self._kept.base_retracted[exact] if len(self._kept.base_retracted) else True
        return Known(exact, can_be_near, self._index.find_in_base(columns.fingerprint, can_be_near))

    def _retractions(self, doc_ids: pa.ChunkedArray, is_retraction: npt.NDArray[np.bool_]) -> Retractions:
        nothing = np.empty(0, np.int64)
        if not is_retraction.any():
            return Retractions(is_retraction[:0], nothing, Found(nothing, nothing), nothing, nothing, nothing)
        encoded = doc_ids.combine_chunks().dictionary_encode()
        codes = encoded.indices.to_numpy().astype(np.int64)
        wanted = np.unique(codes[is_retraction])
        positions, rows = self._ids.rows_of(encoded.dictionary.take(pa.array(wanted)))
        order = np.lexsort((rows, positions))
        counts = np.zeros(len(encoded.dictionary) + 1, np.int64)
        counts[wanted + 1] = np.bincount(positions, minlength=len(wanted))
        earlier = Found(np.cumsum(counts), rows[order])
        free = np.full(len(encoded.dictionary), FREE, np.int64)
        return Retractions(is_retraction, codes, earlier, free, np.empty(len(codes), np.int64), np.empty(len(codes), np.int64))

    def _resolution(self, verdicts: Verdicts) -> pa.Table:
        is_duplicate = (verdicts.reason == EXACT) | (verdicts.reason == NEAR)
        named = self._ids.take(verdicts.row[is_duplicate])
        duplicate_of = pa.nulls(len(is_duplicate), pa.string())
        if len(named):
            places = np.cumsum(is_duplicate) - 1
            duplicate_of = named.take(pa.array(places, mask=~is_duplicate))
        columns = [duplicate_of, REASONS.take(pa.array(verdicts.reason)), pa.array(verdicts.similarity, mask=~is_duplicate)]
        return pa.table(columns, schema=RESOLUTION)


def _checked(rows: pa.Table) -> tuple[pa.Table, npt.NDArray[np.bool_]]:
    """Rows of SEGMENT without nulls, and which of them are retractions; what a retraction does not say is zero."""
    if IS_RETRACTION not in rows.column_names:
        return rows.select(SEGMENT.names).cast(SEGMENT), np.zeros(len(rows), bool)
    is_retraction = rows[IS_RETRACTION].fill_null(False)
    zeros = {"fingerprint": pa.scalar(0, pa.uint64()), "content_hash": _zeros(CONTENT_HASH_BYTES), "sketch": _zeros(SKETCH_BYTES)}
    columns = [_if_else(is_retraction, zeros[name], rows[name]) if name in zeros else rows[name] for name in SEGMENT.names]
    table = pa.table(columns, names=SEGMENT.names).cast(SEGMENT)
    return table, is_retraction.to_numpy()


def _zeros(width: int) -> pa.Scalar:
    return pa.scalar(bytes(width), pa.binary(width))


def _if_else(condition: pa.ChunkedArray, left: pa.Scalar, right: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.if_else(condition, left, right.cast(left.type))


@numba.njit(cache=True, nogil=True)
def _resolve_rows(rows, state, known, retractions, verdicts):  # type: ignore[no-untyped-def]
    """Fill in the verdicts; returns the rows that retractions took out of the index."""
    kept, growing, limits = state.kept, state.growing, state.limits
    found = np.empty(64, np.int64)
    retracted = np.empty(16, np.int64)
    num_retracted = 0
    has_retractions = len(retractions.is_retraction) > 0
    for index in range(len(rows.fingerprint)):
        if has_retractions and retractions.is_retraction[index]:
            verdicts.reason[index] = RETRACTION
            num_retracted, retracted = _retract_id(kept, retractions, retractions.codes[index], retracted, num_retracted)
            continue
        row = _exact(kept, known.exact[index], rows.content_hash[index, 0], rows.content_hash[index, 1])
        if row != FREE:
            verdicts.row[index], verdicts.reason[index], verdicts.similarity[index] = row, EXACT, np.float32(1)
            continue
        can_be_near = limits.near and rows.sketch[index].any()
        num_same = 0
        if can_be_near:
            count, found = _copy_found(known.near, index, found)
            count, found = find_in_growing(growing, limits.max_hamming, rows.fingerprint[index], found, count)
            best, similarity, num_same = _best_of(found[:count], rows.fingerprint[index], rows.sketch[index], kept)
            if best != FREE and similarity >= limits.min_similarity:
                verdicts.row[index], verdicts.reason[index], verdicts.similarity[index] = best, NEAR, similarity
                continue
        row = append(kept, rows, index)
        if has_retractions:
            _link(retractions, index, row)
        if can_be_near and num_same < MAX_SAME_FINGERPRINT:
            insert(growing, rows.fingerprint[index], row)
    return retracted[:num_retracted]


@numba.njit(cache=True, nogil=True)
def _exact(kept, in_base, high, low):  # type: ignore[no-untyped-def]
    """The row in force with this content hash, or FREE."""
    position = kept.slots[find_exact(kept.slots, kept.columns.content_hash, high, low)]
    if position != FREE and not kept.retracted[position]:
        return len(kept.base_retracted) + np.int64(position)
    if in_base != FREE and not kept.base_retracted[in_base]:
        return in_base
    return np.int64(FREE)


@numba.njit(cache=True, nogil=True)
def _copy_found(near, index, found):  # type: ignore[no-untyped-def]
    """(how many, the array, a longer one if need be) of the rows that were looked up."""
    start, end = near.starts[index], near.starts[index + 1]
    if end - start > len(found):
        found = np.empty(2 * (end - start), np.int64)
    found[: end - start] = near.rows[start:end]
    return end - start, found


@numba.njit(cache=True, nogil=True)
def _best_of(candidates, fingerprint, sketch, kept):  # type: ignore[no-untyped-def]
    """(row, similarity, number with the very same fingerprint): the most similar candidate in force, of equals the earliest; FREE if none is."""
    best = np.int64(FREE)
    best_similarity = np.float32(-1)
    num_same = 0
    num_base = len(kept.base_retracted)
    for row in candidates:
        in_base, place = row < num_base, row - num_base  # not one variable for both: arrays of the base are read-only, another type to Numba
        num_same += (kept.base.fingerprint[row] if in_base else kept.columns.fingerprint[place]) == fingerprint
        if is_retracted(kept, row):
            continue
        similarity = sketch_similarity(sketch, kept.base.sketch[row]) if in_base else sketch_similarity(sketch, kept.columns.sketch[place])
        if similarity > best_similarity or (similarity == best_similarity and row < best):
            best, best_similarity = row, similarity
    return best, best_similarity, num_same


@numba.njit(cache=True, nogil=True)
def _link(retractions, index, row):  # type: ignore[no-untyped-def]
    """Remember that this row of the chunk was kept."""
    code = retractions.codes[index]
    retractions.kept_rows[index] = row
    retractions.links[index] = retractions.heads[code]
    retractions.heads[code] = index


@numba.njit(cache=True, nogil=True)
def _retract_id(kept, retractions, code, retracted, count):  # type: ignore[no-untyped-def]
    """Take all rows with the id out of the index: earlier ones, then those of this chunk; appends the rows to ``retracted``."""
    for position in range(retractions.earlier.starts[code], retractions.earlier.starts[code + 1]):
        count, retracted = _retract_row(kept, retractions.earlier.rows[position], retracted, count)
    position = retractions.heads[code]
    while position != FREE:
        count, retracted = _retract_row(kept, retractions.kept_rows[position], retracted, count)
        position = retractions.links[position]
    retractions.heads[code] = FREE
    return count, retracted


@numba.njit(cache=True, nogil=True)
def _retract_row(kept, row, retracted, count):  # type: ignore[no-untyped-def]
    if not retract(kept, row):
        return count, retracted
    if count == len(retracted):
        retracted = np.concatenate((retracted, np.empty(len(retracted), np.int64)))
    retracted[count] = row
    return count + 1, retracted
