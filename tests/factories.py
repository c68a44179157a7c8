"""Committed datasets for tests, written by the product's own writer without Kafka or Ray."""

import hashlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from pipelines.dataset.boilerplate import Boilerplate
from pipelines.dataset.dataset import Dataset, latest_version
from pipelines.dataset.duplicates import Duplicates
from pipelines.dataset.retractions.retractions import Retractions
from pipelines.dataset.writer import ResolvedBlock, VersionPlan, build_manifest, kept_rows, publish, write_version
from pipelines.steps.prepare import clean, prepare
from pipelines.tokenizers.tokenizer import load_tokenizer, write_tokenizer
from schemas.arrow import MASKS, RECORDS, SEGMENT, Outcome, Split, prepared
from schemas.manifest import DatasetManifest, OffsetRange, TokenizerRef
from schemas.settings import Settings
from schemas.settings_sources import load_settings

TOPIC = "headrace.documents"
EOS, PAD = 0, 1


def tokenizer_ref(vocab_size: int) -> TokenizerRef:
    """A reference to a tokenizer that is not there: enough for everything that only reads token ids."""
    return TokenizerRef(sha256="0" * 64, path=f"tokenizer/{'0' * 64}", vocab_size=vocab_size, eos_token_id=EOS, pad_token_id=PAD)


def make_tokens(rng: np.random.Generator, length: int, vocab_size: int) -> npt.NDArray[np.int64]:
    """Ids without special tokens that a model can learn: arithmetic progressions modulo the vocabulary."""
    start, stride = rng.integers(vocab_size), rng.integers(1, 4)
    return (start + stride * np.arange(length)) % (vocab_size - 2) + 2


def document_lengths(rng: np.random.Generator, num_tokens: int) -> list[int]:
    """Lengths (end-of-text token not counted) of documents that fill ``num_tokens`` positions exactly."""
    lengths: list[int] = []
    while num_tokens > 0:
        taken = min(int(rng.integers(2, 200)), num_tokens)
        lengths.append(taken - 1)
        num_tokens -= taken
    return lengths


def prepared_block(documents: list[npt.NDArray[np.int64]], splits: list[Split], *, vocab_size: int, first_offset: int = 0) -> pa.Table:
    """A prepared block of kept documents of partition 0."""
    schema = prepared(vocab_size)
    number = len(documents)
    hashes = [hashlib.sha256(f"{first_offset + index}".encode()).digest() for index in range(number)]
    columns = {
        "topic": [TOPIC] * number,
        "partition": [0] * number,
        "offset": list(range(first_offset, first_offset + number)),
        "doc_id": [f"doc-{first_offset + index}" for index in range(number)],
        "outcome": [str(Outcome.KEPT)] * number,
        "language": ["en"] * number,
        "num_chars": [len(tokens) * 4 for tokens in documents],
        "num_replaced": [0] * len(documents),
        "fingerprint": [int.from_bytes(value[:8], "big") for value in hashes],
        "content_hash": [value[:16] for value in hashes],
        "sketch": hashes,
        "split": [str(split) for split in splits],
        "tokens": [tokens.tolist() for tokens in documents],
    }
    return pa.table({field.name: pa.array(columns.get(field.name, [None] * number), field.type) for field in schema}, schema=schema)


def no_duplicates(number: int) -> pa.Table:
    """Verdicts that keep every document."""
    return pa.table(
        {"duplicate_of": pa.nulls(number, pa.string()), "reason": pa.nulls(number, pa.string()), "similarity": pa.nulls(number, pa.float32())}
    )


def clock() -> datetime:
    """When everything happens."""
    return datetime(2026, 1, 1, tzinfo=UTC)


def no_masks(_: Sequence[Path]) -> pa.Table:
    """Nothing was retracted."""
    return MASKS.empty_table()


Choose = Callable[[pl.DataFrame], pl.DataFrame]
"""All kept documents of the dataset in commit order, the new version's last -> those that the new version masks."""


def mask_documents(root: Path, trail: Sequence[Path], choose: Choose) -> pa.Table:
    """Masks of the chosen documents, as if retractions at offset 0 had taken them out; ``trail`` is the new version's audit trail."""
    manifests = Dataset(root).manifests() if latest_version(root) else []
    paths = [*(root / entry.path for manifest in manifests for entry in manifest.documents), *trail]
    frames = [pl.read_parquet(path).with_columns(version=pl.lit(number, pl.Int64)) for number, path in enumerate(paths, 1)]
    kept = pl.concat(frames).filter(pl.col("outcome") == Outcome.KEPT).with_row_index("ordinal").with_columns(offset=pl.lit(0, pl.Int64))
    return choose(kept).select(MASKS.names).to_arrow().cast(MASKS)


def commit_block(
    root: Path, block: pa.Table, settings: Settings, tokenizer: TokenizerRef, attempt: str | None = None, mask: Choose | None = None
) -> DatasetManifest:
    """Commit one prepared block as the next version, all of its documents kept."""
    version = latest_version(root) + 1
    parent = Dataset(root).manifest if version > 1 else None
    offsets = block["offset"].to_pylist()
    plan = VersionPlan(
        version=version,
        attempt=attempt or f"f{version:011x}",
        topic_ids={TOPIC: "AAAAAAAAAAAAAAAAAAAAAA"},
        offsets={TOPIC: {0: OffsetRange(start=offsets[0], end=offsets[-1] + 1)}},
        tokenizer=tokenizer,
    )
    kept = kept_rows(block)
    masks = no_masks if mask is None else lambda trail: mask_documents(root, trail, mask)
    files = write_version(
        root, plan, settings, [ResolvedBlock(block, no_duplicates(len(kept)))], lambda: kept.select(SEGMENT.names).cast(SEGMENT), masks
    )
    manifest = build_manifest(plan, files, settings, parent=parent, now=clock())
    publish(root, manifest)
    return manifest


def make_dataset(
    root: Path,
    *,
    num_rows: int = 64,
    sequence_length: int = 32,
    vocab_size: int = 300,
    num_validation_rows: int | None = None,
    seed: int = 0,
    tokenizer: TokenizerRef | None = None,
    mask: Choose | None = None,
) -> DatasetManifest:
    """Commit one more version with exactly ``num_rows`` full train rows, and validation rows (a tenth of that unless told otherwise).

    Call it again for the next version. ``tokenizer`` names one that was really written under the root; its vocabulary size wins.
    ``mask`` chooses documents that the new version masks.
    """
    settings = load_settings("", {}, {"root": str(root), "packing.sequence_length": sequence_length})
    tokenizer = tokenizer or tokenizer_ref(vocab_size)
    version = latest_version(root)
    rng = np.random.default_rng([seed, version])
    validation_rows = max(1, num_rows // 10) if num_validation_rows is None else num_validation_rows
    documents, splits = [], []
    for split, rows in ((Split.TRAIN, num_rows), (Split.VALIDATION, validation_rows)):
        lengths = document_lengths(rng, rows * sequence_length)
        documents += [make_tokens(rng, length, tokenizer.vocab_size) for length in lengths]
        splits += [split] * len(lengths)
    first_offset = Dataset(root).next_offsets(TOPIC)[0] if version else 0
    block = prepared_block(documents, splits, vocab_size=tokenizer.vocab_size, first_offset=first_offset)
    return commit_block(root, block, settings, tokenizer, mask=mask)


def make_seven_versions(root: Path) -> Path:
    """Seven small versions, of which the third and sixth mask documents."""
    for version in range(1, 8):
        make_dataset(root, num_rows=2, mask=(lambda kept: kept.tail(1)) if version % 3 == 0 else None)
    return root


def records_table(values: list[tuple[bytes | None, bytes | None]], first_offset: int = 0) -> pa.Table:
    """Kafka records (key, value) of partition 0 as the source emits them; ``(None, None)`` is an offset without a record."""
    number = len(values)
    columns = {
        "topic": [TOPIC] * number,
        "partition": [0] * number,
        "offset": list(range(first_offset, first_offset + number)),
        "timestamp_ms": [0] * number,
        "is_control": [value == (None, None) for value in values],
        "key": [key for key, _ in values],
        "value": [value for _, value in values],
        "headers": [None if value == (None, None) else [] for value in values],
    }
    return pa.table({field.name: pa.array(columns[field.name], field.type) for field in RECORDS}, schema=RECORDS)


def text_settings(root: Path, **overrides: object) -> Settings:
    """Settings for small datasets of real text."""
    small = {"packing.sequence_length": 32, "packing.shard_rows": 20, "tokenizer.vocab_size": 400, "ingest.validation_fraction": 0.2}
    return load_settings("", {}, {"root": str(root), **small, **overrides})


def commit_records(root: Path, values: list[tuple[bytes | None, bytes | None]], settings: Settings | None = None) -> DatasetManifest:
    """Commit records as the next version through the real steps, tokenizer, duplicate index and writer; only Kafka and Ray are left out."""
    settings = settings or text_settings(root)
    dataset = Dataset(root) if latest_version(root) else None
    start = dataset.next_offsets(TOPIC)[0] if dataset else 0
    records = records_table(values, start)
    if dataset is None:
        ref = write_tokenizer(root, clean(records, settings)["text"].drop_null().to_pylist(), settings.tokenizer)
        ref = ref.model_copy(update={"requested_vocab_size": None if settings.tokenizer.path else settings.tokenizer.vocab_size})
    else:
        ref = dataset.tokenizer
    version = dataset.version + 1 if dataset else 1
    offsets = {TOPIC: {0: OffsetRange(start=start, end=start + len(values))}}
    plan = VersionPlan(version=version, attempt=f"f{version:011x}", topic_ids={TOPIC: "A" * 22}, offsets=offsets, tokenizer=ref)
    duplicates = Duplicates(settings.dedup)
    duplicates.open(dataset)
    retractions = Retractions()
    retractions.open(dataset)
    boilerplate = Boilerplate(settings.dedup)
    boilerplate.open(dataset)
    block = retractions.admit(prepare(records, settings, load_tokenizer(root, ref), boilerplate.known))
    resolved = [ResolvedBlock(block, retractions.resolve(block, duplicates))]
    files = write_version(root, plan, settings, resolved, duplicates.new_segment, retractions.masks, boilerplate)
    manifest = build_manifest(plan, files, settings, parent=dataset.manifest if dataset else None, now=clock())
    publish(root, manifest)
    return manifest
