"""Documents that were dropped as duplicates of one that is retracted: they are lost with it, unless they are published again.

A document counts as lost if the newest record of its id that was a duplicate was dropped against the retracted id, for being like it and not for
being a replay; if no document of its own id is kept; and if no retraction of its own id came after it. Cost: two scans of the audit trail,
predicates pushed down.
"""

import itertools
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

import polars as pl

from pipelines.dataset.dataset import Dataset
from pipelines.dataset.history import Holds
from pipelines.dataset.names import version_of
from pipelines.dataset.retractions.retractions import REPLAYED
from pipelines.dataset.trail import commit_order, scan_trail
from schemas.arrow import Outcome

_PLACE = ("topic", "partition", "offset")


class Lost(NamedTuple):
    """A document that was dropped as a duplicate."""

    doc_id: str
    duplicate_of: str
    topic: str
    partition: int
    offset: int
    reason: str
    """``exact`` or ``near``."""
    similarity: float | None
    dataset_version: int

    @property
    def place(self) -> str:
        """Where its record stands."""
        return f"{self.topic}/{self.partition}/{self.offset}"


def lost_duplicates(dataset: Dataset, doc_ids: Collection[str]) -> list[Lost]:
    """What is lost once the documents with these ids are out, in commit order."""
    trail = scan_trail(dataset.paths("documents"), "file")
    against = (pl.col("outcome") == Outcome.DUPLICATE) & (pl.col("reason") != REPLAYED) & pl.col("duplicate_of").is_in(list(doc_ids))
    others = trail.filter(against & ~pl.col("doc_id").is_in(list(doc_ids))).select("doc_id").unique().collect()["doc_id"].to_list()
    columns = ["doc_id", "duplicate_of", *_PLACE, "reason", "similarity", "outcome", "file"]
    rows = trail.filter(pl.col("doc_id").is_in(others)).select(columns).collect().sort("doc_id", *commit_order("file"))
    by_id = itertools.groupby(rows.to_dicts(), key=lambda row: row["doc_id"])
    newest = (_newest_drop(records) for _, records in by_id)
    found = [lost for lost in newest if lost is not None and lost.duplicate_of in doc_ids]
    return sorted(found, key=lambda lost: (lost.dataset_version, lost.partition, lost.offset))


def _newest_drop(records: Iterable[dict[str, Any]]) -> Lost | None:
    """Of the records of one id in commit order the newest that was dropped, unless the id is kept or was retracted since."""
    dropped, is_kept = None, False
    for row in records:
        outcome, version = row.pop("outcome"), version_of(row.pop("file"))
        if outcome == Outcome.RETRACTED:
            dropped, is_kept = None, False
        elif outcome == Outcome.KEPT:
            is_kept = True
        elif outcome == Outcome.DUPLICATE and row["reason"] != REPLAYED:
            dropped = Lost(**row, dataset_version=version)
    return None if is_kept else dropped


def retractions_of(dataset: Dataset, doc_ids: Collection[str]) -> dict[str, list[dict[str, Any]]]:
    """The retractions of these ids in commit order: topic, partition, offset and ``version``."""
    paths = dataset.paths("documents", dataset.versions_with(Holds.RETRACTIONS)) if doc_ids else []
    is_meant = (pl.col("outcome") == Outcome.RETRACTED) & pl.col("reason").is_null() & pl.col("doc_id").is_in(list(doc_ids))
    rows = scan_trail(paths, "file").filter(is_meant).select("doc_id", *_PLACE, "file").collect().sort(commit_order("file"))
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows.to_dicts():
        found.setdefault(row["doc_id"], []).append({name: row[name] for name in _PLACE} | {"version": version_of(row["file"])})
    return found
