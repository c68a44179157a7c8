"""Packing loses nothing, adds nothing but padding at the end, and its bytes depend on nothing but the tokens."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.dataset.packing import Spans
from pipelines.dataset.shards import ShardWriter, joined, open_shard, pack, read_batch, shard_sha256, with_end_of_text
from schemas.arrow import Split, token_type
from schemas.manifest import ShardEntry
from tests.factories import EOS, PAD, tokenizer_ref

documents_strategy = st.lists(st.lists(st.integers(2, 299), max_size=40), max_size=30)
Documents = list[list[int]]


def write(
    root: Path, blocks: list[Documents], *, sequence_length: int, shard_rows: int, vocab_size: int = 300
) -> tuple[list[ShardEntry], list[Spans]]:
    writer = ShardWriter(
        root,
        Split.TRAIN,
        tokenizer_ref(vocab_size),
        sequence_length=sequence_length,
        shard_rows=shard_rows,
        path_of=lambda number: f"shards/{number}.arrow",
    )
    spans = [writer.add(pa.array(block, pa.large_list(token_type(vocab_size))), np.arange(len(block))) for block in blocks]
    return writer.finish(), spans


@settings(max_examples=60, deadline=None)
@given(blocks=st.lists(documents_strategy, max_size=4), sequence_length=st.integers(8, 20), shard_rows=st.integers(1, 12))
def test_every_span_holds_its_document_and_everything_else_is_padding(
    tmp_path_factory: pytest.TempPathFactory, blocks: list[Documents], sequence_length: int, shard_rows: int
) -> None:
    root = tmp_path_factory.mktemp("packing")
    entries, spans = write(root, blocks, sequence_length=sequence_length, shard_rows=shard_rows)
    rows = {entry.path: open_shard(root / entry.path) for entry in entries}
    for block, span in zip(blocks, spans, strict=True):
        for index, document in enumerate(block):
            start = int(span.row[index]) * sequence_length + int(span.start[index])
            taken = rows[span.shard[index]].reshape(-1)[start : start + int(span.length[index])]
            assert taken.tolist() == [*document, EOS]
    for entry in entries:
        flat = rows[entry.path].reshape(-1)
        assert entry.tokens <= len(flat) < entry.tokens + sequence_length
        assert (flat[entry.tokens :] == PAD).all()
        assert entry.rows <= shard_rows or entry.documents == 1
    assert sum(entry.tokens for entry in entries) == sum(len(document) + 1 for block in blocks for document in block)
    assert sum(entry.documents for entry in entries) == sum(map(len, blocks))


@settings(max_examples=30, deadline=None)
@given(documents=documents_strategy, cut=st.integers(0, 30), sequence_length=st.integers(8, 20), shard_rows=st.integers(1, 12))
def test_bytes_do_not_depend_on_how_documents_come_in_blocks(
    tmp_path_factory: pytest.TempPathFactory, documents: Documents, cut: int, sequence_length: int, shard_rows: int
) -> None:
    shapes = {"sequence_length": sequence_length, "shard_rows": shard_rows}
    whole, _ = write(tmp_path_factory.mktemp("whole"), [documents], **shapes)
    parts, _ = write(tmp_path_factory.mktemp("parts"), [documents[:cut], documents[cut:]], **shapes)
    assert [entry.sha256 for entry in whole] == [entry.sha256 for entry in parts]


@settings(max_examples=30, deadline=None)
@given(documents=documents_strategy.filter(bool), sequence_length=st.integers(8, 20))
def test_starts_column_lists_where_documents_begin(tmp_path_factory: pytest.TempPathFactory, documents: Documents, sequence_length: int) -> None:
    root = tmp_path_factory.mktemp("starts")
    (entry,), (span,) = write(root, [documents], sequence_length=sequence_length, shard_rows=10_000)
    starts = read_batch(root / entry.path)["starts"].to_pylist()
    listed = [(row, start) for row, positions in enumerate(starts) for start in positions]
    assert listed == list(zip(span.row.tolist(), span.start.tolist(), strict=True))


def test_padding_is_under_one_percent_of_a_shard(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    documents = [rng.integers(2, 300, size=rng.integers(0, 900)).tolist() for _ in range(150)]
    entries, _ = write(tmp_path, [documents], sequence_length=256, shard_rows=64)
    assert len(entries) > 2
    positions = sum(entry.rows * 256 for entry in entries)
    assert 1 - sum(entry.tokens for entry in entries) / positions < 0.01


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_536, np.uint16), (65_537, np.uint32)])
def test_token_ids_take_two_bytes_while_they_fit(tmp_path: Path, vocab_size: int, dtype: type[np.generic]) -> None:
    (entry,), _ = write(tmp_path, [[[vocab_size - 1]]], sequence_length=8, shard_rows=4, vocab_size=vocab_size)
    rows = open_shard(tmp_path / entry.path)
    assert rows.dtype == dtype
    assert rows[0, 0] == vocab_size - 1


def test_a_mapped_shard_is_read_only_and_not_copied(tmp_path: Path) -> None:
    (entry,), _ = write(tmp_path, [[[5] * 100]], sequence_length=8, shard_rows=64)
    rows = open_shard(tmp_path / entry.path)
    assert not rows.flags.owndata
    assert not rows.flags.writeable


def test_documents_without_tokens_still_end_with_end_of_text() -> None:
    flat, lengths = with_end_of_text(pa.array([[], [7], []], pa.large_list(pa.uint16())), np.arange(3), EOS)
    assert (flat.tolist(), lengths.tolist()) == ([EOS, 7, EOS, EOS], [1, 2, 1])


def test_only_the_chosen_rows_are_taken_also_of_a_slice_with_nulls() -> None:
    tokens = pa.array([[9], [1, 2], None, [3], [4]], pa.large_list(pa.uint16())).slice(1)
    flat, lengths = with_end_of_text(tokens, np.array([0, 2]), EOS)
    assert (flat.tolist(), lengths.tolist()) == ([1, 2, EOS, 3, EOS], [3, 2])


@settings(max_examples=50, deadline=None)
@given(shards=st.lists(documents_strategy.filter(bool), min_size=1, max_size=5))
def test_rows_that_were_joined_give_the_bytes_of_their_own_files_again(tmp_path_factory: pytest.TempPathFactory, shards: list[Documents]) -> None:
    root = tmp_path_factory.mktemp("joined")
    parts = [write(root / str(number), [documents], sequence_length=8, shard_rows=100_000)[0][0] for number, documents in enumerate(shards)]
    batches = [read_batch(root / str(number) / part.path) for number, part in enumerate(parts)]
    whole, at = joined(iter(batches), sum(part.rows for part in parts)), 0
    assert whole.to_pylist() == [row for batch in batches for row in batch.to_pylist()]
    for part in parts:
        assert shard_sha256(whole.slice(at, part.rows)) == part.sha256
        at += part.rows


@pytest.mark.parametrize(
    ("vocab_size", "sha256"),
    [
        (300, "97971d1a972b8e2aa276ea5ebddf63fe9aec24a60855cabc565f90ef52bd6104"),
        (70_000, "c7c43e0e7541c43b36a777671f7e38305f56f8afe320ff15a1ebf0c0dbafa324"),
    ],
)
def test_the_bytes_of_a_shard_do_not_change_with_the_release_of_arrow(vocab_size: int, sha256: str) -> None:
    """Shards that a merge stands for are checked by making their bytes again: another release that wrote other bytes would call them all damaged."""
    tokens = np.arange(20, dtype=token_type(vocab_size).to_pandas_dtype())
    assert shard_sha256(pack([tokens], np.array([0, 7, 16]), 8, tokenizer_ref(vocab_size))) == sha256
