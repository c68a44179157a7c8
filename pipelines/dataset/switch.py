"""Another tokenizer for a dataset: a new lineage under another root, whose version 1 holds everything that versions 1..N held.

Token ids of two tokenizers never stand in one dataset, so a changed tokenizer begins a new one. Its first version covers the same offsets of
the same topics, [first read, next), so that ingest goes on under the new root where it stood; every offset keeps its row in the audit trail:

- kept documents are decoded from the old shards, compared with the content hash that the duplicate index keeps (one that differs stops it all),
  encoded anew and packed again; train documents stay train documents, validation documents validation documents;
- documents that a retraction took out leave no token, fingerprint or content hash behind: their outcome is ``retracted``, for the reason
  ``withdrawn``, while a retraction itself has no reason. So the counts add up, and what is like them may enter, as under the old root;
- everything else is as it was: rejected, duplicate of whom, dead, retraction. Fingerprints and the counts of lines go along, so duplicates
  of old documents are still found.

Order: (1) the tokenizer's files; (2) shards, audit trail, fingerprints, under names of this attempt; (3) the manifest, by create-if-absent;
(4) if the old duplicate index was compacted, the new one is too, which is a version of its own (dataset/compaction.py). A crash before (3)
leaves a root without a dataset, which the same command completes; after it, the same command says that it is done. The old root is only read.
Memory: a block, and one open shard per split. Cost on one core: 5 MB of text a second.
"""

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
from pipelines.dataset.boilerplate import carry_over
from pipelines.dataset.compaction import compact, index_files
from pipelines.dataset.dataset import Dataset, latest_version, read_manifest
from pipelines.dataset.names import segment_path
from pipelines.dataset.retractions.masks import Mask, is_train_shard
from pipelines.dataset.shard_maps import FEW_MAPS, ShardMaps
from pipelines.dataset.statistics import Statistics, merged
from pipelines.dataset.writer import ResolvedBlock, VersionPlan, build_manifest, publish, write_version
from pipelines.dedup.fingerprint import content_hashes
from pipelines.quality.models import FOLDER as QUALITY_FOLDER
from pipelines.runtime.crash import crash_point
from pipelines.steps.assess import positions
from pipelines.steps.declared import NAMES as DECLARED
from pipelines.storage.durable import durable_file, file_entry, replace_durably
from pipelines.storage.pinned import verify_pinned
from pipelines.tokenizers.tokenizer import load_tokenizer, ref_of, write_files
from schemas.arrow import DOCUMENTS, MASKS, SEGMENT, Outcome, Split, prepared
from schemas.errors import CommitConflict, DatasetError, ShardCorrupt
from schemas.manifest import DatasetManifest, DerivedFrom, FileEntry
from schemas.settings import Settings
from schemas.statistics import VersionStatistics

WITHDRAWN = "withdrawn"
"""Reason of a document that had been taken out before the switch."""


class Switched(NamedTuple):
    """The first version of the new lineage."""

    manifest: DatasetManifest
    is_new: bool
    """Whether this call published it."""


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
    if lossy := [manifest.version for manifest in source.manifests() if manifest.accepted_loss is not None]:
        raise DatasetError(
            f"versions {lossy} of {source.root} accept a loss of offsets, which one version over all of them cannot express; publish the documents "
            "again and ingest them with the other tokenizer under another --root"
        )
    derived = DerivedFrom(manifest_sha256=source.sha256, version=source.version, tokenizer_sha256=source.tokenizer.sha256)
    found = _existing(new_root, derived, ref_of(tokenizer).sha256)
    if found is not None:
        _compact_too(source, new_root, settings, now)
        return Switched(found, is_new=False)
    # Step 1.
    ref = write_files(new_root, tokenizer)
    _take_quality_model(source.root, new_root, settings.quality_model.path)
    crash_point("tokenizer_written")
    # Step 2.
    plan = VersionPlan(1, secrets.token_hex(6), source.manifest.topic_ids, source.offsets(), ref)
    with _Rewriting(source, new_root, plan, settings, on_rows) as rewriting:
        files = write_version(new_root, plan, settings, rewriting.blocks(), SEGMENT.empty_table, lambda _: MASKS.empty_table())
    files = replace(files, dedup_segments=rewriting.segments(), boilerplate=carry_over(source, new_root, plan.attempt))
    manifest = build_manifest(plan, files, settings, parent=None, now=now)
    taken = {"derived_from": derived, "statistics": rewriting.statistics(), "record_bytes": source.manifest.record_bytes}
    taken["leader_epochs"] = source.manifest.leader_epochs
    manifest = manifest.model_copy(update=taken)
    crash_point("switch_written")
    # Step 3.
    publish(new_root, manifest)
    crash_point("published")
    # Step 4.
    _compact_too(source, new_root, settings, now)
    return Switched(manifest, is_new=True)


def _compact_too(source: Dataset, root: Path, settings: Settings, now: datetime) -> None:
    """Give the new lineage a compacted index if the old one had one: opening many fingerprints otherwise means reading them all."""
    if latest_version(root) == 1 and settings.dedup.compact_segments and index_files(source).base is not None:
        with suppress(CommitConflict):  # ingest goes on there already, and will compact when it is due
            compact(Dataset(root), settings, now=now)


def _existing(root: Path, derived: DerivedFrom, tokenizer_sha256: str) -> DatasetManifest | None:
    """What the same switch has published before."""
    if not latest_version(root):
        return None
    first = read_manifest(root, 1)
    if (first.derived_from, first.tokenizer.sha256) == (derived, tokenizer_sha256):
        return first
    origin = f"made of version {first.derived_from.version} of a dataset" if first.derived_from else "not made by a switch"
    raise DatasetError(
        f"{root} holds another dataset already ({origin}, tokenizer {first.tokenizer.sha256[:12]}); name a folder without one with --into"
    )


def _take_quality_model(root: Path, new_root: Path, path: str) -> None:
    """The quality model under the root that the settings name is one under the new root too."""
    folder = root / QUALITY_FOLDER / path
    if re.fullmatch("[0-9a-f]{64}", path) and folder.is_dir():
        for file in sorted(folder.iterdir()):
            replace_durably(new_root / QUALITY_FOLDER / path / file.name, file.read_bytes())


class _Rewriting:
    """The blocks of the new version, and what comes with them; a ``with`` block around the writing."""

    def __init__(self, source: Dataset, new_root: Path, plan: VersionPlan, settings: Settings, on_rows: Callable[[int], None]) -> None:
        self._source = source
        self._new_root = new_root
        self._plan = plan
        self._old = load_tokenizer(source.root, source.tokenizer)
        self._new = load_tokenizer(new_root, plan.tokenizer, settings.tokenizer)
        self._schema = prepared(plan.tokenizer.vocab_size)
        self._live = Live(source)
        self._maps = ShardMaps(source, FEW_MAPS)
        self._on_rows = on_rows
        self._statistics: list[VersionStatistics] = []
        self._num_fingerprints = 0
        self._resources = ExitStack()

    def __enter__(self) -> "_Rewriting":
        totals = self._source.manifest.totals
        if totals.outcomes.get(Outcome.KEPT, 0) > totals.num_masked_documents:
            file = self._resources.enter_context(durable_file(self._new_root / segment_path(1, self._plan.attempt)))
            self._segment = self._resources.enter_context(pa.ipc.new_file(file, SEGMENT))
        return self

    def __exit__(self, *error: Any) -> None:
        self._resources.__exit__(*error)

    def blocks(self) -> Iterator[ResolvedBlock]:
        """All offsets of versions 1..N in commit order, kept documents with their new ids, duplicates with their verdicts."""
        for manifest in self._source.manifests():
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
                yield self._prepared(columns, len(block)), _verdicts(block, live)
                self._on_rows(len(block))
            self._statistics.append(statistics.finish(manifest.created_at))

    def segments(self) -> list[FileEntry]:
        """The file of fingerprints, finished; none if there is no document."""
        path = self._new_root / segment_path(1, self._plan.attempt)
        return [file_entry(self._new_root, path, self._num_fingerprints)] if self._num_fingerprints else []

    def statistics(self) -> VersionStatistics:
        """Of all versions together; freshness is that of the versions' own commits."""
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
            f"tokenizer {ref.sha256[:12]} was imported and loses something of some texts, or a file is damaged (`headrace datasets verify` tells): "
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
