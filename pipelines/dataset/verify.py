"""Checks that a dataset is what its manifests promise: every byte, every count, every span. Reads everything once; changes nothing.

For each version: files are there and hash to what is listed; the audit trail has each offset of the ranges exactly once and adds up to
the outcomes; shards pass the checks of dataset/verify_shards.py, merged or not; a sample of
documents decodes to the text whose hash the index keeps; the statistics are those of the audit trail. Between versions: offsets join, topics
and tokenizer stay, totals add up; what the checkpoints of the log say is what the log says. If all that is in order: the masks are those that the
retractions ask for.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from pipelines.dataset.checkpoints import FOLDER as CHECKPOINTS
from pipelines.dataset.checkpoints import Checkpoint, load_checkpoints
from pipelines.dataset.columns import columns_of, row_of
from pipelines.dataset.dataset import Dataset, dataset_log, read_manifest
from pipelines.dataset.gc import orphans
from pipelines.dataset.placement import Placement
from pipelines.dataset.retractions.verify_masks import checked_masks
from pipelines.dataset.shards import Tokens, token_rows
from pipelines.dataset.statistics import statistics_of
from pipelines.dataset.verify_shards import RESTORE, START_AGAIN, Found, ShardChecks, file_problems
from pipelines.dedup.fingerprint import content_hashes
from pipelines.storage.store import local
from pipelines.tokenizers.folders import loses_nothing
from pipelines.tokenizers.tokenizer import BatchTokenizer, load_tokenizer
from schemas.arrow import VERSIONS, Outcome, Split
from schemas.errors import DatasetError, DatasetNotFound, ManifestCorrupt
from schemas.lost_offsets import LossKind
from schemas.manifest import DatasetManifest, Totals

SAMPLE_DOCUMENTS = 64
"""Documents that are decoded per version."""


@dataclass(frozen=True)
class Problem:
    """Something that is not as promised."""

    version: int
    path: str
    what: str
    fix: str


@dataclass
class Report:
    """What was checked, and what was found."""

    versions: int = 0
    files: int = 0
    size_bytes: int = 0
    documents_decoded: int = 0
    orphans: int = 0
    """Files that no manifest lists: harmless, removed by a later ingest."""
    problems: list[Problem] = field(default_factory=list)


def verify(root: Path, on_version: Callable[[int, int], None] | None = None) -> Report:
    """Check all versions under a root. ``on_version(version, newest)`` is called after each. Raises DatasetNotFound if there are none."""
    newest = dataset_log(root).latest()
    if newest == 0:
        raise DatasetNotFound(f"there is no dataset under {root}; run `headrace ingest --once` first, or name another --root")
    report = Report(versions=newest)
    checks = ShardChecks(root, _placement(root, newest))
    checkpoints = load_checkpoints(root, dataset_log(root), newest)
    before: DatasetManifest | None = None
    for version in range(1, newest + 1):
        try:
            manifest = read_manifest(root, version)
        except (ManifestCorrupt, DatasetNotFound) as error:
            report.problems.append(Problem(version, f"log/{version:08d}.json", str(error), RESTORE))
            return report
        report.problems += [Problem(version, *found) for found in _joins(before, manifest)]
        report.problems += [Problem(version, *found) for found in _version_problems(root, manifest, checks, report)]
        report.problems += [Problem(version, *found) for found in _checkpoint_problems(checkpoints, manifest)]
        before = manifest
        if on_version is not None:
            on_version(version, newest)
    if not report.problems:
        report.problems += [Problem(*found) for found in checked_masks(Dataset(root, newest))]
    report.orphans = len(orphans(root))
    return report


def _placement(root: Path, newest: int) -> Placement:
    """Where the rows lie, from the versions of the log that can be read."""
    with suppress(ManifestCorrupt, DatasetNotFound):
        return Dataset(root, newest).placement
    parts = [VERSIONS.empty_table()]
    with suppress(ManifestCorrupt, DatasetNotFound):
        for version in range(1, newest + 1):
            parts.append(columns_of([read_manifest(root, version)]))
    return Placement(pa.concat_tables(parts))


def _joins(before: DatasetManifest | None, manifest: DatasetManifest) -> Iterator[Found]:
    """What must hold between a manifest and the one before it."""
    path = f"log/{manifest.version:08d}.json"
    totals = before.totals if before else Totals()
    if manifest.totals != _added(totals, manifest):
        yield path, f"totals are not those of version {manifest.parent} plus this one's counts", START_AGAIN
    if before is None:
        return
    if (manifest.tokenizer, manifest.sequence_length) != (before.tokenizer, before.sequence_length):
        yield path, f"tokenizer or sequence length differ from version {before.version}", START_AGAIN
    lost = {(loss.topic, loss.partition): loss for loss in manifest.accepted_loss.lost} if manifest.accepted_loss else {}
    recreated = {loss.topic for loss in lost.values() if loss.kind is LossKind.RECREATED}
    for topic, partitions in before.offsets.items():
        if manifest.topic_ids.get(topic) != before.topic_ids.get(topic) and topic not in recreated:
            yield path, f"topic {topic} has another id than in version {before.version}", START_AGAIN
        for partition, span in partitions.items():
            found = manifest.offsets.get(topic, {}).get(partition)
            if (loss := lost.get((topic, partition))) is not None:
                if loss.expected != span.end:  # where it goes on from there, the manifest itself checks
                    yield (
                        path,
                        f"a loss of {topic}[{partition}] is recorded from {loss.expected} on, but version {before.version} ended at {span.end}",
                        START_AGAIN,
                    )
            elif topic in manifest.offsets and (found is None or found.start != span.end):
                yield path, f"{topic}[{partition}] does not go on at offset {span.end}, where version {before.version} ended", START_AGAIN


def _added(before: Totals, manifest: DatasetManifest) -> Totals:
    return Totals(
        num_records=before.num_records + manifest.num_records,
        num_tokens=before.num_tokens + manifest.num_tokens,
        num_train_tokens=before.num_train_tokens + sum(entry.tokens for entry in manifest.shards if entry.split == Split.TRAIN),
        num_lost=before.num_lost + sum(loss.num_unread or 0 for loss in (manifest.accepted_loss.lost if manifest.accepted_loss else ())),
        num_masked_documents=before.num_masked_documents + manifest.num_masked_documents,
        num_masked_tokens=before.num_masked_tokens + manifest.num_masked_tokens,
        num_masked_train_tokens=manifest.totals.num_masked_train_tokens,  # verify_masks.py looks into the files
        outcomes={outcome: before.outcomes.get(outcome, 0) + manifest.outcomes.get(outcome, 0) for outcome in Outcome},
    )


def _version_problems(root: Path, manifest: DatasetManifest, checks: ShardChecks, report: Report) -> list[Found]:
    """Files first: what does not hash right is not looked into."""
    entries = manifest.files
    report.files += len(entries)
    report.size_bytes += sum(entry.size_bytes for entry in entries)
    shards = (*manifest.shards, *manifest.merged)
    found = [problem for entry in entries if entry not in shards for problem in file_problems(root, entry)]
    found += [problem for entry in shards for problem in checks.file_problems(entry)]
    found += [problem for entry in manifest.merged for problem in checks.merged_problems(manifest, entry)]
    if found or not manifest.documents:
        return found
    documents = pl.concat([pl.read_parquet(local(root / entry.path)) for entry in manifest.documents])
    found += _count_problems(manifest, documents)
    kept = documents.filter(pl.col("outcome") == Outcome.KEPT)
    found += [problem for entry in manifest.shards for problem in checks.problems(manifest, entry, kept)]
    found += _statistics_problems(root, manifest)
    return found or list(_text_problems(root, manifest, kept, checks, report))


def _count_problems(manifest: DatasetManifest, documents: pl.DataFrame) -> Iterator[Found]:
    path = manifest.documents[0].path
    outcomes = dict(documents.group_by("outcome").len().iter_rows())
    if outcomes != {str(outcome): count for outcome, count in manifest.outcomes.items() if count}:
        yield path, f"outcomes are {outcomes}, the manifest says {manifest.outcomes}", START_AGAIN
    for topic, partitions in manifest.offsets.items():
        for partition, span in partitions.items():
            rows = documents.filter((pl.col("topic") == topic) & (pl.col("partition") == partition))
            if not np.array_equal(rows["offset"].to_numpy(), np.arange(span.start, span.end)):
                yield path, f"{topic}[{partition}]: rows are not the offsets {span.start} to {span.end - 1}, each once", START_AGAIN


def _statistics_problems(root: Path, manifest: DatasetManifest) -> Iterator[Found]:
    """Those of a dataset that was derived from another are sums over the other's versions (pipelines/dataset/switch.py): not compared."""
    if manifest.statistics is not None and manifest.derived_from is None and manifest.statistics != statistics_of(root, manifest.version):
        yield f"log/{manifest.version:08d}.json", "statistics are not those of the audit trail", START_AGAIN


def _checkpoint_problems(checkpoints: list[Checkpoint], manifest: DatasetManifest) -> Iterator[Found]:
    """A checkpoint that is as it was written but says something else than the log; one that is damaged is read by nobody."""
    place = bisect_right(checkpoints, manifest.version, key=lambda checkpoint: checkpoint.range.first) - 1
    if place >= 0 and manifest.version <= checkpoints[place].range.last:
        versions, columns = checkpoints[place]
        if columns.slice(manifest.version - versions.first, 1).to_pylist() != [row_of(manifest)]:
            yield CHECKPOINTS, "the checkpoints do not say what the log says", "remove the folder: an ingest writes it again from the log"


def _text_problems(root: Path, manifest: DatasetManifest, kept: pl.DataFrame, checks: ShardChecks, report: Report) -> Iterator[Found]:
    """Decode a sample. Where the tokenizer loses nothing, as those do that are trained here, compare with the content hashes in the index."""
    if kept.is_empty():
        return
    try:
        tokenizer = load_tokenizer(root, manifest.tokenizer)
    except DatasetError as error:
        yield manifest.tokenizer.path, str(error), RESTORE
        return
    with pa.memory_map(str(local(root / manifest.dedup_segments[0].path))) as source:
        segment = pa.ipc.open_file(source).read_all()
    if segment["doc_id"].to_pylist() != kept["doc_id"].to_list():
        yield manifest.dedup_segments[0].path, "its rows are not the kept documents in commit order", START_AGAIN
        return
    chosen = np.random.default_rng(manifest.version).permutation(len(kept))[:SAMPLE_DOCUMENTS]
    by_path = {entry.path: token_rows(checks.batch(entry)).reshape(-1) for entry in manifest.shards}
    texts = [_text(by_path, tokenizer, manifest.sequence_length, kept.row(int(index), named=True)) for index in chosen]
    report.documents_decoded += len(texts)
    if manifest.tokenizer.requested_vocab_size is None and not loses_nothing(tokenizer):
        return
    hashes = content_hashes(pa.array(texts, pa.large_string()))
    for index, found, listed in zip(chosen, hashes.to_pylist(), segment["content_hash"].take(chosen).to_pylist(), strict=True):
        if found != listed:
            yield kept["shard"][int(index)], f"document {kept['doc_id'][int(index)]!r} does not decode to the text that was ingested", START_AGAIN


def _text(shards: Mapping[str, Tokens], tokenizer: BatchTokenizer, sequence_length: int, document: Mapping[str, Any]) -> str:
    first = document["row"] * sequence_length + document["start"]
    return tokenizer.decode(shards[document["shard"]][first : first + document["length"] - 1])
