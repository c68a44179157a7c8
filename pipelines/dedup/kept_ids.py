"""The ids of all kept documents, by row number, and the rows of an id. Ids stay where they are: mapped files and the batches' own memory."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.dedup.base import Base
from pipelines.dedup.ids import hash_ids

_Rows = npt.NDArray[np.int64]


class KeptIds:
    """Row r >= b, the base's length, is position r - b of the newer ids."""

    def __init__(self, base: Base | None, newer: Sequence[pa.Array]) -> None:
        self._base = base
        self._num_base = base.num_rows if base else 0
        self._chunks: list[pa.Array] = list(newer)
        self._hashes: list[npt.NDArray[np.uint64]] = []
        """Of the first chunks; the others are hashed when somebody asks for an id."""

    def append(self, ids: pa.ChunkedArray) -> None:
        """The ids of the next rows."""
        self._chunks += [chunk for chunk in ids.chunks if len(chunk)]

    def take(self, rows: _Rows) -> pa.StringArray:
        """The id of each row."""
        in_base = rows < self._num_base
        newer = pa.chunked_array(self._chunks, pa.string()).take(pa.array(rows[~in_base] - self._num_base)).combine_chunks()
        if self._base is None or not in_base.any():
            return newer
        older = self._base.doc_ids.take(pa.array(rows[in_base])).cast(pa.string())
        places = np.where(in_base, np.cumsum(in_base) - 1, in_base.sum() + np.cumsum(~in_base) - 1)
        return pa.concat_arrays([older, newer]).take(pa.array(places))

    def rows_of(self, ids: pa.Array) -> tuple[_Rows, _Rows]:
        """Pairs (position in ``ids``, row) of all rows that have one of these ids, which must differ from each other."""
        positions, rows = self._newer_rows_of(ids)
        if self._base is None:
            return positions, rows
        older_positions, older = self._base.rows_by_id(ids)
        return np.concatenate([older_positions, positions]), np.concatenate([older, rows])

    def _newer_rows_of(self, ids: pa.Array) -> tuple[_Rows, _Rows]:
        """One pass over the hashes of the newer rows; what agrees is compared itself."""
        self._hashes += [hash_ids(chunk) for chunk in self._chunks[len(self._hashes) :]]
        stored = np.concatenate([np.empty(0, np.uint64), *self._hashes])
        candidates = np.flatnonzero(np.isin(stored, hash_ids(ids)))
        positions = pc.index_in(self.take(candidates + self._num_base), ids.cast(pa.string()))
        found = pc.is_valid(positions).to_numpy(zero_copy_only=False)
        return positions.drop_null().to_numpy().astype(np.int64), candidates[found] + self._num_base
