"""What the committer gets of a block that stays where it was prepared: a bounded number of bytes for each document, whatever it holds."""

import pickle

import numpy as np
import pyarrow as pa
import pytest

from pipelines.dedup.generations import Generation
from pipelines.dedup.resolve import Resolver
from pipelines.ingest.block_counts import SIZE, counted
from pipelines.ingest.decisive import CANDIDATES, DOCUMENT_BYTES, decisive_of
from schemas.arrow import SEGMENT, Outcome, Split
from schemas.settings_dedup import DedupSettings
from tests.factories import prepared_block

BLOCK_BYTES = 10_000
"""What a block may have besides: its counts, and what pickling and Arrow add."""
FOUND_BYTES = 8
VOCAB = 300


def block_of(number: int, tokens: int, id_chars: int) -> pa.Table:
    """Documents of so many tokens with ids of so many characters; each timestamp is another."""
    block = prepared_block([np.zeros(tokens, np.int64)] * number, [Split.TRAIN] * number, vocab_size=VOCAB)
    columns = {
        "doc_id": pa.array([f"{index:0{id_chars}}" for index in range(number)], pa.string()),
        "timestamp_ms": pa.array(range(1_700_000_000_000, 1_700_000_000_000 + number), pa.int64()),
        "title": pa.array(["a title " * 20] * number, pa.string()),
    }
    for name, values in columns.items():
        block = block.set_column(block.schema.get_field_index(name), block.schema.field(name), values)
    return block.append_column(SIZE, pa.array([tokens] * number, pa.int64()))


def generation_with(block: pa.Table) -> Generation:
    """Of an index that holds the documents of the block."""
    resolver = Resolver(DedupSettings(), [])
    resolver.resolve(block.select(SEGMENT.names).cast(SEGMENT))
    generation = resolver.generation()
    assert generation is not None
    return generation


@pytest.mark.parametrize(("tokens", "id_chars"), [(0, 1), (60, 200)])
def test_a_document_takes_64_bytes_and_8_for_each_row_that_was_found_for_it(tokens: int, id_chars: int) -> None:
    block = block_of(10_000, tokens, id_chars)
    generation = generation_with(block)
    decisive, ids = decisive_of(block, generation)
    assert DOCUMENT_BYTES == 64
    assert decisive.candidates.schema.equals(CANDIDATES) and decisive.candidates.nbytes == 64 * len(block)
    assert all(field.type.bit_width % 8 == 0 for field in CANDIDATES)  # fixed-size columns only: others have no width
    assert decisive.looked_up is not None
    num_found = len(decisive.looked_up.near_rows)
    assert num_found >= generation.num_rows > 8_000
    assert len(pickle.dumps(decisive)) <= 64 * len(block) + FOUND_BYTES * num_found + BLOCK_BYTES
    assert ids.equals(block["doc_id"].combine_chunks())


def test_rows_that_are_not_kept_take_nothing_but_dead_ones_come_whole() -> None:
    block = block_of(3_000, 10, 50)
    outcomes = [str(Outcome.DEAD)] * 2 + [str(Outcome.REJECTED)] * 2_998
    rejected = block.set_column(block.schema.get_field_index("outcome"), block.schema.field("outcome"), pa.array(outcomes, pa.string()))
    decisive, ids = decisive_of(rejected, None)
    assert (len(decisive.candidates), decisive.num_rows, len(ids), decisive.acts_on_ids) == (0, 3_000, 0, False)
    assert decisive.dead is not None and len(decisive.dead) == 2
    assert len(pickle.dumps(decisive._replace(dead=None))) <= BLOCK_BYTES


def test_timestamps_that_stand_for_several_records_keep_their_number_and_quantiles() -> None:
    block = block_of(2_500, 1, 10)
    whole, thinned = counted(block), counted(block, most_timestamps=256)
    assert (thinned.size_bytes, thinned.newest_s) == (whole.size_bytes, whole.newest_s)
    assert len(thinned.timestamps_ms) == 256 and thinned.num_records.sum() == len(block)
    repeated = np.repeat(thinned.timestamps_ms, thinned.num_records)
    for share in (0.0, 0.5, 0.9, 1.0):
        assert abs(np.quantile(repeated, share) - np.quantile(whole.timestamps_ms, share)) <= len(block) / 256
