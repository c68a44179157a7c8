"""Which kept documents have this id? Answered for the few records that ask: dead letters that are replayed.

Kept documents are numbered in commit order (their ordinal). Ids are kept as 64-bit hashes in sorted runs, 12 bytes per document, and
only once somebody asks: building them reads the audit trail once, about 0.15 s per million documents. A hit is confirmed by the id
itself, read from the audit trail, so that a collision of hashes changes nothing.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from pipelines.dataset.dataset import Dataset
from pipelines.dataset.trail import scan_trail
from schemas.arrow import Outcome

MAX_RUNS = 32
"""Runs are merged beyond this number: a look-up is one binary search in each."""
_SEED = 0x48454144
Hashes = npt.NDArray[np.uint64]
Ordinals = npt.NDArray[np.int64]


class _Run(NamedTuple):
    hashes: Hashes
    """Ascending."""
    ordinals: npt.NDArray[np.uint32]


def hash_ids(doc_ids: pl.Series) -> Hashes:
    """One number per id; the same within a process, so never written down."""
    hashes: Hashes = doc_ids.hash(_SEED).to_numpy()
    return hashes


def read_kept(paths: list[Path], columns: Sequence[str]) -> pl.DataFrame:
    """Columns of the kept documents in these parts of the audit trail, in commit order."""
    return scan_trail(paths).filter(pl.col("outcome") == Outcome.KEPT).select(columns).collect()


def first_ordinals(dataset: Dataset) -> Ordinals:
    """Ordinal of the first kept document of each version, and at the end that of the next one to be kept."""
    return np.concatenate([[0], np.cumsum(dataset.history["num_kept"])])


class KnownIds:
    """Ordinals by hash of the document's id."""

    def __init__(self, dataset: Dataset | None) -> None:
        """Read the ids of all kept documents of versions 1..N."""
        self._runs: list[_Run] = []
        if dataset is not None:
            manifests = map(dataset.read, range(1, dataset.version + 1))
            paths = [dataset.root / entry.path for manifest in manifests for entry in manifest.documents]
            self.add(hash_ids(read_kept(paths, ["doc_id"])["doc_id"]), 0)

    def add(self, hashes: Hashes, first: int) -> None:
        """Documents that were kept next, ``first`` being the ordinal of the first of them."""
        if not len(hashes):
            return
        order = np.argsort(hashes, kind="stable")
        self._runs.append(_Run(hashes[order], (first + order).astype(np.uint32)))
        if len(self._runs) > MAX_RUNS:
            self._merge()

    def candidates(self, hashes: Hashes) -> Ordinals:
        """Ordinals, ascending, of the documents whose id may be one of these."""
        wanted = np.unique(hashes)
        found = [np.empty(0, np.int64)]
        for run in self._runs:
            left, right = np.searchsorted(run.hashes, wanted, side="left"), np.searchsorted(run.hashes, wanted, side="right")
            found += [run.ordinals[start:end].astype(np.int64) for start, end in zip(left, right, strict=True) if start < end]
        return np.sort(np.concatenate(found))

    def _merge(self) -> None:
        hashes = np.concatenate([run.hashes for run in self._runs])
        order = np.argsort(hashes, kind="stable")
        self._runs = [_Run(hashes[order], np.concatenate([run.ordinals for run in self._runs])[order])]
