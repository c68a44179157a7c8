"""The manifests of a dataset as columns, one row per version (schemas/arrow.py: VERSIONS): what readers ask of all versions at once.

A row is a pure function of its manifest and a hundredth of its size: it leaves out the offsets, of which a reader needs those of a few
versions only (``offset_versions``). Statistics and settings stay in the manifests too.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from schemas.arrow import FILE_LISTS, VERSIONS, Outcome, Split
from schemas.manifest import DatasetManifest, FileEntry, ShardEntry

Numbers = npt.NDArray[np.int64]


def columns_of(manifests: Iterable[DatasetManifest]) -> pa.Table:
    """Rows of VERSIONS, in order."""
    return pa.Table.from_pylist([row_of(manifest) for manifest in manifests], schema=VERSIONS)


def row_of(manifest: DatasetManifest) -> dict[str, Any]:
    """The row of a version."""
    return {
        "attempt": int(manifest.attempt, 16),
        "created_at": manifest.created_at,
        "num_records": manifest.num_records,
        "num_tokens": manifest.num_tokens,
        "outcomes": {str(outcome): manifest.outcomes.get(outcome, 0) for outcome in Outcome},
        "languages": [{"language": language, "documents": number} for language, number in manifest.languages.items()],
        "topics": [{"topic": topic, "num_partitions": len(partitions)} for topic, partitions in manifest.offsets.items()],
        "num_losses": len(manifest.accepted_loss.lost) if manifest.accepted_loss else 0,
        **{name: [_file_of(entry) for entry in getattr(manifest, name)] for name in FILE_LISTS},
    }


def _file_of(entry: FileEntry) -> dict[str, Any]:
    return entry.model_dump() | {"sha256": bytes.fromhex(entry.sha256)}


def flattened(columns: pa.Table, name: str) -> pa.Table:
    """Elements of a list column, in order, as a table with the ``version`` of each."""
    lists = columns[name]
    versions = np.repeat(np.arange(1, len(lists) + 1), pc.list_value_length(lists).to_numpy())
    return pa.Table.from_struct_array(pc.list_flatten(lists)).append_column("version", pa.array(versions, pa.int64()))


def file_entries(files: pa.Table) -> list[FileEntry]:
    """Entries of rows of a list of files that are no shards."""
    return [FileEntry.model_construct(**_plain(row)) for row in files.drop_columns("version").to_pylist()]


def shard_entries(files: pa.Table) -> list[ShardEntry]:
    """Entries from rows of the list of shards; other columns are ignored."""
    rows = files.select(list(ShardEntry.model_fields)).to_pylist()
    return [ShardEntry.model_construct(**_plain(row) | {"split": Split(row["split"])}) for row in rows]


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"sha256": row["sha256"].hex()}


def documents_by_language(columns: pa.Table) -> dict[str, int]:
    """Kept documents of all versions by language."""
    sums = flattened(columns, "languages").group_by("language").aggregate([("documents", "sum")])
    return dict(zip(sums["language"].to_pylist(), sums["documents_sum"].to_pylist(), strict=True))


def offset_versions(columns: pa.Table) -> list[int]:
    """Versions, ascending, whose offsets say where each partition begins and ends: a topic's first and last, those between which its number of
    partitions changed, and those around a loss that was accepted.

    A version lists all partitions of its topic, and each goes on where it ended in the version of that topic before, but for such a loss.
    """
    topics = flattened(columns, "topics")
    lossy = np.flatnonzero(columns["num_losses"].to_numpy()) + 1
    found: set[int] = set()
    for topic in pc.unique(topics["topic"]):
        listing = topics.filter(pc.equal(topics["topic"], topic))
        versions, numbers = listing["version"].to_numpy(), listing["num_partitions"].to_numpy()
        losses = np.flatnonzero(np.isin(versions, lossy))
        changes = np.union1d(np.flatnonzero(np.diff(numbers)), losses[losses > 0] - 1)
        found |= set(versions[[0, -1, *changes, *(changes + 1)]].tolist())
    return sorted(found)


def versions_of_topic(columns: pa.Table, topic: str) -> Numbers:
    """Versions, ascending, that list offsets of the topic."""
    topics = flattened(columns, "topics")
    found: Numbers = topics.filter(pc.equal(topics["topic"], topic))["version"].to_numpy()
    return found
