"""Merging runs of small shards into one file: a version of the dataset that adds no documents.

A slow stream commits a shard of a few rows every few seconds, and a reader opens and maps each of them. A merge copies the rows of many shards
into one file, in the order of versions, unchanged, with the padding at the end of each shard. So rows keep their numbers (dataset/placement.py).
Documents, masks, views and models keep the names of their shards. Training that is resumed reads the same rows, bit for bit.

Order: (1) read the shards and compare them with their SHA-256; (2) write the file durably, under a name of this attempt; (3) read the file again,
rebuild the bytes of each shard's own file from its rows, and compare them with its SHA-256; (4) publish a manifest that lists the file, by
create-if-absent. A crash before (4) leaves a file that no manifest lists. After (4) the shards' own files are garbage (dataset/gc.py): their
versions still list them, and readers find their rows in the merged file.

A merge is due when ``ingest.merge_shards`` consecutive files of a split have under a SMALL-th of ``packing.shard_rows`` each and were copied
equally often. The merged file either is no longer small or was copied once more than they were. So rows are copied once for about every tenfold
growth of their file (with 64 at a time: at most three times up to 65,536 rows), and few files that were copied equally often stay side by side.
Memory: one shard of ``packing.shard_rows``.
"""

import logging
import secrets
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.dataset.columns import shard_entries
from pipelines.dataset.dataset import Dataset
from pipelines.dataset.names import merged_path, version_of
from pipelines.dataset.placement import FIRST_ROW, Placement
from pipelines.dataset.shards import joined, parse_batch, read_batch, shard_sha256, write_shard
from pipelines.dataset.writer import manifest_without_documents, publish
from pipelines.runtime.crash import crash_point
from pipelines.storage.pinned import read_pinned
from pipelines.storage.store import remove
from schemas.arrow import Split
from schemas.errors import CommitConflict, DatasetError, ShardCorrupt
from schemas.manifest import DatasetManifest, MergedShard, ShardEntry
from schemas.settings import Settings

_log = logging.getLogger(__name__)
SMALL = 4
"""A file is small if it has fewer rows than the limit of a shard divided by this."""
MAX_PARTS = 1_024
"""Most files that a merge takes, unless the settings ask for more. So a merge takes seconds, and little work is lost if it loses a race."""


class Run(NamedTuple):
    """Consecutive files of a split that become one file."""

    split: Split
    first_row: int
    """Number of the first row in the split."""
    parts: list[ShardEntry]
    copies: int
    """How often the rows of each were copied so far."""


class Merge(NamedTuple):
    """Files that no manifest lists yet."""

    entries: list[MergedShard]
    attempt: str
    runs: list[Run]
    """The run of files from which each of them was made."""


def due_runs(placement: Placement, merge_shards: int, shard_rows: int) -> list[Run]:
    """The first run of each split that is due. A pure function of the version, so that a crash before or in a merge changes nothing."""
    runs = [_due_run(placement, split, merge_shards, shard_rows) for split in Split] if merge_shards else []
    return [run for run in runs if run is not None]


def _due_run(placement: Placement, split: Split, merge_shards: int, shard_rows: int) -> Run | None:
    files = placement.of_split(split)
    rows, copies = files["rows"].to_numpy(), files["copies"].to_numpy()
    kind = np.where(SMALL * rows < shard_rows, copies, -1)
    starts = np.flatnonzero(np.diff(kind, prepend=-2))
    lengths = np.diff(starts, append=len(kind))
    due = np.flatnonzero((lengths >= merge_shards) & (kind[starts] >= 0))
    if not len(due):
        return None
    first = int(starts[due[0]])
    most = min(int(lengths[due[0]]), max(MAX_PARTS, merge_shards))
    number = int(np.searchsorted(np.cumsum(rows[first : first + most]), shard_rows, side="right"))
    parts = files.slice(first, number)
    return Run(split, parts["first_row"][0].as_py() - FIRST_ROW[split], shard_entries(parts), int(copies[first]))


def write_merge(dataset: Dataset, runs: list[Run]) -> Merge:
    """Write a file for each run, durably. A run that fails is left out, and its file is removed.

    If every run fails, raises ShardCorrupt (a shard is not what its manifest says) or OSError.
    """
    attempt = secrets.token_hex(6)
    crash_point("merge_begun")
    made: list[tuple[Run, MergedShard]] = []
    failed: DatasetError | OSError | None = None
    for run in runs:
        path = merged_path(dataset.version + 1, run.split, attempt)
        try:
            made.append((run, _write_run(dataset.root, run, path)))
        except (DatasetError, OSError) as error:
            remove(dataset.root / path)
            _log.warning("%d small %s shards are not merged: %s", len(run.parts), run.split, error)
            failed = error
    if failed is not None and not made:
        raise failed
    crash_point("merge_written")
    return Merge([entry for _, entry in made], attempt, [run for run, _ in made])


def _write_run(root: Path, run: Run, path: str) -> MergedShard:
    entry = write_shard(root, path, joined(_batches(root, run.parts), sum(part.rows for part in run.parts)))
    crash_point("merged_shard_written")
    _check_parts(run, read_batch(root / path), root / path)
    return MergedShard(
        **entry.model_dump(),
        split=run.split,
        tokens=sum(part.tokens for part in run.parts),
        documents=sum(part.documents for part in run.parts),
        first_row=run.first_row,
        copies=run.copies + 1,
    )


def _batches(root: Path, parts: list[ShardEntry]) -> Iterator[pa.RecordBatch]:
    for part in parts:
        yield parse_batch(root / part.path, read_pinned(root, part))


def _check_parts(run: Run, merged: pa.RecordBatch, path: Path) -> None:
    at = 0
    for part in run.parts:
        if shard_sha256(merged.slice(at, part.rows)) != part.sha256:
            raise ShardCorrupt(f"{path} does not reproduce the bytes of {part.path}; nothing was published. Run `headrace datasets verify`")
        at += part.rows


def newest_merged(dataset: Dataset) -> dict[Split, int]:
    """Split -> version in the name of the newest merged file. A merge that was begun before that version is never published."""
    files = dataset.files("merged")
    return {split: max(map(version_of, files.filter(pc.equal(files["split"], str(split)))["path"].to_pylist()), default=0) for split in Split}


def is_superseded(dataset: Dataset, merge: Merge) -> bool:
    """Whether another merge was published meanwhile that was begun no earlier, or that took one of the files."""
    newest = newest_merged(dataset)
    return any(
        newest[entry.split] >= version_of(entry.path) or _files_now(dataset.placement, run) != [part.path for part in run.parts]
        for entry, run in zip(merge.entries, merge.runs, strict=True)
    )


def _files_now(placement: Placement, run: Run) -> list[str]:
    """Paths of the files that have the rows of a run."""
    first = FIRST_ROW[run.split] + run.first_row
    start = placement.file_of(first)
    end = placement.file_of(first + sum(part.rows for part in run.parts) - 1)
    paths: list[str] = placement.files["path"].slice(start, end - start + 1).to_pylist()
    return paths


def publish_merge(dataset: Dataset, merge: Merge, settings: Settings, *, now: datetime, traceparent: str | None = None) -> DatasetManifest:
    """Publish a merge as the version after ``dataset``. Raises CommitConflict if fenced, or if another merge replaced this one."""
    if is_superseded(dataset, merge):
        raise CommitConflict(f"another merge came before {merge.entries[0].path}; nothing was published. Start again from version {dataset.version}")
    manifest = manifest_without_documents(dataset.manifest, merge.attempt, settings, now, merged=merge.entries, traceparent=traceparent)
    publish(dataset.root, manifest)
    crash_point("merge_published")
    return manifest


def merge(dataset: Dataset, settings: Settings, *, now: datetime) -> DatasetManifest | None:
    """Merge the runs that are due and publish the merge; None if no run is due. Raises CommitConflict, ShardCorrupt."""
    runs = due_runs(dataset.placement, settings.ingest.merge_shards, settings.packing.shard_rows)
    return publish_merge(dataset, write_merge(dataset, runs), settings, now=now) if runs else None
