"""The duplicate index of one writer, carried from version to version.

Invariant: what it knows is exactly the kept documents of the committed versions, less the retracted ones, plus the batch that is being
written. A batch that was not committed throws the state away and the next one opens the index again; otherwise a failed batch would make its
own documents duplicates of themselves. Opening maps the base, reads the segments after it and compares their hashes (0.9 s of some 12 s
for 6.25 million rows); carrying on costs nothing. The base may be larger than memory and opens in 0.01 s, because only its size and its header
are compared.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.dataset.compaction import index_files, is_due
from pipelines.dataset.dataset import Dataset
from pipelines.dataset.retractions.masks import retracted_ordinals
from pipelines.dedup.generations import Generation, LookedUp
from pipelines.dedup.index_shards import Shards
from pipelines.dedup.resolve import Decided, KeptApart, Resolver
from pipelines.storage.pinned import check_size, verify_pinned
from schemas.settings_dedup import DedupSettings


class Duplicates:
    """``open`` before a batch, ``resolve`` its blocks in commit order, ``committed`` after the commit; ``close`` at the end."""

    def __init__(self, settings: DedupSettings, start_shards: Callable[[Path], Shards] | None = None) -> None:
        """``start_shards`` gives the shards of a base that look up fingerprints instead of this process, where the settings ask for some."""
        self._settings = settings
        self._start_shards = start_shards
        self._resolver: Resolver | None = None
        self._shards: Shards | None = None
        self._clean_at: int | None = None
        """Version whose state the resolver holds, none while a batch is in it."""

    def is_compaction_due(self, dataset: Dataset) -> bool:
        """Whether the next version should be a compaction (dataset/compaction.py)."""
        return is_due(dataset, self._settings.compact_segments)

    def open(self, dataset: Dataset | None) -> None:
        """Be at the state of that version."""
        version = dataset.version if dataset else 0
        if self._resolver is None or self._clean_at != version:
            self.close()
            self._resolver = self._opened(dataset)
        self._clean_at = None

    def resolve(self, rows: pa.Table) -> pa.Table:
        """Verdicts for rows that are kept unless they are duplicates, in order; see Resolver for retractions among them."""
        assert self._resolver is not None
        return self._resolver.resolve(rows)

    def generation(self) -> Generation | None:
        """The immutable part of the index as it is now, for others to look up documents in."""
        assert self._resolver is not None
        return self._resolver.generation()

    def resolve_apart(self, documents: pa.Table, looked_up: LookedUp | None, source: Any, fetch: Callable[[Any], pa.Array]) -> Decided:
        """Verdicts for documents whose ids are elsewhere; see Resolver."""
        assert self._resolver is not None
        return self._resolver.resolve_apart(documents, looked_up, source, fetch)

    def retracted_rows(self) -> tuple[npt.NDArray[np.int64], pa.Array]:
        """Numbers, counted over all kept documents in commit order, and ids of what retractions took out since the index was opened, in order."""
        assert self._resolver is not None
        return self._resolver.retracted_rows()

    def live_ids(self, doc_ids: set[str]) -> set[str]:
        """Those of the ids that a document has which is kept so far and was not retracted."""
        assert self._resolver is not None
        return self._resolver.live_ids(doc_ids)

    def new_segment(self) -> pa.Table:
        """Rows kept since ``open``."""
        assert self._resolver is not None
        return self._resolver.new_segment()

    def new_rows(self) -> list[pa.Table | KeptApart]:
        """The same in parts, if the ids of some are elsewhere."""
        assert self._resolver is not None
        return self._resolver.new_rows()

    def committed(self, version: int, segment: Path | None = None) -> None:
        """The batch became that version: its rows belong to the past now, and stand in this file."""
        assert self._resolver is not None
        self._resolver.segment_taken(segment)
        self._clean_at = version

    def passed(self, version: int) -> None:
        """Go on to a version that added no documents and did not change the index."""
        if self._clean_at == version - 1:
            self._clean_at = version

    def close(self) -> None:
        """End the shards."""
        self._resolver = None
        if self._shards is not None:
            self._shards.close()
            self._shards = None

    def _opened(self, dataset: Dataset | None) -> Resolver:
        if dataset is None:
            return Resolver(self._settings, [])
        files = index_files(dataset)
        base = check_size(dataset.root, files.base) if files.base else None
        if base is not None and self._start_shards is not None and self._settings.near and self._settings.index_shards > 1:
            self._shards = self._start_shards(base)
        segments = [verify_pinned(dataset.root, entry) for entry in files.segments]
        return Resolver(self._settings, segments, base=base, retracted=retracted_ordinals(dataset), shards=self._shards)
