"""Spans of retracted documents: written once with the version that retracts them, applied to whatever is read of it or of a later one.

Invariant: shards never change, so an older version is read as it was. A version reads a document's tokens iff the document was kept in
it or before, and no version up to it masks the document. Spans are whole documents, so they never overlap. Costs nothing where
nothing is masked; else 16 bytes per span in memory, and a binary search per row read.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.dataset.dataset import Dataset
from pipelines.dataset.names import masks_path
from pipelines.storage.durable import durable_file, file_entry
from pipelines.storage.pinned import read_pinned
from schemas.arrow import MASKS, Split
from schemas.manifest import DatasetManifest, FileEntry

Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
FindMasks = Callable[[Sequence[Path]], pa.Table]
"""Finished files of a version's audit trail -> its rows of MASKS."""


@dataclass(frozen=True)
class Masked:
    """The masks of one version: their file, if there are any, and how much they take out."""

    files: list[FileEntry]
    num_documents: int = 0
    num_tokens: int = 0
    num_train_tokens: int = 0


class SpanMask:
    """The masked spans as positions in one flat run of tokens: sorted, disjoint."""

    def __init__(self, starts: Ids, lengths: Ids) -> None:
        order = np.argsort(starts)
        self._starts: Ids = starts[order]
        self._ends: Ids = self._starts + lengths[order]

    def of_rows(self, rows: Ids, sequence_length: int) -> Mask:
        """Which positions of these rows of S tokens are masked: (n, S)."""
        masked = np.zeros((len(rows), sequence_length), dtype=np.bool_)
        first = rows * sequence_length
        touched = np.searchsorted(self._ends, first, side="right") < np.searchsorted(self._starts, first + sequence_length, side="left")
        positions = first[touched, None] + np.arange(sequence_length)
        span = np.searchsorted(self._starts, positions, side="right") - 1
        masked[touched] = (span >= 0) & (positions < self._ends[span])
        return masked


def read_masks(root: Path, manifest: DatasetManifest) -> pa.Table:
    """Rows of MASKS of one version. Raises ShardCorrupt if a file is not what the manifest says."""
    return _read(root, manifest.masks)


def _read(root: Path, entries: Sequence[FileEntry]) -> pa.Table:
    """Read, not mapped: a map for each version with retractions would be too many."""
    tables = [pa.ipc.open_file(pa.py_buffer(read_pinned(root, entry))).read_all() for entry in entries]
    return pa.concat_tables([MASKS.empty_table(), *tables])


def retracted_ordinals(dataset: Dataset) -> Ids:
    """Numbers, counted over all kept documents in commit order, of those that versions 1..N took out; ascending."""
    return np.sort(_read(dataset.root, dataset.entries("masks"))["ordinal"].to_numpy())


def retracted_since(dataset: Dataset) -> Ids:
    """Numbers of documents that version N holds or held, and that a version after it took out, as the root is now; ascending."""
    newest = Dataset(dataset.root)
    masks = _read(newest.root, newest.entries("masks", after=dataset.version))
    return np.sort(masks.filter(pc.less_equal(masks["version"], dataset.version))["ordinal"].to_numpy())


def span_mask(dataset: Dataset) -> SpanMask | None:
    """The spans that versions 1..N mask, by row numbers (dataset/placement.py); None if no span is masked."""
    entries = dataset.entries("masks")
    if not entries:
        return None
    masks = _read(dataset.root, entries)
    shards = masks["shard"].combine_chunks().dictionary_encode()
    first_rows = dataset.placement.first_rows_of(shards.dictionary.to_pylist())[shards.indices.to_numpy()]
    starts = (first_rows + masks["row"].to_numpy()) * dataset.manifest.sequence_length + masks["start"].to_numpy()
    return SpanMask(starts, masks["length"].to_numpy())


def write_masks(root: Path, version: int, attempt: str, masks: pa.Table) -> Masked:
    """Write the masks of a version, durably; no file if there are none."""
    if not len(masks):
        return Masked([])
    path = root / masks_path(version, attempt)
    with durable_file(path) as file, pa.ipc.new_file(file, MASKS) as writer:
        writer.write_table(masks.combine_chunks())
    lengths, is_train = masks["length"].to_numpy(), [is_train_shard(shard) for shard in masks["shard"].to_pylist()]
    return Masked([file_entry(root, path, len(masks))], len(masks), int(lengths.sum()), int(lengths[is_train].sum()))


def is_train_shard(path: str) -> bool:
    """Whether the shard of this path holds train rows; its name says so."""
    return f"-{Split.TRAIN}-" in path
