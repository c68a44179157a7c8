"""What became of a document: from its id, its URL or its place in Kafka to its outcome, its tokens and the models that trained on them.

A model that was trained on a view has seen what the view holds: its rules are applied to the document's row of the audit trail.

Reads the audit trail, never Kafka: one scan of all its files, with the predicate pushed down into Parquet, about 10 ms per million rows and version.
"""

import re
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.dataset.dataset import Dataset
from pipelines.dataset.history import Holds
from pipelines.dataset.names import version_of
from pipelines.dataset.retractions.lost import retractions_of
from pipelines.dataset.retractions.masks import is_train_shard, read_masks
from pipelines.dataset.trail import commit_order, scan_trail
from pipelines.storage.commit_log import CommitLog
from pipelines.storage.model_log import MODEL_LOG, read_model_manifest
from pipelines.views.selection import OpenView, holds, open_view
from schemas.arrow import DOCUMENTS, Outcome, Split
from schemas.errors import DatasetError, DatasetNotFound, ManifestCorrupt, ViewNotFound
from schemas.manifest import DatasetRef
from schemas.urls import public_url

_POSITION = re.compile(r"^(?P<topic>.+)/(?P<partition>\d{1,9})/(?P<offset>\d{1,18})\Z")


@dataclass(frozen=True)
class Fate:
    """What became of one record. The fields up to ``meta`` are those of the audit trail."""

    doc_id: str | None
    topic: str
    partition: int
    offset: int
    outcome: str
    reason: str | None
    duplicate_of: str | None
    similarity: float | None
    fingerprint: int | None
    language: str | None
    num_tokens: int | None
    shard: str | None
    row: int | None
    start: int | None
    length: int | None
    timestamp_ms: int | None
    source: str | None
    domain: str | None
    num_chars: int | None
    quality: float | None
    perplexity: float | None
    informativeness: float | None
    pii: list[dict[str, Any]] | None
    replay_of: str | None
    url: str | None
    title: str | None
    license: str | None
    created_at: str | None
    meta: str | None
    num_replaced: int | None
    dataset_version: int
    """Version that took the record in."""
    split: str | None
    """Train or validation, for kept documents."""
    file: str | None
    """File in which the rows of ``shard`` lie now: the shard itself, or the file that it was merged into."""
    file_row: int | None
    """Row of that file in which the document begins."""
    models: list[int]
    """Model versions that were trained on it."""
    heirs: list[int]
    """Model versions that were not, but whose weights grew out of such a model's."""
    dataset_versions: dict[str, int | None] | None
    """For kept documents: ``first`` and ``last`` of the versions that hold it; no last while it is not retracted, none at all if no version does."""
    retracted_in: int | None
    """Version that took it out."""
    retracted_by: str | None
    """topic/partition/offset of the retraction."""
    returned_after: str | None
    """For kept documents: topic/partition/offset of the newest retraction of their id before them. They were published again after it."""
    dead_letter: dict[str, str] | None
    """Topic and key of its dead letter."""

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


class Replay(NamedTuple):
    """What became of a dead letter that was published again."""

    position: str
    outcome: str
    reason: str | None
    dataset_version: int


_Place = tuple[str, int, int]
"""Shard, row and start of a document."""


class _Mask(NamedTuple):
    """Who took a document out."""

    version: int
    place: str


def trace(root: Path, query: str, *, deadletter_topic: str) -> list[Fate]:
    """Every record that carried this document id, came from this URL, stood at this ``topic/partition/offset`` or replayed what did,
    in commit order.

    Raises DatasetNotFound if there is no dataset, DatasetError if no committed version knows the document.
    """
    dataset = Dataset(root)
    rows = _rows(dataset, query)
    if rows.is_empty():
        raise DatasetError(
            f"no document, URL or position {query!r} in versions 1 to {dataset.version} of {root}: give a document id, the exact URL of a "
            "document, or topic/partition/offset; what was published after the last ingest is not known yet"
        )
    models = _trained_models(root)
    masks = _masks(dataset, rows)
    retractions = retractions_of(dataset, rows.filter(pl.col("outcome") == Outcome.KEPT)["doc_id"].to_list())
    return [_fate(dataset, row, models, masks, deadletter_topic, retractions) for row in rows.to_dicts()]


def replays(root: Path, places: Collection[str]) -> dict[str, list[Replay]]:
    """What the versions say of the replays of these records, by the place where a record first stood, in commit order.

    Empty where there is no dataset: a replay is known once it was ingested. Cost: one column of the audit trail.
    """
    try:
        dataset = Dataset(root)
    except DatasetNotFound:
        return {}
    names = ("topic", "partition", "offset", "outcome", "reason")
    rows = _scan(dataset).filter(pl.col("replay_of").is_in(list(places))).select("replay_of", *names, "file").collect()
    found: dict[str, list[Replay]] = {}
    for row in rows.to_dicts():
        place, version = f"{row['topic']}/{row['partition']}/{row['offset']}", version_of(row["file"])
        found.setdefault(row["replay_of"], []).append(Replay(place, row["outcome"], row["reason"], version))
    return found


def _rows(dataset: Dataset, query: str) -> pl.DataFrame:
    is_meant = (pl.col("doc_id") == query) | (pl.col("replay_of") == query) | (pl.col("url") == public_url(query))
    if match := _POSITION.match(query):
        topic, partition, offset = match["topic"], int(match["partition"]), int(match["offset"])
        is_meant |= (pl.col("topic") == topic) & (pl.col("partition") == partition) & (pl.col("offset") == offset)
    return _scan(dataset).filter(is_meant).collect().sort(commit_order("file"))


def _scan(dataset: Dataset) -> pl.LazyFrame:
    return scan_trail(dataset.paths("documents"), "file").select(*DOCUMENTS.names, "file")


@dataclass(frozen=True)
class _Trained:
    """A registered model."""

    version: int
    dataset_version: int
    parent: int | None
    opened: OpenView | None
    """The view of it that was read."""


def _trained_models(root: Path) -> list[_Trained]:
    """Every registered model, oldest first."""
    log = CommitLog(root / MODEL_LOG)
    manifests = [read_model_manifest(log, number) for number in range(1, log.latest() + 1)]
    views = {ref.data_sha256: _opened(root, ref) for ref in (manifest.dataset for manifest in manifests) if ref.view}
    return [
        _Trained(manifest.version, manifest.dataset.version, manifest.training.parent_model, views.get(manifest.dataset.data_sha256))
        for manifest in manifests
    ]


def _fate(
    dataset: Dataset,
    row: dict[str, Any],
    models: list[_Trained],
    masks: dict[_Place, _Mask],
    deadletter_topic: str,
    retractions: dict[str, list[dict[str, Any]]],
) -> Fate:
    version = version_of(row.pop("file"))
    split = _split(row["shard"])
    is_dead = row["outcome"] == Outcome.DEAD
    mask = masks.get((row["shard"], row["row"], row["start"])) if row["outcome"] == Outcome.KEPT else None
    end = mask.version if mask else dataset.version + 1
    may_have = [model for model in models if version <= model.dataset_version < end and row["outcome"] == Outcome.KEPT]
    trained = [model.version for model in may_have if _is_read(model, row, is_train=split == Split.TRAIN)]
    return Fate(
        **row,
        dataset_version=version,
        split=split,
        **_place(dataset, row),
        models=trained,
        heirs=_heirs(models, set(trained)),
        dataset_versions=_holding(version, mask) if row["outcome"] == Outcome.KEPT else None,
        retracted_in=mask.version if mask else None,
        retracted_by=mask.place if mask else None,
        returned_after=_returned_after(retractions.get(row["doc_id"], []), row, version) if row["outcome"] == Outcome.KEPT else None,
        dead_letter={"topic": deadletter_topic, "key": f"{row['topic']}/{row['partition']}/{row['offset']}"} if is_dead else None,
    )


def _place(dataset: Dataset, row: dict[str, Any]) -> dict[str, Any]:
    if row["shard"] is None:
        return {"file": None, "file_row": None}
    return dict(zip(("file", "file_row"), dataset.placement.place_of(row["shard"], row["row"]), strict=True))


def _returned_after(retractions: list[dict[str, Any]], row: dict[str, Any], version: int) -> str | None:
    """The newest of the retractions that stands before the row in commit order."""
    own = (version, row["partition"], row["offset"])
    before = [found for found in retractions if (found["version"], found["partition"], found["offset"]) < own]
    return f"{before[-1]['topic']}/{before[-1]['partition']}/{before[-1]['offset']}" if before else None


def _is_read(model: _Trained, row: dict[str, Any], *, is_train: bool) -> bool:
    """Whether the document was among the rows that the model was trained on; yes if its view is not there to be asked."""
    return is_train and (model.opened is None or holds(model.opened, row))


def _opened(root: Path, dataset: DatasetRef) -> OpenView | None:
    """The view that a model was trained on; none if it was none, or if it cannot be asked any more."""
    if dataset.view is None:
        return None
    try:
        opened = open_view(root, f"{dataset.view.name}@{dataset.view.version}", dataset.version)
        opened.listed  # noqa: B018 - the files that it rests on are read here, where one that is missing does no harm
        return opened if opened.sha256 == dataset.view.sha256 else None
    except (ViewNotFound, ManifestCorrupt):
        return None


def _holding(version: int, mask: _Mask | None) -> dict[str, int | None] | None:
    if mask is not None and mask.version == version:
        return None
    return {"first": version, "last": mask.version - 1 if mask else None}


def _heirs(models: list[_Trained], trained: set[int]) -> list[int]:
    """Models whose ancestors are among ``trained``; parents are always older."""
    touched = set(trained)
    for model in models:
        if model.parent in touched:
            touched.add(model.version)
    return sorted(touched - trained)


def _masks(dataset: Dataset, rows: pl.DataFrame) -> dict[_Place, _Mask]:
    """Where the documents stand that were taken out, of those with these ids."""
    ids = rows.filter(pl.col("outcome") == Outcome.KEPT)["doc_id"].to_list()
    masking = map(dataset.read, dataset.versions_with(Holds.MASKS)) if ids else ()
    return {
        (row["shard"], row["row"], row["start"]): _Mask(manifest.version, f"{row['topic']}/{row['partition']}/{row['offset']}")
        for manifest in masking
        for row in read_masks(dataset.root, manifest).filter(pc.is_in(pc.field("doc_id"), pa.array(ids, pa.string()))).to_pylist()
    }


def _split(shard: str | None) -> str | None:
    return None if shard is None else str(Split.TRAIN if is_train_shard(shard) else Split.VALIDATION)
