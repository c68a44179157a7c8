"""The work of a version's writer, cut into tasks that need no state: settle a block, write a shard, write a file of the audit trail.

The committer decides what is kept and where it stands (dataset/packing.py); tasks that have the tokens do the rest. Apart from
the file that it writes, each function is pure, so it may run again anywhere. The bytes are those that VersionWriter gives.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.dataset.names import documents_path, shard_path
from pipelines.dataset.packing import Run, spans_of, starts_of
from pipelines.dataset.shards import Tokens, pack, with_end_of_text, write_shard
from pipelines.dataset.statistics import Statistics
from pipelines.dataset.trail_writer import TrailWriter
from pipelines.dataset.writer import document_rows, outcome_columns, rows_by_split, span_columns
from pipelines.dedup.paragraphs import ParagraphCounts
from schemas.arrow import Outcome, Split
from schemas.errors import BlockChanged
from schemas.manifest import FileEntry, ShardEntry, TokenizerRef


class Layout(NamedTuple):
    """What all tasks of a version must know to write its files."""

    root: str
    version: int
    attempt: str
    tokenizer: TokenizerRef
    sequence_length: int


class Decision(NamedTuple):
    """What the committer decided about a prepared block."""

    outcomes: pa.Table
    """Columns outcome and reason: a retraction may have changed those of the block."""
    verdicts: pa.Table
    """As VersionWriter.add takes them."""
    runs: list[list[Run]]
    """Where the kept documents stand, for each split."""
    num_tokens: list[int]
    """Tokens of the kept documents of each split, end-of-text tokens included."""


class Packed(NamedTuple):
    """The kept documents of one split of a block."""

    flat: Tokens
    """Their tokens, each document followed by the end-of-text token."""
    lengths: npt.NDArray[np.int64]
    """Tokens of each document."""


class Piece(NamedTuple):
    """Documents of one block that stand in a shard, or rows of one block that stand in a file of the trail: first … stop - 1."""

    first: int
    stop: int
    start: int = 0
    """Token position in the shard at which the first document begins."""


Settled = tuple[pa.Table, Packed, Packed, ParagraphCounts]
"""Rows of DOCUMENTS; the kept documents of each split, in the order of Split; the lines of the kept documents."""


def settle(block: pa.Table, decision: Decision, layout: Layout) -> Settled:
    """A prepared block after the committer's decision. The counts are empty where ``dedup.boilerplate`` is off."""
    for name in decision.outcomes.column_names:
        block = block.set_column(block.schema.get_field_index(name), block.schema.field(name), decision.outcomes[name])
    outcomes = outcome_columns(block, decision.verdicts)
    rows = rows_by_split(block, outcomes["outcome"])
    tokens = block["tokens"].combine_chunks()
    packed = [Packed(*with_end_of_text(tokens, chosen, layout.tokenizer.eos_token_id)) for chosen in rows]
    _check_unchanged(decision, packed)
    spans = [
        spans_of(runs, part.lengths, layout.sequence_length, partial(shard_path, layout.version, split, attempt=layout.attempt))
        for split, runs, part in zip(Split, decision.runs, packed, strict=True)
    ]
    documents = document_rows(block, outcomes, span_columns(rows, spans, len(block)))
    kept = block["paragraphs"].filter(pc.equal(outcomes["outcome"], Outcome.KEPT))
    train, validation = packed
    return documents, train, validation, ParagraphCounts.of(kept.combine_chunks())


def _check_unchanged(decision: Decision, packed: Sequence[Packed]) -> None:
    """A block that was lost with its node is prepared once more. Raises BlockChanged if that gave other tokens: all places were computed before."""
    found = [int(part.lengths.sum()) for part in packed]
    if found != decision.num_tokens:
        raise BlockChanged(
            f"a block of documents was lost and prepared again, and has {sum(found):,} tokens now instead of {sum(decision.num_tokens):,}: a step of "
            "the pipeline does not give the same result twice (pii.ner, or a step that ran out of time). Nothing was committed; start again"
        )


def write_shard_of(layout: Layout, split: Split, number: int, pieces: Sequence[Piece], packed: Sequence[Packed]) -> ShardEntry:
    """Write a shard, durably, of pieces of blocks in commit order."""
    flats = [_tokens(piece, part) for piece, part in zip(pieces, packed, strict=True)]
    starts = [_starts(piece, part.lengths) for piece, part in zip(pieces, packed, strict=True)]
    batch = pack(flats, np.concatenate(starts), layout.sequence_length, layout.tokenizer)
    entry = write_shard(Path(layout.root), shard_path(layout.version, split, number, layout.attempt), batch)
    return ShardEntry(**entry.model_dump(), split=split, tokens=sum(map(len, flats)), documents=sum(map(len, starts)))


def write_trail_file(layout: Layout, number: int, pieces: Sequence[Piece], blocks: Sequence[pa.Table]) -> tuple[FileEntry, Statistics]:
    """Write one file of the audit trail, durably, of pieces of settled blocks in commit order; also the statistics of its rows."""
    statistics = Statistics(max_names=None)
    with TrailWriter(Path(layout.root), lambda _: documents_path(layout.version, layout.attempt, number)) as trail:
        for piece, block in zip(pieces, blocks, strict=True):
            rows = block.slice(piece.first, piece.stop - piece.first)
            statistics.add(rows)
            trail.add(rows)
        (entry,) = trail.finish()
    return entry, statistics


def _tokens(piece: Piece, packed: Packed) -> Tokens:
    ends = np.cumsum(packed.lengths)
    return packed.flat[ends[piece.first] - packed.lengths[piece.first] : ends[piece.stop - 1]]


def _starts(piece: Piece, lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    chosen = lengths[piece.first : piece.stop]
    return starts_of([Run(0, 0, len(chosen), piece.start)], chosen)
