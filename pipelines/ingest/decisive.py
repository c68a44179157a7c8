"""What the committer must see of a block to decide about it; the block itself may stay where it was prepared.

Of a document these are its id, fingerprint, content hash, sketch, number of tokens and where it stood: some 150 bytes, whatever its length. No
text and no token is among them. Dead rows come with their bytes, which go to the dead-letter topic.
"""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from schemas.arrow import Outcome

NUM_TOKENS = "num_tokens"
"""A column of its own: tokens of each document, without the end-of-text token; null where there is none."""
COLUMNS = [
    "topic",
    "partition",
    "offset",
    "timestamp_ms",
    "doc_id",
    "outcome",
    "reason",
    "replay_of",
    "outside_bytes",
    "fingerprint",
    "content_hash",
    "sketch",
    "split",
]
"""Columns of schemas.arrow.prepared."""


@dataclass(frozen=True)
class PreparedBlock:
    """A block on its way to the committer."""

    rows: pa.Table
    """All columns of schemas.arrow.prepared, or where ``source`` is given COLUMNS and NUM_TOKENS; and the sizes (job.SIZE)."""
    dead: pa.Table
    """Its dead rows, whole."""
    source: Any = None
    """Reference to the whole block."""

    def __len__(self) -> int:
        return len(self.rows)


def only_dead(block: pa.Table) -> pa.Table:
    """The dead rows of a prepared block."""
    return block.filter(pc.equal(block["outcome"], Outcome.DEAD))


def decisive_rows(block: pa.Table, *others: str) -> pa.Table:
    """COLUMNS, NUM_TOKENS and the named ``others`` of a prepared block."""
    lengths = pc.list_value_length(block["tokens"]).cast(pa.int64())
    return block.select([*COLUMNS, *others]).append_column(NUM_TOKENS, lengths)
