"""Writes the files of one dataset version from prepared blocks, and the manifest that makes them visible.

Invariant: blocks come in commit order (partition, offset) and every row of every block becomes one row of the documents file with
exactly one outcome; the manifest cannot be built if the counts do not add up. Holds one row group of the trail and one open shard per split.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.dataset.boilerplate import NOTHING, Boilerplate, Written
from pipelines.dataset.dataset import dataset_log
from pipelines.dataset.names import documents_path, segment_path, shard_path
from pipelines.dataset.packing import Spans
from pipelines.dataset.retractions.masks import FindMasks, Masked, write_masks
from pipelines.dataset.shards import Rows, ShardWriter
from pipelines.dataset.statistics import Statistics
from pipelines.dataset.trail_writer import TrailWriter
from pipelines.runtime.crash import crash_point
from pipelines.storage.durable import durable_file, file_entry
from pipelines.storage.pinned import check_present
from pipelines.storage.store import is_there
from pipelines.storage.version import code_version
from schemas.arrow import DOCUMENTS, Outcome, Split
from schemas.manifest import DatasetManifest, FileEntry, OffsetRange, ShardEntry, TokenizerRef, Totals
from schemas.settings import Settings, data_fingerprint


class ResolvedBlock(NamedTuple):
    """A prepared block whose duplicates are known."""

    rows: pa.Table
    """All columns of schemas.arrow.prepared."""
    verdicts: pa.Table
    """One verdict (duplicate_of, reason, similarity) for each of its ``kept_rows``, in order."""


class Writer(Protocol):
    """What ``write_version`` drives: VersionWriter, or ingest's TaskWriter."""

    statistics: Statistics
    """Complete after ``finish_trail``."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def add(self, block: Any) -> None:
        """The next block in commit order: a ResolvedBlock, or settling.DecidedBlock."""

    def finish_shards(self) -> list[ShardEntry]:
        """The version's shards, durable; train shards first."""

    def finish_trail(self) -> list[FileEntry]:
        """The files of its audit trail, durable, in order."""

    def write_segment(self, segment: Any) -> list[FileEntry]:
        """The fingerprints of the kept documents, durable: a table, or what a TaskWriter makes one of."""


MakeWriter = Callable[[Path, "VersionPlan", Settings, Boilerplate], Writer]


@dataclass(frozen=True)
class VersionPlan:
    """What is fixed before the first record of a version is read."""

    version: int
    attempt: str
    """12 hex digits, unique: suffix of every file of this attempt."""
    topic_ids: dict[str, str]
    offsets: dict[str, dict[int, OffsetRange]]
    tokenizer: TokenizerRef


@dataclass(frozen=True)
class VersionFiles:
    """The finished files of a version: durable, and invisible until the manifest is published."""

    shards: list[ShardEntry]
    documents: list[FileEntry]
    dedup_segments: list[FileEntry]
    statistics: Statistics
    masked: Masked
    boilerplate: Written = NOTHING


def kept_rows(block: pa.Table) -> pa.Table:
    """Rows of a prepared block that are kept unless they are duplicates."""
    return block.filter(pc.equal(block["outcome"], Outcome.KEPT))


def _rows(mask: pa.Array) -> Rows:
    return np.flatnonzero(mask.to_numpy(zero_copy_only=False))


def _places(rows: Rows, num_rows: int) -> pa.Array:
    """For each row of a block its place among ``rows``, null if it is not one: ``take`` spreads their values over the block."""
    places = np.full(num_rows, -1, np.int64)
    places[rows] = np.arange(len(rows))
    return pa.array(places, mask=places < 0)


def _combined(column: pa.ChunkedArray) -> pa.Array:
    """The column in one piece; copied only if it is not."""
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks) if column.num_chunks else pa.nulls(0, column.type)


def outcome_columns(block: pa.Table, verdicts: pa.Table) -> dict[str, pa.Array]:
    """Columns of the documents file that the duplicate verdicts decide; ``verdicts`` has one row per ``kept_rows(block)``, in order."""
    places = _places(_rows(pc.equal(_combined(block["outcome"]), Outcome.KEPT)), len(block))
    found = {name: _combined(verdicts[name]).take(places) for name in ("reason", "duplicate_of", "similarity")}
    found["reason"] = pc.coalesce(found["reason"], _combined(block["reason"]))
    return found | {"outcome": outcomes_of(block, verdicts)}


def outcomes_of(block: pa.Table, verdicts: pa.Table) -> pa.Array:
    """What became of each row of a prepared block."""
    outcome = _combined(block["outcome"])
    is_duplicate = np.zeros(len(block), np.bool_)
    is_duplicate[_rows(pc.equal(outcome, Outcome.KEPT))] = _combined(verdicts["duplicate_of"]).is_valid().to_numpy(zero_copy_only=False)
    return pc.if_else(pa.array(is_duplicate), str(Outcome.DUPLICATE), outcome)


def document_rows(block: pa.Table, outcomes: dict[str, pa.Array], spans: dict[str, pa.Array]) -> pa.Table:
    """Rows of DOCUMENTS of a prepared block, from what ``outcome_columns`` and ``span_columns`` gave for it."""
    columns = outcomes | spans
    columns |= {name: _combined(block[name]) for name in DOCUMENTS.names if name not in columns}
    return pa.table([columns[name] for name in DOCUMENTS.names], schema=DOCUMENTS)


def rows_by_split(block: pa.Table, outcome: pa.Array) -> list[Rows]:
    """Rows of the kept documents of each split, in the order of Split; ``outcome`` is what became of the rows."""
    kept, splits = pc.equal(outcome, Outcome.KEPT), _combined(block["split"])
    return [_rows(pc.and_(kept, pc.equal(splits, split)).fill_null(False)) for split in Split]


def span_columns(rows: Sequence[Rows], spans: Sequence[Spans], num_rows: int) -> dict[str, pa.Array]:
    """Span columns of the documents file for a block, null where nothing was kept: ``rows`` of each split, and where their documents stand."""
    places = _places(np.concatenate(rows), num_rows)
    values = {name: np.concatenate([getattr(span, name) for span in spans]) for name in ("row", "start", "length")}
    columns = {name: pa.array(numbers).take(places) for name, numbers in values.items()}
    shards = pa.array([path for span in spans for path in span.shard], pa.string()).take(places)
    return columns | {"shard": shards, "num_tokens": columns["length"]}


class VersionWriter:
    """Takes blocks in commit order; ``write_version`` drives it."""

    def __init__(self, root: Path, plan: VersionPlan, settings: Settings, boilerplate: Boilerplate) -> None:
        self.root = root
        self.plan = plan
        self.statistics = Statistics()
        self._trail = TrailWriter(root, lambda number: documents_path(plan.version, plan.attempt, number))
        self._boilerplate = boilerplate
        self._shards = {split: self._shard_writer(split, settings) for split in Split}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._trail.__exit__(kind, error, trace)

    def add(self, block: ResolvedBlock) -> None:
        """Pack the kept documents of a prepared block and record the outcome of each of its rows."""
        prepared = block.rows
        outcomes = outcome_columns(prepared, block.verdicts)
        rows, tokens = rows_by_split(prepared, outcomes["outcome"]), _combined(prepared["tokens"])
        spans = [writer.add(tokens, chosen) for writer, chosen in zip(self._shards.values(), rows, strict=True)]
        documents = document_rows(prepared, outcomes, span_columns(rows, spans, len(prepared)))
        self.statistics.add(documents)
        self._boilerplate.add(prepared, outcomes["outcome"])
        self._trail.add(documents)

    def finish_shards(self) -> list[ShardEntry]:
        """Write what is left; train shards first."""
        entries: list[ShardEntry] = []
        for split in Split:
            entries += self._shards[split].finish()
            crash_point("shard_written")
        return entries

    def finish_trail(self) -> list[FileEntry]:
        """Write what is left of the audit trail."""
        return self._trail.finish()

    def write_segment(self, segment: pa.Table) -> list[FileEntry]:
        """Write a table of SEGMENT."""
        return write_segment(self.root, self.plan.version, self.plan.attempt, segment)

    def _shard_writer(self, split: Split, settings: Settings) -> ShardWriter:
        plan, packing = self.plan, settings.packing
        return ShardWriter(
            self.root,
            split,
            plan.tokenizer,
            sequence_length=packing.sequence_length,
            shard_rows=packing.shard_rows,
            path_of=lambda number: shard_path(plan.version, split, number, plan.attempt),
        )


def write_version(
    root: Path,
    plan: VersionPlan,
    settings: Settings,
    resolved: Iterable[Any],
    segment: Callable[[], Any],
    masks: FindMasks,
    boilerplate: Boilerplate | None = None,
    make_writer: MakeWriter = VersionWriter,
) -> VersionFiles:
    """Write every file of a version, durably.

    ``resolved`` yields blocks in commit order with their duplicate verdicts, as the writer takes them; ``masks`` and ``segment`` are asked after the
    last one, for what was retracted and for the kept fingerprints. ``boilerplate`` has been opened; without it no lines are counted. ``make_writer``:
    what writes shards and trail.
    """
    boilerplate = boilerplate or Boilerplate(settings.dedup.model_copy(update={"boilerplate": False}))
    with make_writer(root, plan, settings, boilerplate) as writer:
        for block in resolved:
            writer.add(block)
            crash_point("block_taken")
        shards = writer.finish_shards()
        crash_point("shards_written")
        documents = writer.finish_trail()
    crash_point("documents_written")
    masked = write_masks(root, plan.version, plan.attempt, masks([root / entry.path for entry in documents]))
    crash_point("masks_written")
    lines = boilerplate.write(root, plan.attempt)
    segments = writer.write_segment(segment())
    crash_point("segment_written")
    return VersionFiles(shards, documents, segments, writer.statistics, masked, lines)


def write_segment(root: Path, version: int, attempt: str, segment: pa.Table) -> list[FileEntry]:
    """Write rows of SEGMENT durably; no file if there are none."""
    if not len(segment):
        return []
    path = root / segment_path(version, attempt)
    with durable_file(path) as file, pa.ipc.new_file(file, segment.schema) as writer:
        writer.write_table(segment.combine_chunks())
    return [file_entry(root, path, len(segment))]


def build_manifest(
    plan: VersionPlan, files: VersionFiles, settings: Settings, *, parent: DatasetManifest | None, now: datetime, traceparent: str | None = None
) -> DatasetManifest:
    """The manifest of a version; raises ValueError if the counts do not add up. ``traceparent``: W3C trace context of the commit."""
    statistics = files.statistics.finish(now)
    outcomes = {outcome: statistics.total.outcomes.get(outcome, 0) for outcome in Outcome}
    return DatasetManifest(
        version=plan.version,
        parent=plan.version - 1,
        created_at=now,
        attempt=plan.attempt,
        topic_ids=(parent.topic_ids if parent else {}) | plan.topic_ids,
        offsets=plan.offsets,
        outcomes=outcomes,
        reasons=statistics.total.reasons,
        num_records=sum(outcomes.values()),
        num_tokens=sum(entry.tokens for entry in files.shards),
        shards=files.shards,
        documents=files.documents,
        dedup_segments=files.dedup_segments,
        boilerplate=files.boilerplate.files,
        boilerplate_first_version=files.boilerplate.first_version,
        masks=files.masked.files,
        num_masked_documents=files.masked.num_documents,
        num_masked_tokens=files.masked.num_tokens,
        tokenizer=plan.tokenizer,
        sequence_length=settings.packing.sequence_length,
        settings_fingerprint=data_fingerprint(settings),
        languages={language: sums.documents for language, sums in statistics.total.languages.items()},
        statistics=statistics,
        totals=_totals(parent.totals if parent else Totals(), outcomes, files),
        code_version=code_version(),
        traceparent=traceparent,
    )


def ends_of(manifest: DatasetManifest) -> dict[str, dict[int, OffsetRange]]:
    """Empty ranges where those of the version end."""
    return {
        topic: {partition: OffsetRange(start=span.end, end=span.end) for partition, span in partitions.items()}
        for topic, partitions in manifest.offsets.items()
    }


def manifest_without_documents(parent: DatasetManifest, attempt: str, settings: Settings, now: datetime, **changes: Any) -> DatasetManifest:
    """The manifest of a version that reads nothing and adds no documents: its ranges are empty where the parent's end. ``changes``: other fields."""
    fields: dict[str, Any] = {
        "version": parent.version + 1,
        "parent": parent.version,
        "created_at": now,
        "attempt": attempt,
        "topic_ids": parent.topic_ids,
        "offsets": ends_of(parent),
        "record_bytes": parent.record_bytes,
        "leader_epochs": parent.leader_epochs,
        "outcomes": dict.fromkeys(Outcome, 0),
        "reasons": {},
        "num_records": 0,
        "num_tokens": 0,
        "shards": [],
        "documents": [],
        "dedup_segments": [],
        "tokenizer": parent.tokenizer,
        "sequence_length": parent.sequence_length,
        "settings_fingerprint": data_fingerprint(settings),
        "languages": {},
        "totals": parent.totals,
        "code_version": code_version(),
    }
    return DatasetManifest(**(fields | changes))


def _totals(before: Totals, outcomes: dict[Outcome, int], files: VersionFiles) -> Totals:
    return Totals(
        num_records=before.num_records + sum(outcomes.values()),
        num_tokens=before.num_tokens + sum(entry.tokens for entry in files.shards),
        num_train_tokens=before.num_train_tokens + sum(entry.tokens for entry in files.shards if entry.split == Split.TRAIN),
        outcomes={outcome: before.outcomes.get(outcome, 0) + outcomes[outcome] for outcome in Outcome},
        num_lost=before.num_lost,
        num_masked_documents=before.num_masked_documents + files.masked.num_documents,
        num_masked_tokens=before.num_masked_tokens + files.masked.num_tokens,
        num_masked_train_tokens=before.num_masked_train_tokens + files.masked.num_train_tokens,
    )


def publish(root: Path, manifest: DatasetManifest) -> None:
    """Make the version real. Raises CommitConflict if another writer was first: this one is fenced; ShardCorrupt if one of its files is gone."""
    log = dataset_log(root)
    if not is_there(log.path(manifest.version)):  # else this writer is fenced, and its files may have been collected
        check_present(root, manifest.files)
    log.publish(manifest.version, (manifest.model_dump_json(indent=1) + "\n").encode())
