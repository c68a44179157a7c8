"""Counts a stream's versions while they are made: bytes and timestamps of the blocks, time from plan to commit, lag.

Invariant: tells what happened and decides nothing. Holds one timestamp per record of the version under way (8 bytes).
"""

import time
from collections import Counter
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.ingest.freshness import Ages, LagWatch, VersionTimes
from pipelines.ingest.job import SIZE
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
        """Count a block, all of one partition; returns it without its sizes, which nobody else asks for."""
        if len(block):
            partition = block["partition"][0].as_py()
            self.size_bytes[partition] += pc.sum(block[SIZE]).as_py() + (pc.sum(block["outside_bytes"]).as_py() or 0)
            timestamps = block["timestamp_ms"].drop_null().to_numpy().astype(np.float64)
            if len(timestamps):
                self._timestamps_ms.append(timestamps)
                self._newest_s[partition] = max(float(timestamps.max()) / 1000, self._newest_s.get(partition, 0.0))
        return block.drop_columns([SIZE])

    def committed(self, manifest: DatasetManifest) -> VersionTimes:
        """The version under way is visible."""
        commit_s, now_s = time.monotonic() - self._started_s, time.time()
        timestamps_ms = np.concatenate(self._timestamps_ms) if self._timestamps_ms else np.empty(0)
        self._lag.committed(manifest.offsets[self._topic], self._newest_s)
        ages_s = np.maximum(0.0, manifest.created_at.timestamp() - timestamps_ms / 1000)
        times = VersionTimes(self.size_bytes.total(), commit_s, ages_s, self._lag.lag(now_s))
        self.metrics.committed(manifest, self._topic, times)
        return times
