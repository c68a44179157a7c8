"""The ids of all kept documents, by row number, and the rows of an id. Ids stay where they are: mapped files, the batches' own memory, or the
processes that prepared the documents. Of those that are elsewhere 4 bytes of a hash are here, and they are fetched when somebody asks for them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.dedup.base import Base
from pipelines.dedup.ids import short_hashes

_Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Elsewhere:
    """The kept documents of one block, whose ids are not here."""

    source: Any
    """What ``fetch`` takes."""
    fetch: Callable[[Any], pa.Array]
    """Gives the ids of all candidates of the block."""
    positions: _Rows
    """Of the kept documents among the candidates, ascending."""
    hashes: npt.NDArray[np.uint32]
    """``short_hashes`` of their ids."""

    def __len__(self) -> int:
        return len(self.positions)


class Places(NamedTuple):
    """Where the ids of some rows are."""

    ids: pa.StringArray
    """Those that are here; null where it is elsewhere."""
    blocks: list[Elsewhere]
    """Each once."""
    block: npt.NDArray[np.int32]
    """For each row the number of its block, -1 if the id is here."""
    position: npt.NDArray[np.int32]
    """For each row its position among the candidates of that block."""


class KeptIds:
    """Row r >= b, the base's length, is position r - b of the newer ids."""

    def __init__(self, base: Base | None, newer: Sequence[pa.Array]) -> None:
        self._base = base
        self._num_base = base.num_rows if base else 0
        self._chunks: list[pa.Array | Elsewhere] = []
        self._ends: list[int] = []
        """Position after each chunk."""
        self._hashes: list[npt.NDArray[np.uint32]] = []
        """Of the first chunks; the others are hashed when somebody asks for an id."""
        for chunk in newer:
            self.append(chunk)

    def append(self, ids: pa.Array | Elsewhere) -> None:
        """The ids of the next rows."""
        if len(ids):
            self._chunks.append(ids)
            self._ends.append((self._ends[-1] if self._ends else 0) + len(ids))

    def bring(self, ids: pa.Array) -> None:
        """The ids of the last rows, whose first one begins a chunk, in one array: none of them is elsewhere any more."""
        first = self._ends[-1] - len(ids) if len(ids) else 0
        while len(ids) and self._ends and self._ends[-1] > first:
            self._chunks.pop()
            self._ends.pop()
        del self._hashes[len(self._chunks) :]
        self.append(ids)

    def take(self, rows: _Rows) -> pa.StringArray:
        """The id of each row."""
        places = self.places(rows)
        ids = places.ids
        for number, block in enumerate(places.blocks):
            is_there = places.block == number
            found = block.fetch(block.source).take(pa.array(places.position[is_there])).cast(pa.string())
            ids = pc.coalesce(ids, found.take(pa.array(np.cumsum(is_there) - 1, mask=~is_there)))
        return ids

    def places(self, rows: _Rows) -> Places:
        """Where the id of each row is."""
        ends = np.array(self._ends, np.int64)
        chunk_of = np.searchsorted(ends, rows - self._num_base, side="right")
        is_elsewhere = np.array([isinstance(chunk, Elsewhere) for chunk in self._chunks] + [False])
        away = (rows >= self._num_base) & is_elsewhere[chunk_of]
        block, position = np.full(len(rows), -1, np.int32), np.zeros(len(rows), np.int32)
        blocks: list[Elsewhere] = []
        for number in np.unique(chunk_of[away]).tolist():
            chunk, chosen = self._chunks[number], away & (chunk_of == number)
            assert isinstance(chunk, Elsewhere)
            block[chosen], position[chosen] = len(blocks), chunk.positions[rows[chosen] - self._num_base - self._ends[number] + len(chunk)]
            blocks.append(chunk)
        sizes = np.where(is_elsewhere[:-1], np.diff(ends, prepend=0), 0)
        num_away_before = np.concatenate([[0], np.cumsum(sizes)])[chunk_of]
        return Places(self._here(rows, ~away, num_away_before), blocks, block, position)

    def _here(self, rows: _Rows, wanted: npt.NDArray[np.bool_], num_away_before: _Rows) -> pa.StringArray:
        """The ids of the wanted rows, which are here; null for the others."""
        in_base = rows < self._num_base
        older, newer = np.flatnonzero(in_base & wanted), np.flatnonzero(~in_base & wanted)
        chunks = [chunk for chunk in self._chunks if not isinstance(chunk, Elsewhere)]
        at = rows[newer] - self._num_base - num_away_before[newer]
        found = [pa.chunked_array(chunks, pa.string()).take(pa.array(at)).combine_chunks()]
        if len(older):
            assert self._base is not None
            found.append(self._base.doc_ids.take(pa.array(rows[older])).cast(pa.string()))
        places = np.full(len(rows), -1, np.int64)
        places[np.concatenate([newer, older])] = np.arange(len(newer) + len(older))
        return pa.concat_arrays(found).take(pa.array(places, mask=places < 0))

    def rows_of(self, ids: pa.Array) -> tuple[_Rows, _Rows]:
        """Pairs (position in ``ids``, row) of all rows that have one of these ids, which must differ from each other."""
        positions, rows = self._newer_rows_of(ids)
        if self._base is None:
            return positions, rows
        older_positions, older = self._base.rows_by_id(ids)
        return np.concatenate([older_positions, positions]), np.concatenate([older, rows])

    def _newer_rows_of(self, ids: pa.Array) -> tuple[_Rows, _Rows]:
        """One pass over the hashes of the newer rows; what agrees is compared itself."""
        for chunk in self._chunks[len(self._hashes) :]:
            self._hashes.append(chunk.hashes if isinstance(chunk, Elsewhere) else short_hashes(chunk))
        stored = np.concatenate([np.empty(0, np.uint32), *self._hashes])
        candidates = np.flatnonzero(np.isin(stored, short_hashes(ids)))
        positions = pc.index_in(self.take(candidates + self._num_base), ids.cast(pa.string()))
        found = pc.is_valid(positions).to_numpy(zero_copy_only=False)
        return positions.drop_null().to_numpy().astype(np.int64), candidates[found] + self._num_base
