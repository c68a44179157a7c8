"""Checks of shards: their files, wherever their rows lie, and their rows.

The spans of a shard tile it without gap or overlap, each ends in the end-of-text token, and padding follows the last. A merged file has the
unchanged rows of its shards: the bytes of each shard's own file are rebuilt from these rows and compared with the SHA-256 that its version
listed, whether the shard's own file still exists or not. Reads a merged file twice.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.dataset.dataset import Dataset
from pipelines.dataset.names import version_of
from pipelines.dataset.placement import FIRST_ROW, Placement
from pipelines.dataset.shards import read_batch, shard_sha256, token_rows
from pipelines.storage.durable import sha256_file
from pipelines.storage.store import fetched, is_there
from schemas.errors import DatasetError
from schemas.manifest import DatasetManifest, FileEntry, MergedShard, ShardEntry

RESTORE = "restore the file from a copy"
START_AGAIN = "something other than Headrace changed the dataset; start a new dataset under another --root"
Found = tuple[str, str, str]
"""path, what, fix"""


def file_problems(root: Path, entry: FileEntry) -> Iterator[Found]:
    """Whether the file is there and has the bytes that the manifest says."""
    path = root / entry.path
    try:
        is_file = fetched(path).is_file()  # what the store has, not the copy on this host
    except FileNotFoundError:
        is_file = False
    if not is_file:
        yield entry.path, "the file is missing", RESTORE
    elif (sha256 := sha256_file(path)) != entry.sha256:
        yield entry.path, f"SHA-256 is {sha256} ({path.stat().st_size} bytes), the manifest says {entry.sha256} ({entry.size_bytes} bytes)", RESTORE


class ShardChecks:
    """Checks the shards of one dataset; ``placement`` says where its rows lie now. Keeps the file that was read last open."""

    def __init__(self, root: Path, placement: Placement) -> None:
        self._root = root
        self._placement = placement
        self._open: tuple[str, pa.RecordBatch] | None = None

    def file_problems(self, entry: ShardEntry) -> list[Found]:
        """What is wrong with the file of a shard, or with the one that has its rows now."""
        try:
            now = self._now(entry)
        except DatasetError as error:
            return [(entry.path, str(error), START_AGAIN)]
        found = [] if now != entry.path and not is_there(self._root / entry.path) else list(file_problems(self._root, entry))
        if now == entry.path or list(file_problems(self._root, self._placement.entry(self._file(entry)))):
            return found  # problems of the other file are reported with its own version
        try:
            is_same = shard_sha256(self.batch(entry)) == entry.sha256
        except (DatasetError, pa.ArrowInvalid) as error:
            return [*found, (now, f"the rows of {entry.path} cannot be read from it: {error}", RESTORE)]
        return found if is_same else [*found, (now, f"it does not reproduce the bytes of {entry.path}", RESTORE)]

    def batch(self, entry: ShardEntry) -> pa.RecordBatch:
        """The rows of a shard."""
        first = self._placement.first_row(entry.path)
        now = self._now(entry)
        if self._open is None or self._open[0] != now:
            self._open = (now, read_batch(self._root / now))
        batch: pa.RecordBatch = self._open[1].slice(first - int(self._placement.first_rows[self._placement.file_of(first)]), entry.rows)
        return batch

    def merged_problems(self, manifest: DatasetManifest, entry: MergedShard) -> Iterator[Found]:
        """Whether a merged file replaces whole shards of earlier versions, and counts as many tokens and documents as they do."""
        first, shards = FIRST_ROW[entry.split] + entry.first_row, self._placement.shards
        rows = shards["first_row"]
        inside = shards.filter(pc.and_(pc.greater_equal(rows, first), pc.less(rows, first + entry.rows)))
        sums = tuple(pc.sum(inside[name]).as_py() for name in ("rows", "tokens", "documents"))
        is_whole = len(inside) and inside["first_row"][0].as_py() == first and pc.max(inside["version"]).as_py() < manifest.version
        if not is_whole or sums != (entry.rows, entry.tokens, entry.documents) or version_of(entry.path) > manifest.version:
            what = f"rows {entry.first_row} to {entry.first_row + entry.rows - 1} are not those of whole shards of earlier versions"
            yield entry.path, what, START_AGAIN

    def problems(self, manifest: DatasetManifest, entry: ShardEntry, kept: pl.DataFrame) -> Iterator[Found]:
        """Whether the spans of a shard tile it, and the ``starts`` column agrees with them."""
        batch = self.batch(entry)
        rows, starts = token_rows(batch), batch.column("starts")
        spans = kept.filter(pl.col("shard") == entry.path)
        first = spans["row"].to_numpy() * manifest.sequence_length + spans["start"].to_numpy()
        ends = first + spans["length"].to_numpy()
        if rows.shape != (entry.rows, manifest.sequence_length) or entry.rows != -(-entry.tokens // manifest.sequence_length):
            yield entry.path, f"shape is {rows.shape}, the manifest says {entry.rows} rows for {entry.tokens} tokens", START_AGAIN
            return
        if len(spans) != entry.documents or [0, *ends[:-1]] != first.tolist() or ends[-1] != entry.tokens:
            yield entry.path, "the documents' spans do not tile the shard", START_AGAIN
            return
        flat = rows.reshape(-1)
        if not (flat[ends - 1] == manifest.tokenizer.eos_token_id).all():
            yield entry.path, "a document does not end in the end-of-text token", START_AGAIN
        if not (flat[entry.tokens :] == manifest.tokenizer.pad_token_id).all():
            yield entry.path, "something other than padding follows the last document", START_AGAIN
        listed = np.repeat(np.arange(entry.rows), starts.value_lengths().to_numpy()) * manifest.sequence_length + starts.flatten().to_numpy()
        if not np.array_equal(listed, first):
            yield entry.path, "the starts column does not list where documents begin", START_AGAIN

    def _file(self, entry: ShardEntry) -> int:
        return self._placement.file_of(self._placement.first_row(entry.path))

    def _now(self, entry: ShardEntry) -> str:
        path = self._listed(entry)
        if not is_there(self._root / path):  # a merge may have replaced it since we began
            self._placement = Dataset(self._root).placement
            path = self._listed(entry)
        return path

    def _listed(self, entry: ShardEntry) -> str:
        """Path of the file that has the rows of a shard."""
        return self._placement.entry(self._file(entry)).path
