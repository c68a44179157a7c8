"""Merging the segments of the duplicate index into a new base: a version of the dataset that adds no documents.

Order: the base is written under a name of its own attempt and made durable; then a manifest lists it, published by create-if-absent as
any other. A crash before that leaves a file that no manifest lists (dataset/gc.py); a writer that was overtaken is fenced. A base is
published only while no listed one holds as much: so one that was passed is garbage, and the collector takes no other. Readers of older
versions find the base and the segments that those list: nothing is removed. The verdicts are the same with and without (dedup/resolve.py).

A follower compacts in the background: it goes on committing while a thread writes the base, which then covers the versions up to the one at
which it was begun; the segments after that stay in force.

It is due when enough segments have come and they hold an eighth of the base's documents: so a document is written again some nine times
at most for every tenfold growth, and what an opening reads besides the base stays small against it.
"""

import secrets
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipelines.dataset.dataset import Dataset
from pipelines.dataset.history import Holds
from pipelines.dataset.names import base_path
from pipelines.dataset.writer import manifest_without_documents, publish
from pipelines.dedup.base import write_base
from pipelines.dedup.opening import kept_parts
from pipelines.runtime.crash import crash_point
from pipelines.storage.durable import durable_file, file_entry
from pipelines.storage.pinned import check_size, verify_pinned
from schemas.errors import CommitConflict
from schemas.manifest import DatasetManifest, FileEntry
from schemas.settings import Settings

GROWTH = 8
"""A compaction waits until the segments hold one part in so many of the base's documents …"""
MAX_SEGMENTS_FACTOR = 32
"""… but not beyond this many times ``dedup.compact_segments``: opening many small files takes time too."""

MANY_ROWS = 500_000
"""So many documents in the segments are compacted however few versions they are of: what no base maps is in the writer's own memory, some
200 bytes each, and a large backlog makes versions of 100,000."""


class IndexFiles(NamedTuple):
    """What the duplicate index of a version consists of."""

    base: FileEntry | None
    segments: list[FileEntry]
    """Of the versions that the base does not cover, in order."""


def index_files(dataset: Dataset) -> IndexFiles:
    """The newest base of versions 1..N, and the segments after it."""
    base, _ = _base_and_later(dataset)
    segments = dataset.entries("dedup_segments", after=base.dedup_base_version if base else 0)
    return IndexFiles(base.dedup_base[0] if base else None, segments)


def _base_and_later(dataset: Dataset) -> tuple[DatasetManifest | None, list[int]]:
    """The version with the newest base, and those with segments that it does not cover."""
    bases = dataset.versions_with(Holds.BASE)
    base = dataset.read(bases[-1]) if bases else None
    covered = base.dedup_base_version if base else 0
    return base, [version for version in dataset.versions_with(Holds.SEGMENT) if version > covered]


def is_due(dataset: Dataset, compact_segments: int) -> bool:
    """Whether a compaction pays off. A pure function of the version, so that a crash before or in it changes nothing."""
    base, later = _base_and_later(dataset)
    num_rows = int(dataset.history["num_kept"][np.array(later, np.int64) - 1].sum())
    return pays_off(base.dedup_base[0].rows if base else 0, len(later), num_rows, compact_segments)


def pays_off(num_base_rows: int, num_segments: int, num_rows: int, compact_segments: int) -> bool:
    """The rule, for so many segments with so many rows together."""
    if not compact_segments or (num_segments < compact_segments and num_rows < MANY_ROWS):
        return False
    return GROWTH * num_rows >= num_base_rows or num_segments >= MAX_SEGMENTS_FACTOR * compact_segments


def compact(dataset: Dataset, settings: Settings, *, now: datetime, traceparent: str | None = None) -> DatasetManifest:
    """Write a new base over all kept documents of the newest version and publish it as the next one. Raises CommitConflict if fenced."""
    return publish_base(dataset, write_new_base(dataset, settings.dedup.max_hamming), settings, now=now, traceparent=traceparent)


class NewBase(NamedTuple):
    """A base that no manifest lists yet."""

    entry: FileEntry
    attempt: str
    covers: int
    """Version up to which it holds the kept documents."""


def write_new_base(dataset: Dataset, max_hamming: int) -> NewBase:
    """Write a base over all kept documents of the version, durably."""
    attempt = secrets.token_hex(6)
    entry = _write_base(dataset.root, index_files(dataset), max_hamming, base_path(dataset.version + 1, attempt))
    crash_point("base_written")
    return NewBase(entry, attempt, dataset.version)


def covered_version(dataset: Dataset) -> int:
    """Version up to which the newest base holds the kept documents; 0 if there is none."""
    base, _ = _base_and_later(dataset)
    return base.dedup_base_version if base else 0


def is_superseded(dataset: Dataset, base: NewBase) -> bool:
    """Whether a base that holds as much was published meanwhile."""
    return base.covers <= covered_version(dataset)


def publish_base(dataset: Dataset, base: NewBase, settings: Settings, *, now: datetime, traceparent: str | None = None) -> DatasetManifest:
    """Publish a base as the version after ``dataset``. Raises CommitConflict if fenced, or if a base that holds as much is listed already."""
    if is_superseded(dataset, base):
        raise CommitConflict(f"version {dataset.version} has an index base that holds as much as {base.entry.path}; start again from it")
    listed = {"dedup_base": [base.entry], "dedup_base_version": base.covers, "traceparent": traceparent}
    manifest = manifest_without_documents(dataset.manifest, base.attempt, settings, now, **listed)
    publish(dataset.root, manifest)
    crash_point("base_published")
    return manifest


def _write_base(root: Path, files: IndexFiles, max_hamming: int, path: str) -> FileEntry:
    parts = kept_parts(check_size(root, files.base) if files.base else None, [verify_pinned(root, entry) for entry in files.segments])
    with durable_file(root / path) as file:
        num_rows = write_base(file, parts, max_hamming)
    return file_entry(root, root / path, num_rows)
