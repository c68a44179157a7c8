"""What metrics and batching want to know of a block: bytes and times of its records, by partition."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

SIZE = "size_bytes"
"""A column of its own behind the prepared ones: bytes of each record (kafka/sizes.py)."""
MOST_TIMESTAMPS = 256
"""Of a block that stays where it was prepared. They divide its records evenly, so a quantile is a 256th of the records off at most."""


class BlockCounts(NamedTuple):
    """Of one block."""

    size_bytes: dict[int, int]
    """Keys, values and headers of the records and what they refer to, by partition."""
    newest_s: dict[int, float]
    """Newest timestamp of each partition that has one."""
    timestamps_ms: npt.NDArray[np.float64]
    """Of the records that have one …"""
    num_records: npt.NDArray[np.int64]
    """… and how many records each stands for."""


def counted(block: pa.Table, most_timestamps: int | None = None) -> BlockCounts:
    """Counts of a prepared block with ``SIZE``; with all its timestamps or with so many."""
    partitions, places = np.unique(block["partition"].to_numpy(), return_inverse=True)
    sizes = block[SIZE].to_numpy() + block["outside_bytes"].fill_null(0).to_numpy()
    of_partition = np.bincount(places, weights=sizes, minlength=len(partitions))
    timestamps = block["timestamp_ms"].drop_null().to_numpy().astype(np.float64)
    newest = np.full(len(partitions), -np.inf)
    np.maximum.at(newest, places[block["timestamp_ms"].is_valid().to_numpy()], timestamps / 1000)
    return BlockCounts(
        {partition: int(size) for partition, size in zip(partitions.tolist(), of_partition.tolist(), strict=True)},
        {partition: time_s for partition, time_s in zip(partitions.tolist(), newest.tolist(), strict=True) if time_s > -np.inf},
        *_thinned(timestamps, most_timestamps),
    )


def _thinned(timestamps: npt.NDArray[np.float64], most: int | None) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    if most is None or len(timestamps) <= most:
        return timestamps, np.ones(len(timestamps), np.int64)
    edges = np.linspace(0, len(timestamps), most + 1).astype(np.int64)
    return np.sort(timestamps)[(edges[:-1] + edges[1:]) // 2], np.diff(edges)
