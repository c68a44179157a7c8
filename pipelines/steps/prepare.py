"""All steps in order: a batch of Kafka records in, a batch of verdicts, fingerprints and token ids out.

Invariant: every row in gives exactly one row out, in the same order, and nothing in a row can raise: what cannot be used is dead with
a rule (broken outside) or rejected with a rule (poor inside). Only dead rows carry their bytes along, for the dead-letter topic.
Cost per core: docs/performance.md (benchmarks/pipeline.py and benchmarks/tokenizer.py measure it).
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from pipelines.dedup.fingerprint import content_hashes, fingerprint_texts
from pipelines.dedup.fingerprint_check import check_fingerprints
from pipelines.dedup.paragraphs import EMPTY
from pipelines.steps.assess import assess, positions
from pipelines.steps.declared import declared_columns
from pipelines.steps.decode import decode
from pipelines.tokenizers.tokenizer import BatchTokenizer
from schemas.arrow import HEADERS, PARAGRAPHS, PII_COUNTS, SKETCH_BYTES, Outcome, Split, prepared
from schemas.settings import Settings

CLEANED = pa.schema(
    [
        pa.field("topic", pa.string(), nullable=False),
        pa.field("partition", pa.int32(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("timestamp_ms", pa.int64()),
        pa.field("doc_id", pa.string()),
        pa.field("outcome", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("error", pa.string()),
        pa.field("replay_of", pa.string()),
        pa.field("outside_bytes", pa.int64()),
        pa.field("source", pa.string()),
        pa.field("domain", pa.string()),
        pa.field("url", pa.string()),
        pa.field("title", pa.string()),  # of kept documents only, as are license, created_at and meta (declared.py)
        pa.field("license", pa.string()),
        pa.field("created_at", pa.string()),
        pa.field("meta", pa.string()),
        pa.field("language", pa.string()),
        pa.field("num_chars", pa.int64()),
        pa.field("num_replaced", pa.int64()),
        pa.field("quality", pa.float32()),
        pa.field("perplexity", pa.float32()),
        pa.field("informativeness", pa.float32()),
        pa.field("pii", PII_COUNTS),
        pa.field("paragraphs", PARAGRAPHS),
        pa.field("text", pa.large_string()),  # of kept documents only, as it will be tokenized
        pa.field("key", pa.large_binary()),  # of dead rows only, as are value and headers
        pa.field("value", pa.large_binary()),
        pa.field("headers", HEADERS),
    ]
)
"""Rows after decode and assess (assess.py); "kept" means: not rejected."""


def clean(records: pa.Table, settings: Settings, known: npt.NDArray[np.uint64] = EMPTY.hashes) -> pa.Table:
    """Decode and assess: schemas.arrow.RECORDS -> CLEANED, row by row. ``known``: as in ``assess``."""
    decoded = decode(records, settings).combine_chunks()
    is_document = _flags(decoded["text"].is_valid())
    documents = decoded.filter(pa.array(is_document))
    assessed = assess(_one_array(documents["text"]), documents["declared_language"], settings, known)
    at = positions(np.flatnonzero(is_document), len(records))
    outcomes = pc.if_else(assessed.rules.is_null(), Outcome.KEPT, Outcome.REJECTED)
    dead = pc.equal(decoded["outcome"], Outcome.DEAD).fill_null(False)
    outcome = pc.coalesce(decoded["outcome"], outcomes.take(at))
    columns = {
        **{name: records[name] for name in ("topic", "partition", "offset", "timestamp_ms")},
        **{name: decoded[name] for name in ("doc_id", "error", "replay_of", "outside_bytes", "source", "domain", "url")},
        **declared_columns(decoded, pc.equal(outcome, Outcome.KEPT), settings.pii),
        "outcome": outcome,
        "reason": pc.coalesce(decoded["reason"], assessed.rules.take(at)),
        "language": assessed.languages.take(at),
        "num_chars": assessed.num_chars.take(at),
        "num_replaced": assessed.num_replaced.take(at),
        **{name: getattr(assessed.scores, name).take(at) for name in ("quality", "perplexity", "informativeness")},
        "pii": assessed.pii.take(at),
        "paragraphs": assessed.paragraphs.take(at),
        "text": assessed.texts.take(at),
        **{name: _only(records[name], dead) for name in ("key", "value", "headers")},
    }
    return pa.table([columns[field.name].cast(field.type) for field in CLEANED], schema=CLEANED)


def prepare(records: pa.Table, settings: Settings, tokenizer: BatchTokenizer, known: npt.NDArray[np.uint64] = EMPTY.hashes) -> pa.Table:
    """``clean``, then fingerprint, split and tokenize what was kept: schemas.arrow.RECORDS -> schemas.arrow.prepared(vocab), row by row."""
    cleaned = clean(records, settings, known)
    kept = _flags(pc.equal(cleaned["outcome"], Outcome.KEPT))
    texts = _one_array(cleaned["text"].filter(pa.array(kept)))
    at = positions(np.flatnonzero(kept), len(cleaned))
    fingerprints, hashes = fingerprint_texts(texts, settings.dedup), content_hashes(texts)
    check_fingerprints(texts, hashes, fingerprints.fingerprint, settings.dedup)
    computed = {
        "fingerprint": pa.array(fingerprints.fingerprint),
        "content_hash": hashes,
        "sketch": _fixed_size(fingerprints.sketch, SKETCH_BYTES),
        "split": splits(cleaned["doc_id"].filter(pa.array(kept)).to_pylist(), settings.ingest.validation_fraction),
        "tokens": tokenizer.encode(texts, _one_array(cleaned["doc_id"].filter(pa.array(kept)))),
    }
    schema = prepared(tokenizer.vocab_size)
    columns = [_spread(computed[field.name], at) if field.name in computed else cleaned[field.name] for field in schema]
    return pa.table([column.cast(field.type) for column, field in zip(columns, schema, strict=True)], schema=schema)


def splits(doc_ids: list[str], validation_fraction: float) -> pa.Array:
    """``train`` or ``validation`` for each id: a function of xxh3-64 of the id, so the same on every machine and in every version."""
    hashes = np.fromiter((xxhash.xxh3_64_intdigest(doc_id.encode()) for doc_id in doc_ids), np.uint64, len(doc_ids))
    # The upper 53 bits fit a float64 exactly.
    is_validation = (hashes >> np.uint64(11)).astype(np.float64) < validation_fraction * 2.0**53
    return pc.if_else(pa.array(is_validation), Split.VALIDATION, Split.TRAIN)


def _flags(values: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    flags: npt.NDArray[np.bool_] = values.to_numpy()
    return flags.astype(bool)


def _only(values: Any, wanted: Any) -> Any:
    """Null where not wanted. (pc.if_else has no kernel for lists of structs in chunked arrays of every version; take has.)"""
    flags = np.asarray(wanted).astype(bool)
    return values.take(pa.array(np.arange(len(flags)), mask=~flags))


def _spread(values: pa.Array, at: pa.Array) -> pa.Array:
    """``values.take(at)`` for ``positions``; of lists, the largest column, only the offsets are new."""
    if not isinstance(values, pa.LargeListArray):
        return values.take(at)
    is_there = at.is_valid().to_numpy(zero_copy_only=False)
    offsets = values.offsets.to_numpy()[np.concatenate([[0], np.cumsum(is_there)])]
    return pa.LargeListArray.from_arrays(pa.array(offsets), values.values, mask=pa.array(~is_there))


def _one_array(values: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], values.type)


def _fixed_size(rows: npt.NDArray[np.uint8], size: int) -> pa.Array:
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(size), len(rows), [None, pa.py_buffer(np.ascontiguousarray(rows))])
