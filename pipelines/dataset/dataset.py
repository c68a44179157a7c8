"""A dataset version as a reader sees it: the union of manifests 1..N. Nothing that no manifest lists is visible.

Opening costs one directory listing and one small file; the older manifests are read when they are asked for. A writer never asks for all of
them: it goes by the history (dataset/history.py) and by the few manifests that this leads to.
"""

import hashlib
from functools import cached_property
from pathlib import Path

import numpy as np

from pipelines.dataset.history import Holds, Rows, load_chunks, rows_of, save_chunks
from pipelines.storage.commit_log import CommitLog
from pipelines.storage.entries import parse_entry
from schemas.arrow import Split
from schemas.errors import DatasetNotFound, ManifestCorrupt
from schemas.manifest import DatasetManifest, DatasetRef, OffsetRange, ShardEntry, TokenizerRef

FOLDER = "log"


def dataset_log(root: Path) -> CommitLog:
    """The commit log of the dataset under a root."""
    return CommitLog(root / FOLDER)


def latest_version(root: Path, known: int = 0) -> int:
    """Newest committed version; 0 if there is no dataset. ``known``: one that is known to be committed, to begin looking there."""
    return dataset_log(root).latest(known)


def read_manifest(root: Path, version: int) -> DatasetManifest:
    """Manifest of a version. Raises DatasetNotFound, ManifestNewer, or ManifestCorrupt if it is damaged or not the version it is named after."""
    log = dataset_log(root)
    manifest = parse_entry(DatasetManifest, log.read(version), log.path(version))
    if manifest.version != version:
        raise ManifestCorrupt(f"{log.path(version)} says that it is version {manifest.version}; restore it from a copy")
    return manifest


class Dataset:
    """Version N (the newest by default) of the dataset under ``root``. Raises DatasetNotFound if it does not exist."""

    def __init__(self, root: Path, version: int | None = None, *, before: "Dataset | None" = None) -> None:
        """``before``: a version of the same dataset that was opened earlier; its history is not read again."""
        newest = latest_version(root, before.version if before else 0)
        if newest == 0:
            raise DatasetNotFound(f"there is no dataset under {root}; run `headrace ingest --once` first, or name another --root")
        if version is not None and not 1 <= version <= newest:
            raise DatasetNotFound(f"there is no dataset version {version} under {root}; versions 1 to {newest} exist")
        self.root = root
        self.version: int = version or newest
        self.manifest = read_manifest(root, self.version)
        self._num_saved = 0
        self._before = before

    @property
    def tokenizer(self) -> TokenizerRef:
        """The one tokenizer of all versions."""
        return self.manifest.tokenizer

    def manifests(self) -> list[DatasetManifest]:
        """Manifests 1..N, in order. They stay in memory: nothing for a writer that runs for months."""
        return self._manifests

    def read(self, version: int) -> DatasetManifest:
        """Manifest of one of the versions 1..N."""
        return self.manifest if version == self.version else read_manifest(self.root, version)

    @cached_property
    def history(self) -> Rows:
        """Rows of dataset/history.py, of versions 1..N."""
        before, self._before = self._before, None
        if before is not None:
            rows, self._num_saved = before.history[: self.version], before._num_saved
        else:
            rows = load_chunks(self.root, dataset_log(self.root), self.version)
            self._num_saved = len(rows)
        return np.concatenate([rows, rows_of(map(self.read, range(len(rows) + 1, self.version + 1)))])

    def save_history(self) -> None:
        """For the one writer of the dataset: write what of the history is not on disk yet, so that the next opening need not read it from the log."""
        rows = self.history
        self._num_saved = save_chunks(self.root, dataset_log(self.root), rows, self._num_saved)

    def versions_with(self, what: Holds) -> list[int]:
        """Those of the versions 1..N that have it, ascending."""
        versions: list[int] = (np.flatnonzero(self.history["holds"] & what) + 1).tolist()
        return versions

    def shards(self, split: Split) -> list[ShardEntry]:
        """Shards of a split in the order of versions: row ids of an older version stay valid in every later one."""
        return [entry for manifest in self.manifests() for entry in manifest.shards if entry.split == split]

    def next_offsets(self, topic: str) -> dict[int, int]:
        """First offset of each partition that no version has read; empty if the topic was never read."""
        return {partition: span.end for partition, span in self._newest_offsets(topic).items()}

    def offsets(self) -> dict[str, dict[int, OffsetRange]]:
        """Offsets [first read, next) of every topic and partition that versions 1..N cover."""
        union: dict[str, dict[int, OffsetRange]] = {}
        for manifest in self.manifests():
            for topic, partitions in manifest.offsets.items():
                covered = union.setdefault(topic, {})
                for partition, span in partitions.items():
                    known = covered.get(partition, span)  # a loss that was accepted may lead back, and to a topic that was created again
                    covered[partition] = OffsetRange(start=min(known.start, span.start), end=max(known.end, span.end))
        return union

    def ref(self) -> DatasetRef:
        """What a model manifest says about the data it was trained on."""
        return DatasetRef(
            version=self.version,
            manifest_sha256=self.sha256,
            offsets=self.offsets(),
            num_train_tokens=self.manifest.totals.num_effective_train_tokens,
        )

    @cached_property
    def sha256(self) -> str:
        """SHA-256 (hex) of manifest N's bytes."""
        return hashlib.sha256(dataset_log(self.root).read(self.version)).hexdigest()

    @cached_property
    def _manifests(self) -> list[DatasetManifest]:
        return [self.read(number) for number in range(1, self.version + 1)]

    def _newest_offsets(self, topic: str) -> dict[int, OffsetRange]:
        """Every manifest lists all partitions of its topic, so the newest one that mentions the topic is enough."""
        if topic in self.manifest.topic_ids:
            for number in range(self.version, 0, -1):
                if offsets := self.read(number).offsets.get(topic):
                    return offsets
        return {}
