"""The work of a version's writer, cut into tasks that need no state: settle a block, write a shard, write a file of the audit trail.

The committer decides what is kept and where it stands (dataset/packing.py); tasks that have the tokens do the rest. Apart from
the file that it writes, each function is pure, so it may run again anywhere. The bytes are those that VersionWriter gives.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.dataset.names import documents_path, shard_path
from pipelines.dataset.packing import Run, spans_of, starts_of
from pipelines.dataset.shards import Tokens, pack, with_end_of_text, write_shard
from pipelines.dataset.statistics import Statistics
from pipelines.dataset.trail_writer import TrailWriter
from pipelines.dataset.writer import document_rows, kept_rows, outcome_columns, rows_by_split, span_columns, write_segment
from pipelines.dedup.paragraphs import ParagraphCounts
from schemas.arrow import SEGMENT, Outcome, Split
from schemas.errors import BlockChanged
from schemas.manifest import FileEntry, ShardEntry, TokenizerRef


class Layout(NamedTuple):
    """What all tasks of a version must know to write its files."""

    root: str
    version: int
    attempt: str
    tokenizer: TokenizerRef
    sequence_length: int


CHANGED = pa.schema([pa.field("position", pa.int32()), pa.field("outcome", pa.string()), pa.field("reason", pa.string())])
"""Rows of a block that the committer decided otherwise than the steps did: a retraction may."""
DUPLICATES = pa.schema(
    [
        pa.field("position", pa.int32()),  # among the candidates of the block
        pa.field("reason", pa.string()),
        pa.field("similarity", pa.float32()),
        pa.field("duplicate_of", pa.string()),  # null where the id stands in a block of this version:
        pa.field("block", pa.int32()),  # number of its ids among those that the task is given
        pa.field("block_position", pa.int32()),  # among the candidates of that block
    ]
)


class Decision(NamedTuple):
    """What the committer decided about a prepared block: only what the block does not say itself."""

    changed: pa.Table | None
    """Rows of CHANGED, if there are any."""
    duplicates: pa.Table
    """Rows of DUPLICATES. The other candidates are kept."""
    runs: list[list[Run]]
    """Where the kept documents stand, for each split."""
    lengths: list[npt.NDArray[np.int32]]
    """Tokens of each kept document of each split, its end-of-text token included."""


class DecidedBlock(NamedTuple):
    """A block whose duplicates are known, and which stays where it was prepared."""

    source: Any
    """Reference to the block."""
    num_rows: int
    num_tokens: npt.NDArray[np.int32]
    """Of its candidates, without the end-of-text token; of one of the validation split -1 less that number."""
    duplicates: pa.Table
    """Rows of DUPLICATES."""
    names: list[Any]
    """References to the ids of the candidates of other blocks, which DUPLICATES counts."""
    changed: pa.Table | None = None


def changed_rows(before: pa.Table, after: pa.Table) -> pa.Table | None:
    """Rows of CHANGED of a block whose outcomes were others before."""
    rows = np.flatnonzero(pc.not_equal(before["outcome"], after["outcome"]).to_numpy())
    if not len(rows):
        return None
    return pa.table([pa.array(rows), *(after[name].take(pa.array(rows)) for name in CHANGED.names[1:])], names=CHANGED.names).cast(CHANGED)


def duplicates_named(verdicts: pa.Table) -> pa.Table:
    """Rows of DUPLICATES from the verdicts that VersionWriter takes."""
    rows = pa.array(np.flatnonzero(verdicts["duplicate_of"].is_valid().to_numpy()))
    found = verdicts.take(rows)
    nothing = pa.nulls(len(rows), pa.int32())
    return pa.table([rows, found["reason"], found["similarity"], found["duplicate_of"], nothing, nothing], names=DUPLICATES.names).cast(DUPLICATES)


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


def settle(block: pa.Table, decision: Decision, layout: Layout, names: Sequence[pa.Array] = ()) -> Settled:
    """A prepared block after the committer's decision; ``names``: ids of other blocks. The counts are empty where ``dedup.boilerplate`` is off."""
    if decision.changed is not None:
        block = _with_changes(block, decision.changed)
    outcomes = outcome_columns(block, _verdicts(decision.duplicates, len(kept_rows(block.select(["outcome"]))), names))
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


def _with_changes(block: pa.Table, changed: pa.Table) -> pa.Table:
    rows = changed["position"].to_numpy()
    is_changed = np.zeros(len(block), np.bool_)
    is_changed[rows] = True
    for name in CHANGED.names[1:]:
        values = pc.replace_with_mask(block[name].combine_chunks(), pa.array(is_changed), changed[name].combine_chunks())
        block = block.set_column(block.schema.get_field_index(name), block.schema.field(name), values)
    return block


def _verdicts(duplicates: pa.Table, num_candidates: int, names: Sequence[pa.Array]) -> pa.Table:
    """As VersionWriter takes them: one for each candidate."""
    of = duplicates["duplicate_of"].combine_chunks()
    if names:
        firsts = np.cumsum([0, *map(len, names)])
        places = pc.add(pa.array(firsts).take(duplicates["block"].combine_chunks()), duplicates["block_position"].combine_chunks())
        of = pc.coalesce(of, pa.concat_arrays(names).take(places))
    at = np.full(num_candidates, -1, np.int64)
    at[duplicates["position"].to_numpy()] = np.arange(len(duplicates))
    places = pa.array(at, mask=at < 0)
    found = {"duplicate_of": of, "reason": duplicates["reason"].combine_chunks(), "similarity": duplicates["similarity"].combine_chunks()}
    return pa.table({name: column.take(places) for name, column in found.items()})


def _check_unchanged(decision: Decision, packed: Sequence[Packed]) -> None:
    """A block that was lost with its node is prepared once more. Raises BlockChanged if that gave other tokens: all places were computed before."""
    for expected, part in zip(decision.lengths, packed, strict=True):
        if not np.array_equal(expected, part.lengths):
            raise BlockChanged(
                "a block of documents was lost and prepared again, and its documents have other numbers of tokens now "
                f"({len(part.lengths):,} documents with {part.lengths.sum():,} tokens; before {len(expected):,} with {expected.sum():,}): "
                "a step of the pipeline does not give the "
                "same result twice (pii.ner, or a step that ran out of time). Nothing was committed; start again"
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


def write_segment_of(layout: Layout, parts: Sequence[pa.Table]) -> list[FileEntry]:
    """Write the fingerprints of the version's kept documents, durably: rows of SEGMENT in commit order. No file if there are none."""
    return write_segment(Path(layout.root), layout.version, layout.attempt, pa.concat_tables([SEGMENT.empty_table(), *parts]))


def segment_rows(candidates: pa.Table, ids: pa.Array, positions: npt.NDArray[np.int64]) -> pa.Table:
    """Rows of SEGMENT for some candidates of a block."""
    rows = candidates.append_column("doc_id", ids).select(SEGMENT.names).take(pa.array(positions))
    return rows.cast(SEGMENT)


def _tokens(piece: Piece, packed: Packed) -> Tokens:
    ends = np.cumsum(packed.lengths)
    return packed.flat[ends[piece.first] - packed.lengths[piece.first] : ends[piece.stop - 1]]


def _starts(piece: Piece, lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    chosen = lengths[piece.first : piece.stop]
    return starts_of([Run(0, 0, len(chosen), piece.start)], chosen)
