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
Others may look documents up in a generation of the immutable part (generations.py), and their ids may stay elsewhere; the verdicts are the same.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.dedup.base import Base, open_base
from pipelines.dedup.deciding import KEPT, RETRACTION, Known, Limits, Retractions, State, Verdicts, empty_verdicts, no_retractions, resolve_rows
from pipelines.dedup.generations import Generation, LookedUp, spread
from pipelines.dedup.index import FingerprintIndex, Lookup, end_of, found_by, merge_found
from pipelines.dedup.kept import FREE, Columns, append_all, columns_of, empty_kept, is_retracted, retract_all, with_room
from pipelines.dedup.kept_ids import Elsewhere, KeptIds, Places
from pipelines.dedup.opening import Delta, base_lookup, read_delta, read_segment
from pipelines.dedup.tables import Found
from pipelines.storage.store import local
from schemas.arrow import CONTENT_HASH_BYTES, SEGMENT, SKETCH_BYTES
from schemas.settings_dedup import DedupSettings

RESOLUTION = pa.schema([pa.field("duplicate_of", pa.string()), pa.field("reason", pa.string()), pa.field("similarity", pa.float32())])
"""All null for a kept document, and for a retraction."""
ID_HASH = "id_hash"
"""Column of documents whose ids are elsewhere: ``ids.short_hashes``."""
IS_RETRACTION = "is_retraction"
CHUNK_ROWS = 8_192
BASE_LOOKUP_ROWS = 65_536
REASONS = pa.array([None, "exact", "near", None], pa.string())
_Rows = npt.NDArray[np.int64]


class Decided(NamedTuple):
    """Verdicts of documents whose ids are elsewhere."""

    is_kept: npt.NDArray[np.bool_]  # [n]
    duplicates: npt.NDArray[np.int64]  # [d] positions of those that are not
    reason: npt.NDArray[np.uint8]  # [d] EXACT or NEAR
    similarity: npt.NDArray[np.float32]  # [d]
    duplicate_of: Places  # [d]


class KeptApart(NamedTuple):
    """Kept documents of one block, of which a segment gets its rows."""

    source: Any
    positions: npt.NDArray[np.int64]  # among the candidates of the block


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
        self._new_rows: list[pa.Table | KeptApart] = []
        self._generation = Generation(0, 0, None, settings.near, settings.max_hamming)
        self._looks_up_base = shards is None and (self._base is None or settings.max_hamming <= self._base.max_hamming)
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

    def generation(self) -> Generation | None:
        """The immutable part as it is now, for others to look up documents in; None if there is nothing yet, or if only this process can."""
        first_row, tiers = len(self._kept.base_retracted), self._index.large_tiers()
        if not self._looks_up_base or not (first_row or tiers):
            return None
        end, base = end_of(tiers, first_row), self._base.path if self._base else None
        last = self._generation
        if (end, base) != (last.num_rows, last.base) or [*map(id, tiers)] != [*map(id, last.tiers)]:
            self._generation = last._replace(name=last.name + 1, num_rows=end, base=base, tiers=tiers)
        return self._generation

    def resolve_apart(self, documents: pa.Table, looked_up: LookedUp | None, source: Any, fetch: Callable[[Any], pa.Array]) -> Decided:
        """Decide documents of one block whose ids are elsewhere: columns of SEGMENT but ``doc_id``, and ID_HASH; no retraction is among them.

        ``looked_up``: what some generation of this index, or of one that was open before, holds of them. ``fetch(source)`` gives their ids.
        """
        columns, parts = columns_of(documents), []
        for first in range(0, len(documents), CHUNK_ROWS):
            part = slice(first, min(first + CHUNK_ROWS, len(documents)))
            chunk = Columns(columns.fingerprint[part], columns.content_hash[part], columns.sketch[part])
            known, below = self._known(chunk, looked_up, part)
            parts.append(self._decide(chunk, known, below, no_retractions()))
        verdicts = Verdicts(*map(np.concatenate, zip(*parts, strict=True))) if parts else empty_verdicts(0)
        is_kept = verdicts.reason == KEPT
        positions = np.flatnonzero(is_kept)
        self._ids.append(Elsewhere(source, fetch, positions, documents[ID_HASH].to_numpy()[positions]))
        if len(positions):
            self._new_rows.append(KeptApart(source, positions))
        duplicates = np.flatnonzero(~is_kept)
        places = self._ids.places(verdicts.row[duplicates])
        return Decided(is_kept, duplicates, verdicts.reason[duplicates], verdicts.similarity[duplicates], places)

    def new_segment(self) -> pa.Table:
        """The rows kept since this resolver was opened, or since the last segment was taken, as the next segment; none of them is elsewhere."""
        return pa.concat_tables([SEGMENT.empty_table(), *self._new_rows]).combine_chunks()

    def new_rows(self) -> list[pa.Table | KeptApart]:
        """The same in parts, in order, if some are elsewhere."""
        return self._new_rows

    def segment_taken(self, segment: Path | None = None) -> None:
        """What ``new_segment`` gave is written down for good, in this file: it need not be kept for the next one."""
        if any(isinstance(part, KeptApart) for part in self._new_rows) and segment is not None:
            self._ids.bring(read_segment(local(segment))["doc_id"].combine_chunks())
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
        verdicts = self._decide(columns_of(chunk), in_base, 0, self._retractions(chunk["doc_id"], is_retraction))
        kept = chunk.filter(pa.array(verdicts.reason == KEPT))
        for ids in kept["doc_id"].chunks:
            self._ids.append(ids)
        self._new_rows.append(kept)
        return self._resolution(verdicts)

    def _decide(self, columns: Columns, known: Known, first_row: int, retractions: Retractions) -> Verdicts:
        """Verdicts of a chunk; what the immutable tiers hold below ``first_row`` is known already."""
        num_rows = len(columns.fingerprint)
        self._kept = with_room(self._kept, num_rows)
        self._index.reserve(num_rows)
        verdicts = empty_verdicts(num_rows)
        in_tiers = self._index.find_in_tiers(columns.fingerprint, known.can_be_near, first_row)
        known = known._replace(near=merge_found([known.near, in_tiers], num_rows))
        retracted = resolve_rows(columns, State(self._kept, self._index.growing, self._limits), known, retractions, verdicts)
        self._newly_retracted.append(retracted)
        return verdicts

    def _known(self, columns: Columns, looked_up: LookedUp | None, part: slice) -> tuple[Known, int]:
        """What was looked up for a part of a block, by others or now by this process; and the row up to which that is everything."""
        if looked_up is None or looked_up.base_rows != len(self._kept.base_retracted):
            return self._look_up_base(columns, np.zeros(len(columns.fingerprint), bool)), 0
        found = spread(looked_up, part.start, part.stop)
        return Known(found.exact, self._can_be_near(columns, found.exact), found.near), looked_up.below

    def _look_up_base(self, columns: Columns, is_retraction: npt.NDArray[np.bool_]) -> Known:
        exact = self._base.rows_by_content(columns.content_hash) if self._base else np.full(len(is_retraction), FREE, np.int64)
        # Behind a retraction an exact duplicate may be none any more.
        can_be_near = columns.sketch.any(axis=1) & ~is_retraction if is_retraction.any() else self._can_be_near(columns, exact)
        return Known(exact, can_be_near, self._index.find_in_base(columns.fingerprint, can_be_near))

    def _can_be_near(self, columns: Columns, exact: _Rows) -> npt.NDArray[np.bool_]:
        """Which documents are compared with near rows: those with features of which the base has no equal one in force."""
        has_features: npt.NDArray[np.bool_] = np.asarray(columns.sketch.any(axis=1))
        if len(self._kept.base_retracted):
            has_features &= (exact == FREE) | self._kept.base_retracted[exact]
        return has_features

    def _retractions(self, doc_ids: pa.ChunkedArray, is_retraction: npt.NDArray[np.bool_]) -> Retractions:
        if not is_retraction.any():
            return no_retractions()
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
        is_duplicate = (verdicts.reason != KEPT) & (verdicts.reason != RETRACTION)
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
