"""A dataset version as a reader sees it: the union of manifests 1..N. Nothing that no manifest lists is visible.

Opening costs one small file, however long the log is. What is asked of all versions comes from their columns (dataset/columns.py): those of the
checkpoints are mapped, those of the few newer versions are read from their manifests. Older manifests are read one by one when they are asked for.
"""

import hashlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.dataset.checkpoints import Range, cover, load, load_checkpoints, newest_listed, remove_covered, save_checkpoint
from pipelines.dataset.columns import columns_of, file_entries, flattened, offset_versions, shard_entries, versions_of_topic
from pipelines.dataset.history import Holds, Rows, history_of
from pipelines.dataset.manifests import Manifests
from pipelines.dataset.placement import FIRST_ROW, Placement
from pipelines.storage.commit_log import CommitLog
from pipelines.storage.entries import parse_entry
from schemas.arrow import VERSIONS, Split
from schemas.errors import DatasetNotFound, ManifestCorrupt
from schemas.manifest import DatasetManifest, DatasetRef, FileEntry, OffsetRange, ShardEntry, TokenizerRef

FOLDER = "log"


def dataset_log(root: Path) -> CommitLog:
    """The commit log of the dataset under a root."""
    return CommitLog(root / FOLDER)


def latest_version(root: Path, known: int = 0) -> int:
    """Newest committed version; 0 if there is no dataset. ``known``: one that is known to be committed, to begin looking there."""
    return dataset_log(root).latest(known or newest_listed(root))


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
        """``before``: a version of the same dataset that was opened earlier; its columns are not read again."""
        newest = latest_version(root, before.version if before else 0)
        if newest == 0:
            raise DatasetNotFound(f"there is no dataset under {root}; run `headrace ingest --once` first, or name another --root")
        if version is not None and not 1 <= version <= newest:
            raise DatasetNotFound(f"there is no dataset version {version} under {root}; versions 1 to {newest} exist")
        self.root = root
        self.version: int = version or newest
        self.manifest = read_manifest(root, self.version)
        self._saved: frozenset[Range] = frozenset()
        """Checkpoints that are on disk as they should be."""
        self._before = before

    @property
    def tokenizer(self) -> TokenizerRef:
        """The one tokenizer of all versions."""
        return self.manifest.tokenizer

    def manifests(self) -> Manifests:
        """Manifests 1..N, in order, each read when it is asked for."""
        return Manifests(self.read, range(1, self.version + 1))

    def read(self, version: int) -> DatasetManifest:
        """Manifest of one of the versions 1..N."""
        return self.manifest if version == self.version else read_manifest(self.root, version)

    @cached_property
    def columns(self) -> pa.Table:
        """Rows of VERSIONS, of versions 1..N."""
        before, self._before = self._before, None
        if before is not None:
            self._saved = before._saved
            return self._filled([(1, before.columns.slice(0, self.version))])
        found = load_checkpoints(self.root, dataset_log(self.root), self.version)
        self._saved = frozenset(checkpoint.range for checkpoint in found)
        return self._filled([(versions.first, columns.slice(0, self.version - versions.first + 1)) for versions, columns in found])

    @cached_property
    def history(self) -> Rows:
        """Rows of dataset/history.py, of versions 1..N."""
        return history_of(self.columns)

    def save_checkpoints(self) -> None:
        """For a writer of the dataset: write the checkpoints that are due, so that the next opening need not read these versions from the log."""
        columns, log, wanted = self.columns, dataset_log(self.root), cover(self.version)
        if self._saved.issuperset(wanted):
            return
        parts = []
        for versions in wanted:
            part = columns.slice(versions.first - 1, versions.length)
            if versions not in self._saved:
                save_checkpoint(self.root, log, versions, part)
                part = load(self.root, log, versions) or part
            parts.append((versions.first, part))
        remove_covered(self.root, wanted)
        self._saved = frozenset(wanted)
        tail = wanted[-1].last
        self.columns = self._filled([*parts, (tail + 1, columns.slice(tail))])

    def versions_with(self, what: Holds) -> list[int]:
        """Those of the versions 1..N that have it, ascending."""
        versions: list[int] = (np.flatnonzero(self.history["holds"] & what) + 1).tolist()
        return versions

    def files(self, name: str) -> pa.Table:
        """Files of one of the FILE_LISTS, in the order of versions, with the ``version`` that added each."""
        return flattened(self.columns, name)

    def paths(self, name: str, versions: Sequence[int] | None = None) -> list[Path]:
        """Where they lie; ``versions``: only those that these versions added."""
        files = self.files(name)
        if versions is not None:
            files = files.filter(pc.is_in(files["version"], pa.array(versions, pa.int64())))
        return [self.root / path for path in files["path"].to_pylist()]

    def entries(self, name: str, *, after: int = 0) -> list[FileEntry]:
        """Their entries, of the versions after this one."""
        files = self.files(name)
        return file_entries(files.filter(pc.greater(files["version"], after)))

    @cached_property
    def placement(self) -> Placement:
        """Where the rows of versions 1..N lie, as these versions say."""
        return Placement(self.columns)

    def newest_placement(self) -> Placement:
        """Where the rows of these and of later versions lie now."""
        newest = latest_version(self.root, self.version)
        return self.placement if newest == self.version else Dataset(self.root, newest).placement

    def shard_files(self, split: Split) -> pa.Table:
        """Files with the rows of a split, in the order of versions, without shards that were merged into another file. Row ids of an older version
        stay valid in every later one.
        """
        return self.placement.of_split(split)

    def shards(self, split: Split) -> list[ShardEntry]:
        """Their entries."""
        return shard_entries(self.shard_files(split))

    def num_rows(self, split: Split) -> int:
        """Rows of all shards of a split."""
        return int(pc.sum(self.shard_files(split)["rows"]).as_py() or 0)

    def row_range(self, split: Split) -> tuple[int, int]:
        """Numbers of the split's rows, [first, end) (dataset/placement.py)."""
        return FIRST_ROW[split], FIRST_ROW[split] + self.num_rows(split)

    def next_offsets(self, topic: str) -> dict[int, int]:
        """First offset of each partition that no version has read; empty if the topic was never read."""
        return {partition: span.end for partition, span in self._newest_offsets(topic).items()}

    def offsets(self) -> dict[str, dict[int, OffsetRange]]:
        """Offsets [first read, next) of every topic and partition that versions 1..N cover."""
        union: dict[str, dict[int, OffsetRange]] = {}
        for manifest in map(self.read, offset_versions(self.columns)):
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

    def _newest_offsets(self, topic: str) -> dict[int, OffsetRange]:
        """Every manifest lists all partitions of its topic, so the newest one that mentions the topic is enough."""
        if topic in self.manifest.offsets:
            return self.manifest.offsets[topic]
        if topic not in self.manifest.topic_ids:
            return {}
        versions = versions_of_topic(self.columns, topic)
        return self.read(int(versions[-1])).offsets[topic] if len(versions) else {}

    def _filled(self, parts: list[tuple[int, pa.Table]]) -> pa.Table:
        """Columns of versions 1..N: these, which begin with these versions, and what is missing from the manifests."""
        tables, at = [VERSIONS.empty_table()], 1
        for first, columns in parts:
            tables += [self._read_columns(range(at, first)), columns]
            at = first + len(columns)
        return pa.concat_tables([*tables, self._read_columns(range(at, self.version + 1))])

    def _read_columns(self, versions: Iterable[int]) -> pa.Table:
        return columns_of(map(self.read, versions))
