"""The base's fingerprint tables shared by several processes, each of which answers for its part of every table's buckets.

A probe belongs to exactly one part, so the parts' answers are disjoint and together are the whole answer, as one process would give it.
Every shard maps the same file, which on several machines must lie on a file system that all of them see, and pages in its own part of it only.
Shards have no state of their own: one that died is started again from the file. As Ray actors: pipelines/dedup/actors.py.
"""

from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pipelines.dedup.base import open_base
from pipelines.dedup.tables import Found, find_within


class Shards(Protocol):
    """All shards of a base, wherever they run: an ``index.Lookup`` that has an end."""

    def __call__(self, queries: npt.NDArray[np.uint64], wanted: npt.NDArray[np.bool_]) -> Found:
        """The union of what the shards find."""

    def close(self) -> None:
        """End them."""


class Shard:
    """Part ``part`` of ``num_parts`` of a base's fingerprints, in this process."""

    def __init__(self, base: Path, max_hamming: int, part: int, num_parts: int) -> None:
        self._max_hamming = max_hamming
        self._tables = open_base(base).near._replace(part=np.array([part, num_parts]))

    def find(self, queries: npt.NDArray[np.uint64], wanted: npt.NDArray[np.bool_]) -> Found:
        """What lies within the distance of the wanted queries in this part."""
        return Found(
            *find_within(self._tables, self._max_hamming, np.array(queries), np.array(wanted))
        )  # copies: what another process sent is read-only
