"""Which documents are duplicates, and of which kept document? Decided one by one, in commit order.

The invariant: a document is dropped iff it is a duplicate of a document that was kept before it, in an earlier version,
batch or row. Dropped documents drop nothing themselves: with B a duplicate of A, and C near B but not near A, C is kept.
So the outcome depends on the order of the documents only, not on how the rows are cut into batches or runs.

A duplicate is exact (equal content hash) or else near: SimHash distance <= ``max_hamming`` to a kept document, confirmed by a
sketch similarity >= ``min_similarity``. Of several such documents the most similar one is named; of equals, the earliest.
Documents without features (all-zero sketch) take no part in near duplicates. Of kept documents that share one and the same
fingerprint, the first MAX_SAME_FINGERPRINT are compared with: the work stays bounded when boilerplate makes thousands of them.

State: the segments (the kept rows of each dataset version, in order) are all of it. Opening the same segments gives the same
answers. Memory per kept document: about 70 bytes, and with near duplicates 12 (max_hamming + 1) more; ids stay on disk.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.dedup.index import FingerprintIndex, find_near, insert
from pipelines.dedup.kept import FREE, Columns, append, append_all, empty_kept, find_exact, with_room
from pipelines.dedup.sketch import sketch_similarity
from schemas.arrow import CONTENT_HASH_BYTES, SEGMENT, SKETCH_BYTES
from schemas.settings_dedup import DedupSettings

RESOLUTION = pa.schema([pa.field("duplicate_of", pa.string()), pa.field("reason", pa.string()), pa.field("similarity", pa.float32())])
"""All null for a kept document."""
MAX_SAME_FINGERPRINT = 64
KEPT, EXACT, NEAR = 0, 1, 2
REASONS = pa.array([None, "exact", "near"], pa.string())


class Verdicts(NamedTuple):
    """One verdict per row of a batch."""

    row: npt.NDArray[np.int64]  # kept row that this one duplicates; undefined for KEPT
    reason: npt.NDArray[np.uint8]  # KEPT, EXACT or NEAR
    similarity: npt.NDArray[np.float32]


class Limits(NamedTuple):
    """The settings, as the kernel takes them."""

    near: bool
    max_hamming: int
    min_similarity: np.float32


class Resolver:
    """Finds the duplicates of everything that was kept before. It is the state of one writer, not to be shared by threads."""

    def __init__(self, settings: DedupSettings, segments: Sequence[Path]) -> None:
        """Read the kept documents of earlier versions: Arrow IPC files with the SEGMENT schema, in version order."""
        self._limits = Limits(settings.near, settings.max_hamming, np.float32(settings.min_similarity))
        self._kept = empty_kept()
        self._doc_ids: list[pa.Array] = []
        self._new_rows: list[pa.Table] = []
        for path in segments:
            with pa.memory_map(str(path)) as source:
                self._load(pa.ipc.open_file(source).read_all())
        self._index = self._build_index()

    @property
    def num_kept(self) -> int:
        """Kept documents so far, those of the segments included."""
        return int(self._kept.num_rows[0])

    def resolve(self, rows: pa.Table) -> pa.Table:
        """Decide each row (columns of SEGMENT, in commit order) and remember the kept ones; returns RESOLUTION rows in the same order."""
        rows = rows.select(SEGMENT.names).cast(SEGMENT).combine_chunks()
        num_rows = len(rows)
        self._kept = with_room(self._kept, num_rows)
        self._index.reserve(num_rows)
        verdicts = Verdicts(np.zeros(num_rows, np.int64), np.zeros(num_rows, np.uint8), np.zeros(num_rows, np.float32))
        _resolve_rows(_columns_of(rows), self._kept, self._index.tables, self._limits, verdicts)
        kept = rows.filter(pa.array(verdicts.reason == KEPT))
        self._doc_ids += kept["doc_id"].chunks
        self._new_rows.append(kept)
        return self._resolution(verdicts)

    def new_segment(self) -> pa.Table:
        """The rows kept since this resolver was opened, as the next segment."""
        return pa.concat_tables([SEGMENT.empty_table(), *self._new_rows]).combine_chunks()

    def _load(self, segment: pa.Table) -> None:
        self._kept = with_room(self._kept, len(segment))
        append_all(self._kept, _columns_of(segment.select(SEGMENT.names)))
        self._doc_ids += segment["doc_id"].chunks

    def _build_index(self) -> FingerprintIndex:
        fingerprint, sketch = self._kept.columns.fingerprint[: self.num_kept], self._kept.columns.sketch[: self.num_kept]
        rows = np.flatnonzero(sketch.any(axis=1)) if self._limits.near else np.empty(0, np.int64)
        rows = rows[_rank_among_equal(fingerprint[rows]) < MAX_SAME_FINGERPRINT]
        return FingerprintIndex(self._limits.max_hamming, fingerprint[rows], rows.astype(np.uint32))

    def _resolution(self, verdicts: Verdicts) -> pa.Table:
        is_kept = verdicts.reason == KEPT
        duplicate_of = pa.chunked_array(self._doc_ids, pa.string()).take(pa.array(verdicts.row, mask=is_kept))
        columns = [duplicate_of, REASONS.take(pa.array(verdicts.reason)), pa.array(verdicts.similarity, mask=is_kept)]
        return pa.table(columns, schema=RESOLUTION)


def _columns_of(rows: pa.Table) -> Columns:
    """The fixed-width columns of SEGMENT rows as NumPy arrays; the content hash as two words, for equality only."""
    content_hash = np.frombuffer(_fixed_bytes(rows["content_hash"], CONTENT_HASH_BYTES), np.uint64).reshape(-1, 2)
    sketch = np.frombuffer(_fixed_bytes(rows["sketch"], SKETCH_BYTES), np.uint8).reshape(-1, SKETCH_BYTES)
    return Columns(rows["fingerprint"].to_numpy(), content_hash, sketch)


def _fixed_bytes(column: pa.ChunkedArray, width: int) -> bytes:
    """The bytes of a fixed-size binary column without nulls."""
    return b"".join(
        memoryview(chunk.buffers()[1])[chunk.offset * width : (chunk.offset + len(chunk)) * width] for chunk in column.chunks if len(chunk)
    )


def _rank_among_equal(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """How many equal values come before each one."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    is_first = np.ones(len(values), bool)
    is_first[1:] = ordered[1:] != ordered[:-1]
    positions = np.arange(len(values))
    rank = np.empty(len(values), np.int64)
    rank[order] = positions - np.maximum.accumulate(np.where(is_first, positions, 0))
    return rank


@numba.njit(cache=True, nogil=True)
def _resolve_rows(rows, kept, tables, limits, verdicts):  # type: ignore[no-untyped-def]
    found = np.empty(64, np.int64)
    for index in range(len(rows.fingerprint)):
        slot = find_exact(kept.slots, kept.columns.content_hash, rows.content_hash[index, 0], rows.content_hash[index, 1])
        if kept.slots[slot] != FREE:
            verdicts.row[index], verdicts.reason[index], verdicts.similarity[index] = kept.slots[slot], EXACT, np.float32(1)
            continue
        can_be_near = limits.near and rows.sketch[index].any()
        num_same = 0
        if can_be_near:
            count, found = find_near(tables, limits.max_hamming, rows.fingerprint[index], found)
            best, similarity, num_same = _best_of(found[:count], rows.fingerprint[index], rows.sketch[index], kept.columns)
            if best != FREE and similarity >= limits.min_similarity:
                verdicts.row[index], verdicts.reason[index], verdicts.similarity[index] = best, NEAR, similarity
                continue
        row = append(kept, rows, index)
        if can_be_near and num_same < MAX_SAME_FINGERPRINT:
            insert(tables, rows.fingerprint[index], row)


@numba.njit(cache=True, nogil=True)
def _best_of(candidates, fingerprint, sketch, columns):  # type: ignore[no-untyped-def]
    """(row, similarity, number with the very same fingerprint): the most similar candidate, the earliest of equals; FREE if there is none."""
    best = np.int64(FREE)
    best_similarity = np.float32(-1)
    num_same = 0
    for row in candidates:
        similarity = sketch_similarity(sketch, columns.sketch[row])
        if similarity > best_similarity or (similarity == best_similarity and row < best):
            best, best_similarity = row, similarity
        num_same += columns.fingerprint[row] == fingerprint
    return best, best_similarity, num_same
