"""Retractions that have been seen, for documents that come after them from another partition: were they published before?

The rule stands in dataset/retractions/retractions.py. Cost: about 70 bytes per retraction, and one binary search per candidate once there are some;
opening reads the audit trail of the versions that hold retractions; a version that takes documents out reads that of the few versions that were
committed since the retractions were published.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.dataset.dataset import Dataset
from pipelines.dataset.history import Holds
from pipelines.dataset.trail import scan_trail
from pipelines.dedup.ids import hash_ids
from schemas.arrow import Outcome

RULE = "retracted"
_COLUMNS = ["doc_id", "topic", "partition", "timestamp_ms"]
MAX_READ_SINCE = 64
MAX_SKEW_MS = 600_000
"""By how much a producer's clock may be ahead of this machine's."""
_NEVER_EARLIER, _NEVER_LATER = 2**62, -(2**62)
"""What missing timestamps count as, of a retraction and of a document: the safe side."""


class Tombstones:
    """All retractions up to a point in commit order."""

    def __init__(self, dataset: Dataset | None) -> None:
        """Those of versions 1..N."""
        versions = dataset.versions_with(Holds.RETRACTIONS) if dataset else []
        paths = dataset.paths("documents", versions) if dataset else []
        self._seen = pl.DataFrame(schema={"doc_id": pl.String, "topic": pl.String, "partition": pl.Int32, "timestamp_ms": pl.Int64})
        self._hashes = np.empty(0, np.uint64)
        if paths:
            # A reason says that it is no retraction but a document that one took out before the tokenizer was switched (pipelines/dataset/switch.py).
            is_retraction = (pl.col("outcome") == Outcome.RETRACTED) & pl.col("reason").is_null()
            self._append(scan_trail(paths).filter(is_retraction).select(_COLUMNS).collect())

    def add(self, block: pa.Table) -> None:
        """Remember the retractions of a block."""
        is_retraction = pc.equal(block["outcome"], Outcome.RETRACTED)
        if pc.any(is_retraction).as_py():
            self._append(_frame(block.select([*_COLUMNS, "outcome"]).filter(is_retraction)).select(_COLUMNS))

    def may_concern(self, hashes: npt.NDArray[np.uint32]) -> bool:
        """Whether an id with one of these ``short_hashes`` may be one whose retraction was seen."""
        seen = (self._hashes >> np.uint64(32)).astype(np.uint32)
        return bool(len(seen)) and bool((seen[np.minimum(np.searchsorted(seen, hashes), len(seen) - 1)] == hashes).any())

    def late(self, block: pa.Table) -> npt.NDArray[np.bool_]:
        """Which rows are candidates that were published, in another partition, before a retraction of theirs that was seen already."""
        late = np.zeros(len(block), dtype=np.bool_)
        if len(suspects := self._suspects(block)):
            late[self._published_before(suspects)] = True
        return late

    def returning(self, block: pa.Table, late: npt.NDArray[np.bool_]) -> list[str]:
        """Ids of candidates, none of them ``late``, that come after a retraction of their id: one that was seen, or one before them in the block."""
        has_retractions = pc.any(pc.equal(block["outcome"], Outcome.RETRACTED)).as_py()
        if not len(self._hashes) and not has_retractions:
            return []
        suspects = self._suspects(block)
        known = suspects.filter(~pl.Series(late[suspects["index"].to_numpy()])).join(self._seen, on="doc_id", how="semi")["doc_id"]
        rows = _frame(block).with_row_index()
        retractions = rows.filter(pl.col("outcome") == Outcome.RETRACTED).select("doc_id", pl.col("index").alias("retraction"))
        after = rows.filter(pl.col("outcome") == Outcome.KEPT).join(retractions, on="doc_id").filter(pl.col("index") > pl.col("retraction"))
        return pl.concat([known, after["doc_id"]]).unique(maintain_order=True).to_list()

    def _suspects(self, block: pa.Table) -> pl.DataFrame:
        """Candidates, with their ``index`` in the block, whose id has the hash of one whose retraction was seen."""
        if not len(self._hashes):
            return _frame(block).with_row_index().clear()
        rows = _frame(block).with_row_index().filter(pl.col("outcome") == Outcome.KEPT)
        hashes = hash_ids(rows["doc_id"].to_arrow())
        place = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        return rows.filter(pl.Series(self._hashes[place] == hashes))

    def _published_before(self, suspects: pl.DataFrame) -> npt.NDArray[np.uint32]:
        pairs = suspects.join(self._seen, on="doc_id", suffix="_seen")
        elsewhere = (pl.col("topic") != pl.col("topic_seen")) | (pl.col("partition") != pl.col("partition_seen"))
        before = pl.col("timestamp_ms").fill_null(_NEVER_LATER) <= pl.col("timestamp_ms_seen")
        return pairs.filter(elsewhere & before)["index"].to_numpy()

    def _append(self, rows: pl.DataFrame) -> None:
        rows = rows.with_columns(pl.col("timestamp_ms").fill_null(_NEVER_EARLIER))
        self._seen = pl.concat([self._seen, rows])
        self._hashes = np.sort(np.concatenate([self._hashes, hash_ids(rows["doc_id"].to_arrow())]))


def retracted_despite_republication(trail: Sequence[Path], doc_ids: Collection[str], dataset: Dataset | None) -> list[str]:
    """Those ids whose last copy (kept, or a duplicate of the same id) has a later timestamp than a retraction that comes after it in commit order,
    in another partition. The retractions are those of the version whose audit trail this is; the copies are of it or of versions before it, as far
    as ``_read_since`` goes back.
    """
    rows = _rows_of(trail, doc_ids)
    is_retraction = (pl.col("outcome") == Outcome.RETRACTED) & pl.col("reason").is_null()
    first_ms = rows.filter(is_retraction)["timestamp_ms"].min()
    earlier = _read_since(dataset, first_ms) if dataset is not None and isinstance(first_ms, int) else []
    rows = pl.concat([_rows_of(earlier, doc_ids), rows.with_columns(is_new=True)], how="diagonal").with_row_index()
    is_copy = (pl.col("outcome") == Outcome.KEPT) | ((pl.col("outcome") == Outcome.DUPLICATE) & (pl.col("duplicate_of") == pl.col("doc_id")))
    copies = rows.filter(is_copy).unique("doc_id", keep="last", maintain_order=True)
    pairs = copies.join(rows.filter(is_retraction & pl.col("is_new")), on="doc_id", suffix="_retraction", maintain_order="left")
    is_before = (pl.col("index") < pl.col("index_retraction")) & (pl.col("partition") != pl.col("partition_retraction"))
    found = pairs.filter(is_before & (pl.col("timestamp_ms") > pl.col("timestamp_ms_retraction")))
    return found["doc_id"].unique(maintain_order=True).to_list()


def _rows_of(paths: Sequence[Path], doc_ids: Collection[str]) -> pl.DataFrame:
    columns = [*_COLUMNS, "outcome", "reason", "duplicate_of"]
    return scan_trail(paths).filter(pl.col("doc_id").is_in(list(doc_ids))).select(columns).collect()


def _read_since(dataset: Dataset, timestamp_ms: int) -> list[Path]:
    """Audit trail of the versions that may hold records with a later timestamp: those that were committed after it, MAX_READ_SINCE at most. They are
    few, as a retraction is read soon after it was published.
    """
    paths: list[Path] = []
    for version in range(dataset.version, max(0, dataset.version - MAX_READ_SINCE), -1):
        manifest = dataset.read(version)
        if manifest.created_at.timestamp() * 1000 + MAX_SKEW_MS < timestamp_ms:
            break
        paths[:0] = [dataset.root / entry.path for entry in manifest.documents]
    return paths


def _frame(block: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(block.select([*_COLUMNS, "outcome"]))
    assert isinstance(frame, pl.DataFrame)
    return frame
