"""The duplicate index of one writer, carried from version to version.

Invariant: what it knows is exactly the segments of the committed versions, plus the batch that is being written. A batch that was not
committed throws the state away and the next one reads the segments again; otherwise a failed batch would make its own documents
duplicates of themselves. Opening costs reading all segments; carrying on costs nothing.
"""

import pyarrow as pa

from pipelines.dataset.dataset import Dataset
from pipelines.dedup.resolve import Resolver
from schemas.settings_dedup import DedupSettings


class Duplicates:
    """``open`` before a batch, ``resolve`` its blocks in commit order, ``committed`` after the commit."""

    def __init__(self, settings: DedupSettings) -> None:
        self._settings = settings
        self._resolver: Resolver | None = None
        self._clean_at: int | None = None
        """Version whose state the resolver holds, none while a batch is in it."""
        self._num_written = 0
        """Rows of the resolver's new segment that earlier versions of this writer have written."""

    def open(self, dataset: Dataset | None) -> None:
        """Be at the state of that version."""
        version = dataset.version if dataset else 0
        if self._resolver is None or self._clean_at != version:
            manifests = dataset.manifests() if dataset else []
            paths = [dataset.root / entry.path for manifest in manifests for entry in manifest.dedup_segments] if dataset else []
            self._resolver, self._num_written = Resolver(self._settings, paths), 0
        self._clean_at = None

    def resolve(self, rows: pa.Table) -> pa.Table:
        """Verdicts for rows that are kept unless they are duplicates, in order."""
        assert self._resolver is not None
        return self._resolver.resolve(rows)

    def new_segment(self) -> pa.Table:
        """Rows kept since ``open``."""
        assert self._resolver is not None
        return self._resolver.new_segment().slice(self._num_written)

    def committed(self, version: int) -> None:
        """The batch became that version: its rows belong to the past now."""
        assert self._resolver is not None
        self._num_written = len(self._resolver.new_segment())
        self._clean_at = version
