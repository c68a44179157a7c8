"""Where the rows of all shards lie: a shard in a file of its own, or merged with its neighbours into one file (dataset/merging.py).

Every row has a number that never changes: train rows count from 0 in the order of versions, validation rows from their FIRST_ROW. A shard is a
run of rows, and so is a file. A merged file replaces all files whose rows it contains, also merged ones. Two files have no row in common, or
one contains all rows of the other. So the numbers of its rows describe a merged file completely.

A reader that has a path from a manifest, an audit trail, a mask or a view asks here for the number of its first row, and for the file with that row.
Costs 0.1 s and 40 MB per 100,000 shards, once for each version that is opened.
"""

from collections.abc import Iterable
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.dataset.columns import flattened, shard_entries
from schemas.arrow import Split
from schemas.errors import DatasetError
from schemas.manifest import ShardEntry

Ids = npt.NDArray[np.int64]
FIRST_ROW = {Split.TRAIN: 0, Split.VALIDATION: 1 << 40}
"""Number of the first row of each split. Its product with the longest row, 2**20 tokens, fits into 64 bits."""


class Placement:
    """Shards and files of versions 1..N, ascending by their rows."""

    def __init__(self, columns: pa.Table) -> None:
        """``columns``: rows of VERSIONS."""
        self.shards = _numbered(flattened(columns, "shards"))
        """Shards as versions list them, with ``first_row``."""
        self.merged = _with_first_rows(flattened(columns, "merged"))
        """Every file of every merge, in the order of versions."""
        self.files = _files(self.shards, self.merged)
        """The files to open: path, rows, size_bytes, sha256, split, tokens, documents, first_row, copies."""
        self.first_rows: Ids = self.files["first_row"].to_numpy()
        """Of each file."""

    def file_of(self, row: int) -> int:
        """Number of the file that has the row."""
        return int(self.files_of(np.array([row]))[0])

    def files_of(self, rows: Ids) -> Ids:
        """Numbers of the files that have these rows. The rows must exist."""
        found: Ids = np.searchsorted(self.first_rows, rows, side="right") - 1
        return found

    def first_row(self, shard: str) -> int:
        """Number of the first row of the shard, or merged file, that a manifest lists under this path. Raises DatasetError."""
        return int(self.first_rows_of([shard])[0])

    def first_rows_of(self, shards: Iterable[str]) -> Ids:
        """Numbers of the first rows of several. Raises DatasetError."""
        try:
            return np.array([self._by_path[shard] for shard in shards], np.int64)
        except KeyError as error:
            raise DatasetError(f"no version lists a shard {error.args[0]!r}; run `headrace datasets verify`") from error

    def place_of(self, shard: str, row: int = 0) -> tuple[str, int]:
        """Path of the file in which a row of a shard lies, and its number there. Raises DatasetError."""
        number = self.first_row(shard) + row
        file = self.file_of(number)
        return self.files["path"][file].as_py(), number - int(self.first_rows[file])

    def entry(self, file: int) -> ShardEntry:
        """The manifest's entry of a file."""
        return shard_entries(self.files.slice(file, 1))[0]

    def of_split(self, split: Split) -> pa.Table:
        """Rows of ``files`` of a split."""
        return self.files.filter(pc.equal(self.files["split"], str(split)))

    def replaced(self) -> dict[str, int]:
        """Paths of shards and merged files whose rows lie in another file now -> number of that file."""
        listed = pa.concat_tables([table.select(["path", "first_row"]) for table in (self.shards, self.merged)])
        if not len(listed):
            return {}
        files = self.files_of(listed["first_row"].to_numpy())
        is_elsewhere = pc.not_equal(listed["path"], self.files["path"].take(pa.array(files)))
        return dict(zip(listed["path"].filter(is_elsewhere).to_pylist(), files[is_elsewhere.to_numpy()].tolist(), strict=True))

    @cached_property
    def _by_path(self) -> dict[str, int]:
        return {
            path: row
            for table in (self.shards, self.merged)
            for path, row in zip(table["path"].to_pylist(), table["first_row"].to_pylist(), strict=True)
        }


def _numbered(shards: pa.Table) -> pa.Table:
    """Train shards first, each with the number of its first row."""
    parts = []
    for split, first in FIRST_ROW.items():
        part = shards.filter(pc.equal(shards["split"], str(split)))
        rows = part["rows"].to_numpy()
        parts.append(part.append_column("first_row", pa.array(first + np.cumsum(rows) - rows, pa.int64())))
    return pa.concat_tables(parts)


def _with_first_rows(merged: pa.Table) -> pa.Table:
    """A manifest counts the rows of each split from 0."""
    first = np.array([FIRST_ROW[Split(split)] for split in merged["split"].to_pylist()], np.int64)
    place = merged.schema.get_field_index("first_row")
    return merged.set_column(place, "first_row", pa.array(merged["first_row"].to_numpy() + first, pa.int64()))


def _files(shards: pa.Table, merged: pa.Table) -> pa.Table:
    """The widest merged files, and the shards that are in none of them."""
    alone = shards.append_column("copies", pa.array(np.zeros(len(shards), np.int64))).drop_columns("version")
    if not len(merged):
        return alone
    first, ends = _bounds(merged)
    order = np.lexsort((-ends, first))
    reached = np.maximum.accumulate(np.append(-1, ends[order][:-1]))
    widest = order[ends[order] > reached]  # ascending by their first rows
    own_first, own_ends = _bounds(alone)
    place = np.searchsorted(first[widest], own_first, side="right") - 1
    is_covered = (place >= 0) & (own_ends <= ends[widest][place])
    wide = merged.take(pa.array(widest)).select(alone.column_names).cast(alone.schema)
    files = pa.concat_tables([alone.filter(pa.array(~is_covered)), wide])
    return files.take(pc.sort_indices(files, [("first_row", "ascending")]))


def _bounds(files: pa.Table) -> tuple[Ids, Ids]:
    first: Ids = files["first_row"].to_numpy()
    return first, first + files["rows"].to_numpy()
