"""Writes the files of one dataset version from prepared blocks, and the manifest that makes them visible.

Invariant: blocks come in commit order (partition, offset) and every row of every block becomes one row of the documents file with
exactly one outcome; the manifest cannot be built if the counts do not add up. Holds one block and one open shard per split.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.crash import crash_point
from pipelines.dataset.boilerplate import NOTHING, Boilerplate, Written
from pipelines.dataset.dataset import dataset_log
from pipelines.dataset.durable import durable_file
from pipelines.dataset.masks import FindMasks, Masked, write_masks
from pipelines.dataset.names import documents_path, segment_path, shard_path
from pipelines.dataset.shards import ShardWriter, file_entry
from pipelines.statistics import Statistics
from schemas.arrow import DOCUMENTS, Outcome, Split
from schemas.manifest import DatasetManifest, FileEntry, OffsetRange, ShardEntry, TokenizerRef, Totals
from schemas.settings import Settings, data_fingerprint

Mask = npt.NDArray[np.bool_]
ResolvedBlock = tuple[pa.Table, pa.Table]
"""A prepared block, and one verdict (duplicate_of, reason, similarity) for each of its ``kept_rows``, in order."""


@dataclass(frozen=True)
class VersionPlan:
    """What is fixed before the first record of a version is read."""

    version: int
    attempt: str
    """12 hex digits, unique: suffix of every file of this attempt."""
    topic_ids: dict[str, str]
    offsets: dict[str, dict[int, OffsetRange]]
    tokenizer: TokenizerRef


@dataclass
class Tally:
    """Counts of a version while it is written."""

    outcomes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    statistics: Statistics = field(default_factory=Statistics)

    def count(self, documents: pa.Table) -> None:
        """Add a block of the documents file."""
        self.statistics.add(documents)
        self.outcomes.update(_value_counts(documents["outcome"]))
        named = documents.filter(pc.is_valid(documents["reason"]))
        self.reasons.update(_value_counts(pc.binary_join_element_wise(named["outcome"], named["reason"], "/")))
        kept = documents.filter(pc.equal(documents["outcome"], Outcome.KEPT))
        self.languages.update(_value_counts(kept["language"].fill_null("und")))


@dataclass(frozen=True)
class VersionFiles:
    """The finished files of a version: durable, and invisible until the manifest is published."""

    shards: list[ShardEntry]
    documents: list[FileEntry]
    dedup_segments: list[FileEntry]
    tally: Tally
    masked: Masked
    boilerplate: Written = NOTHING


def _value_counts(column: pa.ChunkedArray) -> dict[str, int]:
    return {entry["values"]: entry["counts"] for entry in pc.value_counts(column).to_pylist()}


def kept_rows(block: pa.Table) -> pa.Table:
    """Rows of a prepared block that are kept unless they are duplicates."""
    return block.filter(pc.equal(block["outcome"], Outcome.KEPT))


def _scatter(base: pa.Array, mask: Mask, values: pa.Array) -> pa.Array:
    """``base`` with ``values`` at the positions at which ``mask`` is true, in order."""
    return pc.replace_with_mask(base, pa.array(mask), values.cast(base.type))


def _combined(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return combined if isinstance(combined, pa.Array) else pa.concat_arrays(combined.chunks)


def judge(block: pa.Table, verdicts: pa.Table) -> dict[str, pa.Array]:
    """Columns of the documents file that the duplicate verdicts decide; ``verdicts`` has one row per ``kept_rows(block)``, in order."""
    outcome, reason = _combined(block["outcome"]), _combined(block["reason"])
    candidates: Mask = pc.equal(outcome, Outcome.KEPT).to_numpy(zero_copy_only=False)
    duplicate_of = _combined(verdicts["duplicate_of"])
    verdict = pc.if_else(pc.is_valid(duplicate_of), pa.scalar(str(Outcome.DUPLICATE)), pa.scalar(str(Outcome.KEPT)))
    return {
        "outcome": _scatter(outcome, candidates, verdict),
        "reason": _scatter(reason, candidates, _combined(verdicts["reason"])),
        "duplicate_of": _scatter(pa.nulls(len(block), pa.string()), candidates, duplicate_of),
        "similarity": _scatter(pa.nulls(len(block), pa.float32()), candidates, _combined(verdicts["similarity"])),
    }


class VersionWriter:
    """Takes blocks in commit order; ``write_version`` drives it."""

    def __init__(self, root: Path, plan: VersionPlan, settings: Settings, documents: pq.ParquetWriter, boilerplate: Boilerplate) -> None:
        self.root = root
        self.plan = plan
        self.tally = Tally()
        self._documents = documents
        self._boilerplate = boilerplate
        self._shards = {split: self._shard_writer(split, settings) for split in Split}

    def add(self, block: pa.Table, verdicts: pa.Table) -> None:
        """Pack the kept documents of a prepared block and record the outcome of each of its rows."""
        columns = judge(block, verdicts)
        columns |= self._pack(block, columns["outcome"])
        columns |= {name: _combined(block[name]) for name in DOCUMENTS.names if name not in columns}
        documents = pa.table([columns[name] for name in DOCUMENTS.names], schema=DOCUMENTS)
        self._documents.write_table(documents)
        self.tally.count(documents)
        self._boilerplate.add(block, columns["outcome"])

    def finish_shards(self) -> list[ShardEntry]:
        """Write what is left; train shards first."""
        entries: list[ShardEntry] = []
        for split in Split:
            entries += self._shards[split].finish()
            crash_point("shard_written")
        return entries

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

    def _pack(self, block: pa.Table, outcome: pa.Array) -> dict[str, pa.Array]:
        """Append kept tokens to their split's shard; returns the span columns, null where nothing was kept."""
        types = {name: DOCUMENTS.field(name).type for name in ("num_tokens", "shard", "row", "start", "length")}
        columns = {name: pa.nulls(len(block), kind) for name, kind in types.items()}
        kept = pc.equal(outcome, Outcome.KEPT)
        for split, writer in self._shards.items():
            chosen = pc.and_(kept, pc.equal(_combined(block["split"]), split).fill_null(False))
            spans = writer.add(_combined(block["tokens"].filter(chosen)))
            values: dict[str, Any] = {"shard": spans.shard, "row": spans.row, "start": spans.start, "length": spans.length}
            values["num_tokens"] = spans.length
            mask: Mask = chosen.to_numpy(zero_copy_only=False)
            columns = {name: _scatter(columns[name], mask, pa.array(values[name], type=types[name])) for name in types}
        return columns


@contextmanager
def _open_documents(path: Path) -> Iterator[pq.ParquetWriter]:
    with durable_file(path) as file, pq.ParquetWriter(file, DOCUMENTS, compression="zstd") as writer:
        yield writer


def write_version(
    root: Path,
    plan: VersionPlan,
    settings: Settings,
    resolved: Iterable[ResolvedBlock],
    segment: Callable[[], pa.Table],
    masks: FindMasks,
    boilerplate: Boilerplate | None = None,
) -> VersionFiles:
    """Write every file of a version, durably.

    ``resolved`` yields blocks in commit order with their duplicate verdicts; ``masks`` and ``segment`` are asked after the last one,
    for what was retracted and for the kept fingerprints. ``boilerplate`` has been opened; without it no lines are counted.
    """
    boilerplate = boilerplate or Boilerplate(settings.dedup.model_copy(update={"boilerplate": False}))
    path = root / documents_path(plan.version, plan.attempt)
    with _open_documents(path) as documents:
        writer = VersionWriter(root, plan, settings, documents, boilerplate)
        for block, verdicts in resolved:
            writer.add(block, verdicts)
            crash_point("block_taken")
        shards = writer.finish_shards()
        crash_point("shards_written")
    crash_point("documents_written")
    entry = file_entry(root, path, writer.tally.outcomes.total())
    masked = write_masks(root, plan.version, plan.attempt, masks(path))
    crash_point("masks_written")
    lines = boilerplate.write(root, plan.attempt)
    segments = _write_segment(root, plan, segment())
    crash_point("segment_written")
    return VersionFiles(shards, [entry], segments, writer.tally, masked, lines)


def _write_segment(root: Path, plan: VersionPlan, segment: pa.Table) -> list[FileEntry]:
    if not len(segment):
        return []
    path = root / segment_path(plan.version, plan.attempt)
    with durable_file(path) as file, pa.ipc.new_file(file, segment.schema) as writer:
        writer.write_table(segment.combine_chunks())
    return [file_entry(root, path, len(segment))]


def build_manifest(
    plan: VersionPlan, files: VersionFiles, settings: Settings, *, parent: DatasetManifest | None, now: datetime, traceparent: str | None = None
) -> DatasetManifest:
    """The manifest of a version; raises ValueError if the counts do not add up. ``traceparent``: W3C trace context of the commit."""
    tally = files.tally
    outcomes = {outcome: tally.outcomes[outcome] for outcome in Outcome}
    return DatasetManifest(
        version=plan.version,
        parent=plan.version - 1,
        created_at=now,
        attempt=plan.attempt,
        topic_ids=(parent.topic_ids if parent else {}) | plan.topic_ids,
        offsets=plan.offsets,
        outcomes=outcomes,
        reasons=dict(sorted(tally.reasons.items())),
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
        languages=dict(sorted(tally.languages.items())),
        statistics=tally.statistics.finish(now),
        totals=_totals(parent.totals if parent else Totals(), outcomes, files),
        traceparent=traceparent,
    )


def _totals(before: Totals, outcomes: dict[Outcome, int], files: VersionFiles) -> Totals:
    return Totals(
        num_records=before.num_records + sum(outcomes.values()),
        num_tokens=before.num_tokens + sum(entry.tokens for entry in files.shards),
        num_train_tokens=before.num_train_tokens + sum(entry.tokens for entry in files.shards if entry.split == Split.TRAIN),
        outcomes={outcome: before.outcomes.get(outcome, 0) + outcomes[outcome] for outcome in Outcome},
        num_masked_documents=before.num_masked_documents + files.masked.num_documents,
        num_masked_tokens=before.num_masked_tokens + files.masked.num_tokens,
        num_masked_train_tokens=before.num_masked_train_tokens + files.masked.num_train_tokens,
    )


def publish(root: Path, manifest: DatasetManifest) -> None:
    """Make the version real. Raises CommitConflict if another writer was first: this one is fenced."""
    dataset_log(root).publish(manifest.version, (manifest.model_dump_json(indent=1) + "\n").encode())
