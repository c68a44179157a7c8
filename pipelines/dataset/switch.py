"""Another tokenizer for a dataset: a new lineage under another root, whose version 1 holds everything that versions 1..N held.

Token ids of two tokenizers never stand in one dataset, so a changed tokenizer begins a new one. Its first version covers the same offsets of
the same topics, [first read, next), so that ingest continues under the new root at the same offsets. A range of offsets cannot cross a loss that was
accepted. There the new lineage has one version before the loss, one with the same record of the loss, and one after it, all with ``derived_from``.
Every offset keeps its row in the audit trail:

- kept documents are decoded from the old shards, compared with the content hash that the duplicate index keeps (one that differs stops it all),
  encoded anew and packed again; train documents stay train documents, validation documents validation documents;
- documents that a retraction took out leave no token, fingerprint or content hash behind: their outcome is ``retracted``, for the reason
  ``withdrawn``, while a retraction itself has no reason. So the counts add up, and what is like them may enter, as under the old root;
- all other outcomes stay the same: rejected, duplicate (of the same document), dead, retraction. Fingerprints and counts of lines are copied, so
  duplicates of old documents are still found.

Order: (1) the tokenizer's files; for each version of the new lineage (2) shards, audit trail, fingerprints, under names of this attempt; (3) the
manifest, by create-if-absent; at the end (4) if the old duplicate index was compacted, the new one is too, which is a version of its own
(dataset/compaction.py). A crash before the last (3) leaves what the same command completes; after it, the same command says that it is done. The
old root is only read.
Memory: a block, and one open shard per split. Cost on one core: 5 MB of text a second.
"""

import itertools
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.dataset.audit import Live, audit_blocks, decode_rows
from pipelines.dataset.boilerplate import NOTHING, carry_over
from pipelines.dataset.columns import Numbers, offset_versions, versions_of_topic
from pipelines.dataset.compaction import compact, index_files
from pipelines.dataset.dataset import Dataset, latest_version, read_manifest
from pipelines.dataset.names import segment_path
from pipelines.dataset.retractions.masks import Mask, is_train_shard
from pipelines.dataset.shard_maps import FEW_MAPS, ShardMaps
from pipelines.dataset.statistics import Statistics, merged
from pipelines.dataset.writer import (
    ResolvedBlock,
    VersionPlan,
    build_manifest,
    ends_of,
    manifest_without_documents,
    publish,
    write_version,
)
from pipelines.dedup.fingerprint import content_hashes
from pipelines.quality.models import FOLDER as QUALITY_FOLDER
from pipelines.runtime.crash import crash_point
from pipelines.steps.assess import positions
from pipelines.steps.declared import NAMES as DECLARED
from pipelines.storage.durable import durable_file, file_entry, replace_durably
from pipelines.storage.pinned import verify_pinned
from pipelines.storage.store import file_names, read_bytes
from pipelines.tokenizers.tokenizer import load_tokenizer, ref_of, write_files
from schemas.arrow import DOCUMENTS, MASKS, SEGMENT, Outcome, Split, prepared
from schemas.errors import CommitConflict, DatasetError, ShardCorrupt
from schemas.manifest import DatasetManifest, DerivedFrom, FileEntry, OffsetRange, TokenizerRef
from schemas.settings import Settings
from schemas.statistics import VersionStatistics

_TAKEN_ALONG = ("topic_ids", "record_bytes", "leader_epochs")
"""Fields of a manifest that say where and how reading continues; a part takes them from its last version."""
WITHDRAWN = "withdrawn"
"""Reason of a document that had been taken out before the switch."""


class Switched(NamedTuple):
    """The version of the new lineage that holds what versions 1..N held: the first one, where no loss was accepted."""

    manifest: DatasetManifest
    is_new: bool
    """Whether this call published it."""


class _Part(NamedTuple):
    """What becomes one version: the source's versions between two losses, or one loss."""

    versions: range
    is_loss: bool
    num_kept_before: int
    """Number of documents that the source kept before these versions."""
    num_kept: int
    is_last_with_documents: bool


def switch(
    source: Dataset,
    tokenizer: Mapping[str, bytes],
    new_root: Path,
    settings: Settings,
    now: datetime,
    on_rows: Callable[[int], None] = lambda _: None,
) -> Switched:
    """Begin a new lineage under ``new_root`` with the tokenizer of these files; ``on_rows`` is told how many more offsets are done.

    Packing is that of the settings. Raises DatasetError if there is another dataset already, or a document does not decode to what was ingested;
    ShardCorrupt for damaged files; CommitConflict if another switch into the same root was faster.
    """
    derived = DerivedFrom(manifest_sha256=source.sha256, version=source.version, tokenizer_sha256=source.tokenizer.sha256)
    parts = _parts(source)
    made = _made(new_root, derived, ref_of(tokenizer).sha256, len(parts))
    is_new = len(made) < len(parts)
    # Step 1.
    ref = write_files(new_root, tokenizer) if is_new else made[0].tokenizer
    _take_quality_model(source.root, new_root, settings.quality_model.path)
    crash_point("tokenizer_written")
    for part in parts[len(made) :]:
        # Step 2.
        parent = made[-1] if made else None
        if part.is_loss and parent is not None:
            manifest = _lost(source.read(part.versions.start), parent, settings, now)
        else:
            manifest = _rewritten(source, part, new_root, ref, parent, settings, now, on_rows)
        manifest = manifest.model_copy(update={"derived_from": derived})
        crash_point("switch_written")
        # Step 3.
        publish(new_root, manifest)
        crash_point("published")
        made.append(manifest)
    # Step 4.
    _compact_too(source, new_root, len(parts), settings, now)
    return Switched(made[-1], is_new)


def _parts(source: Dataset) -> list[_Part]:
    """The source's versions, cut at its losses; parts without records are left out."""
    columns = source.columns
    losses = (np.flatnonzero(columns["num_losses"].to_numpy()) + 1).tolist()
    edges = [1, *(edge for version in losses for edge in (version, version + 1)), source.version + 1]
    num_kept = pc.struct_field(columns["outcomes"], str(Outcome.KEPT)).to_numpy()
    num_records = columns["num_records"].to_numpy()
    taken = [
        versions
        for versions in itertools.starmap(range, itertools.pairwise(edges))
        if versions and (versions.start in losses or num_records[versions.start - 1 : versions.stop - 1].sum())
    ]
    last = max(number for number, versions in enumerate(taken) if versions.start not in losses)
    return [
        _Part(
            versions,
            versions.start in losses,
            int(num_kept[: versions.start - 1].sum()),
            int(num_kept[versions.start - 1 : versions.stop - 1].sum()),
            number == last,
        )
        for number, versions in enumerate(taken)
    ]


def _offsets(source: Dataset, versions: range) -> dict[str, dict[int, OffsetRange]]:
    """Offsets [first read, next) of every topic and partition, of versions without a loss among them."""
    wanted = set(offset_versions(source.columns))
    for topic in source.manifest.topic_ids:
        wanted.update(version for version in _ends(versions_of_topic(source.columns, topic), versions))
    union: dict[str, dict[int, OffsetRange]] = {}
    for version in sorted(wanted & set(versions)):
        for topic, partitions in source.read(version).offsets.items():
            covered = union.setdefault(topic, {})
            for partition, span in partitions.items():
                covered[partition] = OffsetRange(start=covered.get(partition, span).start, end=span.end)
    return union


def _ends(among: Numbers, versions: range) -> list[int]:
    """The first and the last of these versions that are among those."""
    found = among[(among >= versions.start) & (among < versions.stop)]
    return [int(found[0]), int(found[-1])] if len(found) else []


def _lost(before: DatasetManifest, parent: DatasetManifest, settings: Settings, now: datetime) -> DatasetManifest:
    """The version that records a loss as the source's version before records it."""
    assert before.accepted_loss is not None
    num_lost = parent.totals.num_lost + sum(loss.num_unread or 0 for loss in before.accepted_loss.lost)
    changes: dict[str, Any] = {name: getattr(before, name) for name in (*_TAKEN_ALONG, "accepted_loss")}
    changes |= {"offsets": ends_of(parent) | before.offsets, "totals": parent.totals.model_copy(update={"num_lost": num_lost})}
    return manifest_without_documents(parent, secrets.token_hex(6), settings, now, **changes)


def _rewritten(
    source: Dataset,
    part: _Part,
    new_root: Path,
    ref: TokenizerRef,
    parent: DatasetManifest | None,
    settings: Settings,
    now: datetime,
    on_rows: Callable[[int], None],
) -> DatasetManifest:
    """The version that holds the documents of a part; its files are written."""
    before, version = source.read(part.versions[-1]), parent.version + 1 if parent else 1
    plan = VersionPlan(version, secrets.token_hex(6), before.topic_ids, _offsets(source, part.versions), ref)
    with _Rewriting(source, part, new_root, plan, settings, on_rows) as rewriting:
        files = write_version(new_root, plan, settings, rewriting.blocks(), SEGMENT.empty_table, lambda _: MASKS.empty_table())
    boilerplate = carry_over(source, new_root, plan.attempt, version) if part.is_last_with_documents else NOTHING
    files = replace(files, dedup_segments=rewriting.segments(), boilerplate=boilerplate)
    taken = {name: getattr(before, name) for name in _TAKEN_ALONG} | {"statistics": rewriting.statistics()}
    return build_manifest(plan, files, settings, parent=parent, now=now).model_copy(update=taken)


def _compact_too(source: Dataset, root: Path, version: int, settings: Settings, now: datetime) -> None:
    """Give the new lineage a compacted index if the old one had one: opening many fingerprints otherwise means reading them all."""
    if latest_version(root) == version and settings.dedup.compact_segments and index_files(source).base is not None:
        with suppress(CommitConflict):  # ingest goes on there already, and will compact when it is due
            compact(Dataset(root), settings, now=now)


def _made(new_root: Path, derived: DerivedFrom, tokenizer_sha256: str, num_parts: int) -> list[DatasetManifest]:
    """The versions that the same switch has published already. Raises DatasetError if other versions are there."""
    newest = latest_version(new_root)
    made = [read_manifest(new_root, version) for version in range(1, min(newest, num_parts) + 1)]
    for manifest in made:
        if (manifest.derived_from, manifest.tokenizer.sha256) != (derived, tokenizer_sha256):
            before = manifest.derived_from
            origin = f"made of version {before.version} of a dataset" if before else "not made by a switch"
            raise DatasetError(
                f"{new_root} holds another dataset already (version {manifest.version}: {origin}, tokenizer {manifest.tokenizer.sha256[:12]}); "
                "name a folder without one with --into"
            )
    return made


def _take_quality_model(root: Path, new_root: Path, path: str) -> None:
    """The quality model under the root that the settings name is one under the new root too."""
    folder = root / QUALITY_FOLDER / path
    if re.fullmatch("[0-9a-f]{64}", path):
        for name in sorted(file_names(folder)):
            replace_durably(new_root / QUALITY_FOLDER / path / name, read_bytes(folder / name))


class _Rewriting:
    """The blocks of the new version, and what comes with them; a ``with`` block around the writing."""

    def __init__(self, source: Dataset, part: _Part, new_root: Path, plan: VersionPlan, settings: Settings, on_rows: Callable[[int], None]) -> None:
        self._source = source
        self._part = part
        self._new_root = new_root
        self._plan = plan
        self._old = load_tokenizer(source.root, source.tokenizer)
        self._new = load_tokenizer(new_root, plan.tokenizer, settings.tokenizer)
        self._schema = prepared(plan.tokenizer.vocab_size)
        self._live = Live(source, part.num_kept_before)
        self._maps = ShardMaps(source, FEW_MAPS)
        self._on_rows = on_rows
        self._statistics: list[VersionStatistics] = []
        self._num_fingerprints = 0
        self._resources = ExitStack()

    def __enter__(self) -> "_Rewriting":
        if self._live.num_live(self._part.num_kept):
            file = self._resources.enter_context(durable_file(self._new_root / segment_path(self._plan.version, self._plan.attempt)))
            self._segment = self._resources.enter_context(pa.ipc.new_file(file, SEGMENT))
        return self

    def __exit__(self, *error: Any) -> None:
        self._resources.__exit__(*error)

    def blocks(self) -> Iterator[ResolvedBlock]:
        """All offsets of the part in commit order, kept documents with their new ids, duplicates with their verdicts."""
        for manifest in map(self._source.read, self._part.versions):
            if not manifest.documents:
                continue
            statistics, fingerprints, taken = Statistics(), self._fingerprints(manifest), 0
            for block in audit_blocks(self._source.root, manifest):
                live, is_kept = self._live.among(block), pc.equal(block["outcome"], Outcome.KEPT).to_numpy()
                kept = fingerprints.slice(taken, int(is_kept.sum()))
                taken += len(kept)
                tokens = self._encoded(block.filter(pa.array(live)), kept.filter(pa.array(live[is_kept])))
                at = positions(np.flatnonzero(live), len(block))
                columns = {name: block[name] for name in DOCUMENTS.names} | _withdrawn(block, is_kept & ~live)
                statistics.add(_counted(columns, pc.add(pc.list_value_length(tokens), 1).take(at)))
                columns |= _candidates(columns) | {"split": _splits(block["shard"]), "tokens": tokens.take(at)}
                yield ResolvedBlock(self._prepared(columns, len(block)), _verdicts(block, live))
                self._on_rows(len(block))
            self._statistics.append(statistics.finish(manifest.created_at))

    def segments(self) -> list[FileEntry]:
        """The file of fingerprints, finished; none if there is no document."""
        path = self._new_root / segment_path(self._plan.version, self._plan.attempt)
        return [file_entry(self._new_root, path, self._num_fingerprints)] if self._num_fingerprints else []

    def statistics(self) -> VersionStatistics:
        """Statistics of all versions of the part together; freshness is that of the versions' own commits."""
        return merged(self._statistics)

    def _encoded(self, documents: pa.Table, fingerprints: pa.Table) -> pa.LargeListArray:
        """New ids of documents that go along, whose fingerprints are written."""
        texts = self._texts(documents, fingerprints)
        if len(documents):
            self._segment.write_table(fingerprints)
            self._num_fingerprints += len(documents)
        return self._new.encode(texts, documents["doc_id"])

    def _prepared(self, columns: Mapping[str, Any], num_rows: int) -> pa.Table:
        given = [columns[field.name] if field.name in columns else pa.nulls(num_rows, field.type) for field in self._schema]
        return pa.table(given, names=self._schema.names).cast(self._schema)

    def _texts(self, documents: pa.Table, fingerprints: pa.Table) -> pa.Array:
        """The documents' texts, each compared with the hash of what was ingested."""
        texts = decode_rows(self._maps, self._old, documents)
        equal = np.array(content_hashes(texts).to_pylist(), dtype=object) == np.array(fingerprints["content_hash"].to_pylist(), dtype=object)
        if not equal.all():
            wrong = documents.slice(int(np.argmin(equal)), 1).to_pylist()[0]
            raise DatasetError(
                f"document {wrong['doc_id']!r} ({wrong['topic']}/{wrong['partition']}/{wrong['offset']}, in {wrong['shard']}) does not decode to the "
                f"text that was ingested, so its text cannot be taken over; {self._advice()}. Nothing was committed"
            )
        return texts

    def _advice(self) -> str:
        ref = self._source.tokenizer
        if ref.requested_vocab_size is not None:
            return f"run `headrace datasets verify --root {self._source.root}` and restore what is damaged"
        return (
            f"tokenizer {ref.sha256[:12]} does not decode every text to the original, or a file is damaged (run `headrace datasets verify`): "
            "read Kafka again into a new root with tokenizer.path"
        )

    def _fingerprints(self, manifest: DatasetManifest) -> pa.Table:
        """The version's segment of the duplicate index, one row per kept document, in order; memory-mapped."""
        paths = [verify_pinned(self._source.root, entry) for entry in manifest.dedup_segments]
        tables = [pa.ipc.open_file(pa.memory_map(str(path))).read_all() for path in paths]
        found = pa.concat_tables([SEGMENT.empty_table(), *(table.select(SEGMENT.names).cast(SEGMENT) for table in tables)])
        if len(found) != manifest.outcomes.get(Outcome.KEPT, 0):
            raise ShardCorrupt(f"version {manifest.version} keeps {manifest.outcomes[Outcome.KEPT]} documents and {len(found)} fingerprints")
        return found


def _withdrawn(block: pa.Table, rows: Mask) -> dict[str, pa.ChunkedArray]:
    """Columns that say of these rows that they were taken out, and nothing more of their text than how long it was."""
    flags = pa.array(rows)
    return {
        "outcome": pc.if_else(flags, str(Outcome.RETRACTED), block["outcome"]),
        "reason": pc.if_else(flags, WITHDRAWN, block["reason"]),
        "fingerprint": pc.if_else(flags, pa.scalar(None, pa.uint64()), block["fingerprint"]),
        **{name: pc.if_else(flags, pa.scalar(None, pa.string()), block[name]) for name in DECLARED},
    }


def _candidates(columns: Mapping[str, Any]) -> dict[str, pa.ChunkedArray]:
    """Outcome and reason as before duplicates were looked for: the verdicts say which are some."""
    is_duplicate = pc.equal(columns["outcome"], Outcome.DUPLICATE)
    return {
        "outcome": pc.if_else(is_duplicate, str(Outcome.KEPT), columns["outcome"]),
        "reason": pc.if_else(is_duplicate, pa.scalar(None, pa.string()), columns["reason"]),
    }


def _verdicts(block: pa.Table, live: Mask) -> pa.Table:
    """One row for each document that is kept, all null, and each duplicate, as it was judged."""
    candidates = pc.or_(pa.array(live), pc.equal(block["outcome"], Outcome.DUPLICATE))
    return block.filter(candidates).select(["duplicate_of", "reason", "similarity"])


def _splits(shards: pa.ChunkedArray) -> pa.Array:
    """The split of each row's shard."""
    names = [None if shard is None else str(Split.TRAIN if is_train_shard(shard) else Split.VALIDATION) for shard in shards.to_pylist()]
    return pa.array(names, pa.string())


def _counted(columns: Mapping[str, Any], num_tokens: pa.Array) -> pa.Table:
    """Rows of DOCUMENTS as far as statistics read them."""
    values = {**columns, "num_tokens": num_tokens.cast(pa.int64())}
    return pa.table([values[name] for name in DOCUMENTS.names], names=DOCUMENTS.names)
