"""Arrow schemas of everything tabular that crosses a process or a file boundary.

records    what the Kafka source emits: one row per offset, gaps included
prepared   what the pipeline's workers emit: one row per offset, with its verdict so far, fingerprint, sketch and token ids
documents  documents/*.parquet: one row per offset with its final outcome; the audit trail that `trace` reads
shard      shards/*.arrow: packed rows of S token ids, memory-mapped by training
segment    dedup/*.arrow: fingerprints of the kept documents of one dataset version
masks      masks/*.arrow: token spans that no version from this one on reads, because their documents were retracted
versions   log/checkpoints/*.arrow: what readers ask of all versions, one row per manifest
"""

from enum import StrEnum

import pyarrow as pa


class Outcome(StrEnum):
    """What became of an offset. Every offset has exactly one."""

    KEPT = "kept"
    REJECTED = "rejected"
    DUPLICATE = "duplicate"
    DEAD = "dead"
    RETRACTED = "retracted"
    CONTROL = "control"
    """No record to read: a transaction marker, an aborted record, or one that compaction removed."""


class Split(StrEnum):
    """Which shards a kept document goes to."""

    TRAIN = "train"
    VALIDATION = "validation"


HEADERS = pa.list_(pa.struct([pa.field("key", pa.string(), nullable=False), pa.field("value", pa.binary())]))
"""Kafka record headers: ordered, keys may repeat, values may be null."""

SKETCH_BYTES = 32
"""One-permutation MinHash sketch: 32 bins of 8 bits."""
PII_COUNTS = pa.list_(pa.struct([pa.field("type", pa.string(), nullable=False), pa.field("count", pa.int32(), nullable=False)]))
"""How many of each type of personal data and secret were found in a document; types that were not found are not listed."""
PARAGRAPHS = pa.large_list(pa.uint64())
"""Distinct hashes of a document's lines (pipelines/dedup/paragraphs.py); null where ``dedup.boilerplate`` is off."""
MAX_URL_CHARS = 2048
"""Of a document's URL the audit trail keeps so much (schemas/urls.py)."""
CONTENT_HASH_BYTES = 16
"""xxh3-128 of the normalized text, big-endian."""

RECORDS = pa.schema(
    [
        pa.field("topic", pa.string(), nullable=False),
        pa.field("partition", pa.int32(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("timestamp_ms", pa.int64()),
        pa.field("is_control", pa.bool_(), nullable=False),  # an offset without a record
        pa.field("key", pa.large_binary()),
        pa.field("value", pa.large_binary()),
        pa.field("headers", HEADERS),
    ]
)


def token_type(vocab_size: int) -> pa.DataType:
    """Smallest unsigned integer that holds every token id: uint16 up to 65,536 ids, else uint32."""
    return pa.uint16() if vocab_size <= 2**16 else pa.uint32()


def prepared(vocab_size: int) -> pa.Schema:
    """Rows that go from the workers to the committer. Text stays behind; only dead records carry their bytes along."""
    return pa.schema(
        [
            pa.field("topic", pa.string(), nullable=False),
            pa.field("partition", pa.int32(), nullable=False),
            pa.field("offset", pa.int64(), nullable=False),
            pa.field("timestamp_ms", pa.int64()),
            pa.field("doc_id", pa.string()),  # null for control and dead rows
            pa.field("outcome", pa.string(), nullable=False),  # "kept" here means: kept unless it is a duplicate
            pa.field("reason", pa.string()),  # rule name for rejected and dead rows
            pa.field("error", pa.string()),  # sentence for dead rows
            pa.field("replay_of", pa.string()),  # of a dead letter that was published again: topic/partition/offset of the record that died
            pa.field("outside_bytes", pa.int64()),  # that were read outside the record, where it refers to them
            pa.field("source", pa.string()),
            pa.field("domain", pa.string()),
            pa.field("url", pa.string()),
            pa.field("title", pa.string()),  # what the producer declares of a document that was not rejected (pipelines/steps/declared.py)
            pa.field("license", pa.string()),
            pa.field("created_at", pa.string()),
            pa.field("meta", pa.string()),
            pa.field("language", pa.string()),
            pa.field("num_chars", pa.int64()),
            pa.field("num_replaced", pa.int64()),
            pa.field("quality", pa.float32()),  # the classifier's probability of good; null without a model, as the next two
            pa.field("perplexity", pa.float32()),
            pa.field("informativeness", pa.float32()),
            pa.field("pii", PII_COUNTS),
            pa.field("fingerprint", pa.uint64()),
            pa.field("content_hash", pa.binary(CONTENT_HASH_BYTES)),
            pa.field("sketch", pa.binary(SKETCH_BYTES)),
            pa.field("split", pa.string()),
            pa.field("paragraphs", PARAGRAPHS),
            pa.field("tokens", pa.large_list(token_type(vocab_size))),  # without the end-of-text token
            pa.field("key", pa.large_binary()),  # of dead rows only, as are value and headers
            pa.field("value", pa.large_binary()),
            pa.field("headers", HEADERS),
        ]
    )


DOCUMENTS = pa.schema(
    [
        pa.field("doc_id", pa.string()),
        pa.field("topic", pa.string(), nullable=False),
        pa.field("partition", pa.int32(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("outcome", pa.string(), nullable=False),
        pa.field("reason", pa.string()),  # rule name; for duplicates "exact", "near" or "replayed"
        pa.field("duplicate_of", pa.string()),  # doc_id of the kept document
        pa.field("similarity", pa.float32()),  # estimated Jaccard with it; 1.0 for exact, none for replayed
        pa.field("fingerprint", pa.uint64()),
        pa.field("language", pa.string()),
        pa.field("num_tokens", pa.int64()),
        pa.field("shard", pa.string()),  # path of the shard in which the document begins, relative to the root
        pa.field("row", pa.int64()),  # row and position in the row where it begins
        pa.field("start", pa.int32()),
        pa.field("length", pa.int64()),  # tokens with the end-of-text token; runs on into the next rows
        pa.field("timestamp_ms", pa.int64()),  # of the record in Kafka
        pa.field("source", pa.string()),
        pa.field("domain", pa.string()),
        pa.field("num_chars", pa.int64()),  # of the normalized text
        pa.field("quality", pa.float32()),
        pa.field("perplexity", pa.float32()),
        pa.field("informativeness", pa.float32()),
        pa.field("pii", PII_COUNTS),
        pa.field("replay_of", pa.string()),  # topic/partition/offset of the record that died and was published again as this one
        pa.field("url", pa.string()),  # where the document came from, as its event says, without credentials (schemas/urls.py)
        pa.field("title", pa.string()),  # as the event says, bounded and redacted (pipelines/steps/declared.py); so are the next three
        pa.field("license", pa.string()),
        pa.field("created_at", pa.string()),
        pa.field("meta", pa.string()),  # a JSON object
        pa.field("num_replaced", pa.int64()),  # U+FFFD in the normalized text: characters that were lost in decoding, here or upstream
    ]
)


def shard(vocab_size: int, sequence_length: int) -> pa.Schema:
    """Packed rows: ``tokens`` is (rows, S); ``starts`` lists the positions in each row at which a document begins."""
    return pa.schema(
        [
            pa.field("tokens", pa.list_(pa.field("item", token_type(vocab_size), nullable=False), sequence_length), nullable=False),
            pa.field("starts", pa.list_(pa.uint32()), nullable=False),
        ]
    )


SEGMENT = pa.schema(
    [
        pa.field("fingerprint", pa.uint64(), nullable=False),
        pa.field("content_hash", pa.binary(CONTENT_HASH_BYTES), nullable=False),
        pa.field("sketch", pa.binary(SKETCH_BYTES), nullable=False),
        pa.field("doc_id", pa.string(), nullable=False),
    ]
)

MASKS = pa.schema(
    [
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("version", pa.int64(), nullable=False),  # that took the document in
        pa.field("ordinal", pa.int64(), nullable=False),  # its number among all kept documents, in commit order, from 0
        pa.field("shard", pa.string(), nullable=False),  # its span, as in DOCUMENTS
        pa.field("row", pa.int64(), nullable=False),
        pa.field("start", pa.int32(), nullable=False),
        pa.field("length", pa.int64(), nullable=False),
        pa.field("topic", pa.string(), nullable=False),  # where the retraction stood
        pa.field("partition", pa.int32(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
    ]
)
"""One row per document that a version's retractions took out, in commit order of the retractions."""

_FILE = [
    pa.field("path", pa.string(), nullable=False),
    pa.field("rows", pa.int64(), nullable=False),
    pa.field("size_bytes", pa.int64(), nullable=False),
    pa.field("sha256", pa.binary(32), nullable=False),
]
_SHARD = [
    *_FILE,
    *(pa.field(name, kind, nullable=False) for name, kind in (("split", pa.string()), ("tokens", pa.int64()), ("documents", pa.int64()))),
]
_TOPIC = [pa.field("topic", pa.string(), nullable=False), pa.field("num_partitions", pa.int32(), nullable=False)]
_LANGUAGE = [pa.field("language", pa.string(), nullable=False), pa.field("documents", pa.int64(), nullable=False)]
_MERGED = [*_SHARD, *(pa.field(name, pa.int64(), nullable=False) for name in ("first_row", "copies"))]
FILE_LISTS = {
    "shards": _SHARD,
    "documents": _FILE,
    "dedup_segments": _FILE,
    "dedup_base": _FILE,
    "merged": _MERGED,
    "boilerplate": _FILE,
    "masks": _FILE,
}
"""The lists of files in a manifest, and the fields of each file."""
VERSIONS = pa.schema(
    [
        pa.field("attempt", pa.uint64(), nullable=False),
        pa.field("created_at", pa.timestamp("us", "UTC"), nullable=False),
        pa.field("num_records", pa.int64(), nullable=False),
        pa.field("num_tokens", pa.int64(), nullable=False),
        pa.field("outcomes", pa.struct([pa.field(str(outcome), pa.int64(), nullable=False) for outcome in Outcome]), nullable=False),
        pa.field("languages", pa.list_(pa.struct(_LANGUAGE)), nullable=False),
        pa.field("topics", pa.list_(pa.struct(_TOPIC)), nullable=False),  # whose offsets the version lists
        pa.field("num_losses", pa.int64(), nullable=False),  # partitions of which it accepts a loss
        *(pa.field(name, pa.list_(pa.struct(fields)), nullable=False) for name, fields in FILE_LISTS.items()),
    ]
)
"""One row per version, in order; everything is the version's own, nothing is summed up."""
