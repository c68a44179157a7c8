"""Counts a stream's versions while they are made: bytes and timestamps of the blocks, time from plan to commit, lag.

Invariant: tells what happened and decides nothing. Holds one timestamp per record of the version under way (8 bytes).
"""

import time
from collections import Counter
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from pipelines.ingest.block_counts import SIZE, BlockCounts, counted
from pipelines.ingest.freshness import Ages, LagWatch, VersionTimes
from pipelines.ingest.metrics import IngestMetrics
from schemas.manifest import DatasetManifest, OffsetRange


class Meter:
    """Of one stream; ``started``, ``read`` for each block, ``committed``, in this order for each version."""

    def __init__(self, topic: str) -> None:
        self.metrics = IngestMetrics()
        self.size_bytes: Counter[int] = Counter()
        """Keys, values and headers of the version under way and what they refer to, by partition."""
        self._topic = topic
        self._lag = LagWatch()
        self._started_s = 0.0
        self._timestamps_ms: list[Ages] = []
        self._newest_s: dict[int, float] = {}

    def seen(self, waiting: Mapping[int, OffsetRange]) -> None:
        """So much waits now."""
        self._lag.seen(waiting, time.time())
        self.metrics.behind(self._topic, self._lag.lag(time.time()))

    def started(self) -> None:
        """The ranges of a version are fixed."""
        self._started_s = time.monotonic()
        self.size_bytes.clear()
        self._timestamps_ms.clear()
        self._newest_s.clear()

    def read(self, block: pa.Table) -> pa.Table:
        """Count a block; returns it without its sizes, which nobody else asks for."""
        if len(block):
            self.add(counted(block))
        return block.drop_columns([SIZE])

    def add(self, counts: BlockCounts) -> None:
        """Take in a block that was counted elsewhere."""
        self.size_bytes.update(counts.size_bytes)
        if len(counts.timestamps_ms):
            self._timestamps_ms.append(np.repeat(counts.timestamps_ms, counts.num_records))
        for partition, newest_s in counts.newest_s.items():
            self._newest_s[partition] = max(newest_s, self._newest_s.get(partition, 0.0))

    def committed(self, manifest: DatasetManifest) -> VersionTimes:
        """The version under way is visible."""
        commit_s, now_s = time.monotonic() - self._started_s, time.time()
        timestamps_ms = np.concatenate(self._timestamps_ms) if self._timestamps_ms else np.empty(0)
        self._lag.committed(manifest.offsets[self._topic], self._newest_s)
        ages_s = np.maximum(0.0, manifest.created_at.timestamp() - timestamps_ms / 1000)
        times = VersionTimes(self.size_bytes.total(), commit_s, ages_s, self._lag.lag(now_s))
        self.metrics.committed(manifest, self._topic, times)
        return times
