"""What the committer must see of a block to decide about it; the block itself may stay where it was prepared.

Of a document that may be kept these are DOCUMENT_BYTES bytes, whatever its length: fingerprint, content hash, sketch, a hash of its id, its number
of tokens. No text, no token and no id is among them. Besides, a block has its counts (block_counts.py: 4 kB at most) and what a generation of the
duplicate index holds of its documents (dedup/generations.py: 8 bytes for each row that was found). Dead rows come with their bytes, which go to
the dead-letter topic. Where two hashes of ids agree, the ids themselves are fetched and compared.

A retraction acts on ids, and a replay asks for one: a block that has some, or a document whose id has the hash of a retracted one, is decided
by its ``wide_rows``, ids among them, as the local runner decides every block.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.dedup.generations import Generation, LookedUp, look_up
from pipelines.dedup.ids import short_hashes
from pipelines.dedup.resolve import ID_HASH
from pipelines.ingest.block_counts import MOST_TIMESTAMPS, BlockCounts, counted
from schemas.arrow import CONTENT_HASH_BYTES, SKETCH_BYTES, Outcome, Split

NUM_TOKENS = "num_tokens"
"""Number of tokens, without the end-of-text token; of a document of the validation split -1 less that number."""
CANDIDATES = pa.schema(
    [
        pa.field("fingerprint", pa.uint64(), nullable=False),
        pa.field("content_hash", pa.binary(CONTENT_HASH_BYTES), nullable=False),
        pa.field("sketch", pa.binary(SKETCH_BYTES), nullable=False),
        pa.field(ID_HASH, pa.uint32(), nullable=False),
        pa.field(NUM_TOKENS, pa.int32(), nullable=False),
    ]
)
"""Documents that are kept unless they are duplicates."""
DOCUMENT_BYTES = sum(field.type.bit_width for field in CANDIDATES) // 8
WIDE_COLUMNS = [
    "topic",
    "partition",
    "offset",
    "timestamp_ms",
    "doc_id",
    "outcome",
    "reason",
    "replay_of",
    "fingerprint",
    "content_hash",
    "sketch",
]
"""Columns of schemas.arrow.prepared."""


class Decisive(NamedTuple):
    """What comes to the committer of a block that stays where it was prepared."""

    candidates: pa.Table
    """Rows of CANDIDATES."""
    num_rows: int
    """Of the block."""
    acts_on_ids: bool
    """Whether it has retractions or replays."""
    counts: BlockCounts
    dead: pa.Table | None
    """Its dead rows, if it has any."""
    looked_up: LookedUp | None


class MadeOf(NamedTuple):
    """References to what was made of a block."""

    decisive: Any
    ids: Any
    """Of its candidates."""


@dataclass(frozen=True)
class BlockApart:
    """A block that stays where it was prepared."""

    decisive: Decisive
    source: Any
    """Reference to the block."""
    made: MadeOf

    def __len__(self) -> int:
        return self.decisive.num_rows


def only_dead(block: pa.Table) -> pa.Table:
    """The dead rows of a prepared block."""
    return block.filter(pc.equal(block["outcome"], Outcome.DEAD))


def decisive_of(block: pa.Table, generation: Generation | None) -> tuple[Decisive, pa.Array]:
    """What decides about a prepared block with sizes, and the ids of its candidates."""
    rows = block.filter(pc.equal(block["outcome"], Outcome.KEPT))
    ids = rows["doc_id"].combine_chunks()
    lengths = pa.array(signed_lengths(rows).to_numpy())  # a bit for each of them is not needed, as none is null
    columns = {ID_HASH: pa.array(short_hashes(ids)), NUM_TOKENS: lengths}
    arrays = [columns[name] if name in columns else rows[name] for name in CANDIDATES.names]
    candidates = pa.table(arrays, names=CANDIDATES.names).cast(CANDIDATES).combine_chunks()
    acts_on_ids = bool(pc.any(pc.equal(block["outcome"], Outcome.RETRACTED)).as_py()) or rows["replay_of"].null_count < len(rows)
    dead = only_dead(block)
    looked_up = look_up(generation, candidates) if generation is not None and len(candidates) else None
    counts = counted(block, MOST_TIMESTAMPS)
    return Decisive(candidates, len(block), acts_on_ids, counts, dead if len(dead) else None, looked_up), ids


def wide_rows(block: pa.Table) -> pa.Table:
    """WIDE_COLUMNS and NUM_TOKENS of all rows of a prepared block."""
    return block.select(WIDE_COLUMNS).append_column(NUM_TOKENS, signed_lengths(block))


def signed_lengths(rows: pa.Table) -> pa.Array:
    """NUM_TOKENS of prepared rows; null where there are no tokens."""
    lengths = pc.list_value_length(rows["tokens"].combine_chunks()).cast(pa.int32())
    is_validation = pc.equal(rows["split"].combine_chunks(), Split.VALIDATION)
    return pc.if_else(is_validation, pc.subtract(pa.scalar(-1, pa.int32()), lengths), lengths)
