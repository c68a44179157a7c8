"""Writes the audit trail of a version. The number of rows alone decides where row groups and files end, whoever writes them.

So the bytes of each file are a function of its rows, however they are cut into blocks, and one task can write one file. Holds the rows of one row
group. A version has at least one file.
"""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.storage.durable import durable_file, file_entry
from schemas.arrow import DOCUMENTS
from schemas.manifest import FileEntry

ROW_GROUP_ROWS = 10_000
"""Smaller row groups cost time to write and to read."""
TRAIL_FILE_ROWS = 20 * ROW_GROUP_ROWS
"""Rows of a file; the last one of a version has fewer."""
REPETITIVE = ["topic", "partition", "outcome", "reason", "language", "shard", "source", "domain", "license", "pii.list.element.type"]
"""Columns of DOCUMENTS that repeat a few values. For any other column Parquet would build a dictionary and then discard it."""


class TrailWriter:
    """Use it in a ``with`` block: ``add`` rows in commit order, then ``finish``. After an error only complete files are left."""

    def __init__(self, root: Path, path_of: Callable[[int], str]) -> None:
        """``path_of(number)`` names the files, relative to the root."""
        self._root = root
        self._path_of = path_of
        self._entries: list[FileEntry] = []
        self._waiting = [DOCUMENTS.empty_table()]
        self._file = ExitStack()
        self._writer: pq.ParquetWriter | None = None
        self._num_rows = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.__exit__(kind, error, trace)

    def add(self, documents: pa.Table) -> None:
        """The next rows of DOCUMENTS."""
        self._waiting.append(documents)
        while sum(map(len, self._waiting)) >= self._room():
            self._write_group()

    def finish(self) -> list[FileEntry]:
        """Write what is left; returns the entries of all files, in order."""
        if sum(map(len, self._waiting)) or not (self._entries or self._writer):
            self._write_group()
        self._close()
        return self._entries

    def _room(self) -> int:
        """Rows of the next row group."""
        return min(ROW_GROUP_ROWS, TRAIL_FILE_ROWS - self._num_rows)

    def _write_group(self) -> None:
        waiting, room = pa.concat_tables(self._waiting), self._room()
        rows, self._waiting = waiting.slice(0, room), [waiting.slice(room)]
        self._writer = self._writer or self._opened()
        self._writer.write_table(rows.combine_chunks(), row_group_size=ROW_GROUP_ROWS)  # the cut into chunks would change the file's pages
        self._num_rows += len(rows)
        if self._num_rows == TRAIL_FILE_ROWS:
            self._close()

    def _opened(self) -> pq.ParquetWriter:
        file = self._file.enter_context(durable_file(self._root / self._path_of(len(self._entries))))
        return self._file.enter_context(pq.ParquetWriter(file, DOCUMENTS, compression="zstd", use_dictionary=REPETITIVE))

    def _close(self) -> None:
        if self._writer is not None:
            self._file.close()
            path = self._root / self._path_of(len(self._entries))
            self._entries.append(file_entry(self._root, path, self._num_rows))
            self._writer, self._num_rows = None, 0
