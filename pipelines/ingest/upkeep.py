"""Versions without documents that replace many small files by few, so that readers open the dataset faster.

There are two kinds: a compaction of the duplicate index (dataset/compaction.py), and a merge of small shards (dataset/merging.py). Each begins
when it is due, and is published as a version of its own. In the background a thread writes the files while batches go on. One call begins the
work, a later call publishes it, and neither waits.

A merge that fails changes nothing: the error is logged, and this process begins no other merge. A merge that another one overtook is dropped.
The garbage collector removes its file (dataset/gc.py), and the shards that a published merge replaced.
"""

import logging
from datetime import UTC, datetime
from pathlib import Path

from pipelines.dataset.compaction import NewBase, is_superseded, publish_base, write_new_base
from pipelines.dataset.dataset import Dataset
from pipelines.dataset.gc import collect_garbage
from pipelines.dataset.merging import Merge, due_runs, publish_merge, write_merge
from pipelines.dataset.merging import is_superseded as is_merge_superseded
from pipelines.runtime.background import Background
from pipelines.runtime.tracing import current_traceparent, span
from schemas.errors import CommitConflict, DatasetError
from schemas.manifest import DatasetManifest
from schemas.settings import Settings

_log = logging.getLogger(__name__)


class Upkeep:
    """Compactions and merges of the dataset under ``settings.root``. Not for use by several threads."""

    def __init__(self, settings: Settings, *, in_background: bool) -> None:
        self._settings = settings
        self._in_background = in_background
        self._base: Background[NewBase] | None = None
        self._merge: Background[Merge] | None = None
        self._may_merge = settings.ingest.merge_shards > 0
        self._looked_at = 0
        """The newest version in which no merge was due."""

    def has_base(self) -> bool:
        """Whether a base is being written, or waits to be published."""
        return self._base is not None

    def compact(self, dataset: Dataset) -> DatasetManifest | None:
        """Begin a compaction, or publish one that is done; none if nothing was published. Raises CommitConflict if another writer was first."""
        if self._base is None:
            self._base = Background(lambda: write_new_base(dataset, self._settings.dedup.max_hamming), "headrace-compaction")
        if self._in_background and not self._base.is_done():
            return None
        with span("dataset.compaction"):
            base, self._base = self._base.result(), None
            if is_superseded(dataset, base):
                return None
            return publish_base(dataset, base, self._settings, now=datetime.now(UTC), traceparent=current_traceparent())

    def merge(self, dataset: Dataset) -> DatasetManifest | None:
        """Begin a merge if one is due, or publish one that is done; none if nothing was published."""
        if self._merge is None:
            self._begin_merge(dataset)
        if self._merge is None or (self._in_background and not self._merge.is_done()):
            return None
        with span("dataset.merge"):
            manifest = self._publish_merge(dataset, self._merge)
        if manifest is not None:
            ingest = self._settings.ingest
            collect_garbage(Path(self._settings.root).resolve(), grace_s=ingest.gc_grace_s, merged_grace_s=ingest.merged_grace_s)
        return manifest

    def _begin_merge(self, dataset: Dataset) -> None:
        if not self._may_merge or self._looked_at == dataset.version:
            return
        runs = due_runs(dataset.placement, self._settings.ingest.merge_shards, self._settings.packing.shard_rows)
        if runs:
            self._merge = Background(lambda: write_merge(dataset, runs), "headrace-merge")
        else:
            self._looked_at = dataset.version

    def _publish_merge(self, dataset: Dataset, begun: Background[Merge]) -> DatasetManifest | None:
        try:
            merge = begun.result()
            if not is_merge_superseded(dataset, merge):
                return self._published(dataset, merge)
            self._merge = None
        except (DatasetError, OSError) as error:
            _log.warning("small shards are not merged: %s; the next start tries again", error)
            self._merge, self._may_merge = None, False
        return None

    def _published(self, dataset: Dataset, merge: Merge) -> DatasetManifest | None:
        try:
            manifest = publish_merge(dataset, merge, self._settings, now=datetime.now(UTC), traceparent=current_traceparent())
        except CommitConflict as error:  # the next call checks whether it can be published after that version
            _log.info("%s", error)
            return None
        self._merge = None
        return manifest
