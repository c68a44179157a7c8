"""A dataset version as a reader sees it: the union of manifests 1..N. Nothing that no manifest lists is visible.

Opening costs one directory listing and one small file; the older manifests are read when they are asked for.
"""

import hashlib
from functools import cached_property
from pathlib import Path

from pydantic import ValidationError

from pipelines.dataset.log import CommitLog
from schemas.arrow import Split
from schemas.errors import DatasetNotFound, ManifestCorrupt
from schemas.manifest import DatasetManifest, DatasetRef, OffsetRange, ShardEntry, TokenizerRef

FOLDER = "log"


def dataset_log(root: Path) -> CommitLog:
    """The commit log of the dataset under a root."""
    return CommitLog(root / FOLDER)


def latest_version(root: Path) -> int:
    """Newest committed version; 0 if there is no dataset."""
    return dataset_log(root).latest()


def read_manifest(root: Path, version: int) -> DatasetManifest:
    """Manifest of a version. Raises DatasetNotFound, or ManifestCorrupt if it does not parse or is not the version it is named after."""
    log = dataset_log(root)
    try:
        manifest = DatasetManifest.model_validate_json(log.read(version))
    except ValidationError as error:
        raise ManifestCorrupt(f"{log.path(version)} is not a valid manifest: {error.errors()[0]['msg']}; restore it from a copy") from error
    if manifest.version != version:
        raise ManifestCorrupt(f"{log.path(version)} says that it is version {manifest.version}; restore it from a copy")
    return manifest


class Dataset:
    """Version N (the newest by default) of the dataset under ``root``. Raises DatasetNotFound if it does not exist."""

    def __init__(self, root: Path, version: int | None = None, *, before: "Dataset | None" = None) -> None:
        """``before``: a version of the same dataset that was opened earlier. What it has read is not read again, and has no statistics here."""
        newest = latest_version(root)
        if newest == 0:
            raise DatasetNotFound(f"there is no dataset under {root}; run `headrace ingest --once` first, or name another --root")
        if version is not None and not 1 <= version <= newest:
            raise DatasetNotFound(f"there is no dataset version {version} under {root}; versions 1 to {newest} exist")
        self.root = root
        self.version = version or newest
        self.manifest = read_manifest(root, self.version)
        self._before = before

    @property
    def tokenizer(self) -> TokenizerRef:
        """The one tokenizer of all versions."""
        return self.manifest.tokenizer

    def manifests(self) -> list[DatasetManifest]:
        """Manifests 1..N, in order."""
        return self._manifests

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
                    start = covered[partition].start if partition in covered else span.start
                    covered[partition] = OffsetRange(start=start, end=span.end)
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
        """Manifests never change, so a writer that goes from version to version parses each of them once.

        It remembers them without their statistics, which are nine tenths of their memory and nothing that a writer looks at.
        """
        before, self._before = self._before, None
        known = [_lean(manifest) for manifest in before.manifests()[: self.version - 1]] if before is not None else []
        return [*known, *(read_manifest(self.root, number) for number in range(len(known) + 1, self.version)), self.manifest]

    def _newest_offsets(self, topic: str) -> dict[int, OffsetRange]:
        """Every manifest lists all partitions of its topic, so the newest one that mentions the topic is enough."""
        for number in range(self.version, 0, -1):
            manifest = self.manifest if number == self.version else read_manifest(self.root, number)
            if topic in manifest.offsets:
                return manifest.offsets[topic]
        return {}


def _lean(manifest: DatasetManifest) -> DatasetManifest:
    return manifest if manifest.statistics is None else manifest.model_copy(update={"statistics": None})
