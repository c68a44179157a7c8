"""The shards of a dataset as arrays, of which a bounded number is mapped at a time, wherever their rows lie now (dataset/placement.py).

Linux gives a process 65,530 maps (``vm.max_map_count``), and a dataset may have more shards than that. A file is mapped when it is read; beyond
MAX_MAPS the least recently read one is unmapped. A view that somebody still holds keeps its map until it is dropped, so it stays valid.
If a file is gone because a merge that was committed after this reader was opened replaced it, its rows are read from the merged file.

Invariant: what is read had the size and the SHA-256 that the manifest says when this process mapped it for the first time.
Costs: one stat of each file at opening (2 us), one reading of each file per process for its hash, and 0.1 ms each time that a file is mapped again.
Hashing runs at 1,200 MB a second and core (with SHA instructions): 0.8 s for 1 GB of shards. Gathering all rows of that GB takes 3.5 s of
processor time, so reading takes a quarter longer in the first epoch, and no longer in later ones.
"""

import errno
from collections import OrderedDict
from contextlib import suppress

import numpy as np

from pipelines.dataset.dataset import Dataset
from pipelines.dataset.placement import Ids, Placement
from pipelines.dataset.shards import Tokens, open_shard, unreadable
from pipelines.storage.pinned import verify_once
from pipelines.storage.store import is_there, missing
from schemas.errors import ShardCorrupt

MAX_MAPS = 8_192
"""Of one reader; a process may have several, and its libraries some thousand maps of their own."""
_GONE = {errno.ENOENT, errno.ESTALE}
"""What opening a file gives if it was removed in this moment; the second one over NFS."""
FEW_MAPS = 16
"""Enough for a reader that takes documents in commit order: it reads each file once and does not come back to it."""


class ShardMaps:
    """``maps[i]`` is file i of ``maps.placement``: (rows, S) token ids, read-only. Not for use by several threads."""

    def __init__(self, dataset: Dataset, max_maps: int | None = None) -> None:
        """Takes the places of rows from the newest version of the log, for rows of every version."""
        self.placement = dataset.newest_placement()
        self._root = dataset.root
        self._sequence_length = dataset.manifest.sequence_length
        self._max_maps = max_maps or MAX_MAPS
        self._rows: Ids = self.placement.files["rows"].to_numpy()
        self._newest = self.placement
        self._open: OrderedDict[int, Tokens] = OrderedDict()

    def check_present(self, files: Ids) -> None:
        """Raise ShardCorrupt if one of these files is missing."""
        paths = self.placement.files["path"]
        numbers = {self._root / paths[number].as_py(): number for number in files.tolist()}
        for path in missing(numbers):
            self[numbers[path]]

    def __getitem__(self, number: int) -> Tokens:
        """Raises ShardCorrupt if the file is not what its manifest promised, DatasetError if the system gives no more maps or files."""
        tokens = self._open.get(number)
        if tokens is None:
            while len(self._open) >= self._max_maps:
                self._open.popitem(last=False)
            tokens = self._open[number] = self._mapped(number)
        self._open.move_to_end(number)
        return tokens

    def rows(self, shard: str, num_rows: int) -> Tokens:
        """The rows of a shard that a manifest lists under this path."""
        number, first = self._place(shard)
        return self[number][first : first + num_rows]

    def span(self, shard: str, row: int, start: int, length: int) -> Tokens:
        """Token ids of one document, the end-of-text token last; a view of the mapped file. Raises ShardCorrupt if they are not all there."""
        number, first = self._place(shard)
        tokens = self[number].reshape(-1)
        at = (first + row) * self._sequence_length + start
        if at + length > len(tokens):
            raise ShardCorrupt(f"{shard} ends before row {row}, position {start}, {length} tokens; restore the file from a copy")
        return tokens[at : at + length]

    def _place(self, shard: str) -> tuple[int, int]:
        """Number of the file that has the shard, and the row at which it begins there."""
        first = self.placement.first_row(shard)
        number = self.placement.file_of(first)
        return number, first - int(self.placement.first_rows[number])

    def _mapped(self, number: int) -> Tokens:
        first, num_rows = int(self.placement.first_rows[number]), int(self._rows[number])
        while True:
            file = self._newest.file_of(first)
            with suppress(FileNotFoundError):
                at = first - int(self._newest.first_rows[file])
                return self._read(self._newest, file)[at : at + num_rows]
            known, self._newest = self._newest, Dataset(self._root).placement
            path = known.entry(file).path
            if self._newest.entry(self._newest.file_of(first)).path == path:
                raise ShardCorrupt(f"{self._root / path} is missing; restore the file from a copy")

    def _read(self, placement: Placement, file: int) -> Tokens:
        """Raises FileNotFoundError if it is not there."""
        entry = placement.entry(file)
        path = self._root / entry.path
        try:
            verify_once(self._root, entry)
            tokens = open_shard(path)
        except ShardCorrupt as error:
            if is_there(path):
                raise
            raise FileNotFoundError(path) from error
        except OSError as error:
            if error.errno in _GONE:
                raise FileNotFoundError(path) from error
            raise unreadable(path, error) from error
        if tokens.shape != (shape := (entry.rows, self._sequence_length)):
            raise ShardCorrupt(f"{path} has shape {tokens.shape}, its manifest promised {shape}; run `headrace datasets verify`")
        return tokens


def files_in(placement: Placement, first: int, end: int) -> Ids:
    """Numbers of the files that have rows [first, end)."""
    numbers: Ids = np.arange(placement.file_of(first), placement.file_of(end - 1) + 1) if end > first else np.empty(0, np.int64)
    return numbers
