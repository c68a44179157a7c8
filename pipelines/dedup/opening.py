"""What opening the duplicate index reads: the segments after the base, and which of their documents are compared with."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.dedup.base import Base, Part, open_base
from pipelines.dedup.index import Lookup
from pipelines.dedup.kept import Columns, columns_of
from pipelines.dedup.layout import choose_layout
from pipelines.dedup.tables import build_tables, count_equal, find_within
from schemas.arrow import SEGMENT

MAX_SAME_FINGERPRINT = 64
"""Of kept documents with one and the same fingerprint so many, the first ones, are compared with."""


@dataclass(frozen=True)
class Delta:
    """The documents of the segments after the base, whose last row is ``first_row - 1``."""

    first_row: int
    parts: list[Part]

    @property
    def num_rows(self) -> int:
        """Documents in it."""
        return sum(len(part.doc_ids) for part in self.parts)

    def compared(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint32]]:
        """Fingerprints and row numbers of the documents that are compared with."""
        fingerprints, rows, row = [np.empty(0, np.uint64)], [np.empty(0, np.uint32)], self.first_row
        for part in self.parts:
            compared = np.delete(np.arange(len(part.doc_ids), dtype=np.uint32), part.not_compared)
            fingerprints.append(part.columns.fingerprint[compared])
            rows.append(compared + np.uint32(row))
            row += len(part.doc_ids)
        return np.concatenate(fingerprints), np.concatenate(rows)


def read_delta(segments: Sequence[Path], base: Base | None) -> Delta:
    """Read segments (Arrow IPC files of SEGMENT), in version order; ids stay in the mapped files."""
    tables = [read_segment(path) for path in segments]
    columns = [columns_of(table) for table in tables]
    not_compared = _not_compared(columns, base)
    parts, first = [], 0
    for table, part in zip(tables, columns, strict=True):
        inside = not_compared[(not_compared >= first) & (not_compared < first + len(table))] - first
        parts.append(Part(part, table["doc_id"].combine_chunks(), inside))
        first += len(table)
    return Delta(base.num_rows if base else 0, parts)


def kept_parts(base: Path | None, segments: Sequence[Path]) -> list[Part]:
    """Everything that was kept, in order, for building a new base (base.write_base)."""
    opened = open_base(base) if base else None
    return ([opened.as_part()] if opened else []) + read_delta(segments, opened).parts


def base_lookup(base: Base | None, max_hamming: int, shards: Lookup | None) -> Lookup | None:
    """How to look into the base's fingerprints: in its own tables, or in new ones if those were made for a smaller distance."""
    if base is None or max_hamming <= base.max_hamming:
        return shards or (partial(find_within, base.near, max_hamming) if base else None)
    rows = np.delete(np.arange(base.num_rows, dtype=np.uint32), base.not_compared)
    tables = build_tables(choose_layout(len(rows), max_hamming), base.columns.fingerprint[rows], rows)
    return partial(find_within, tables, max_hamming)


def read_segment(path: Path) -> pa.Table:
    """Its rows, mapped."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all().select(SEGMENT.names)


def _not_compared(parts: Sequence[Columns], base: Base | None) -> npt.NDArray[np.int64]:
    """Positions of documents without features, or with MAX_SAME_FINGERPRINT equal fingerprints before them."""
    fingerprint = np.concatenate([np.empty(0, np.uint64), *(part.fingerprint for part in parts)])
    has_features = np.concatenate([np.empty(0, bool), *(part.sketch.any(axis=1) for part in parts)])
    rows = np.flatnonzero(has_features)
    num_before = _rank_among_equal(fingerprint[rows])
    if base is not None:
        num_before += count_equal(base.near, fingerprint[rows])
    return np.delete(np.arange(len(fingerprint)), rows[num_before < MAX_SAME_FINGERPRINT])


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
