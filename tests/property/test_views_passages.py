"""Passages of evaluation documents are found wherever they stand, and nothing else is."""

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.views.passages import SEED_TOKENS, find_passages, open_passages

MIN_TOKENS = 20


def longest_common_run(left: list[int], right: list[int]) -> int:
    best, row = 0, [0] * (len(right) + 1)
    for token in left:
        row = [0, *(row[index] + 1 if token == other else 0 for index, other in enumerate(right))]
        best = max(best, *row)
    return best


def needed(document: list[int]) -> int:
    return min(MIN_TOKENS, max(SEED_TOKENS, len(document) - 2))


@settings(max_examples=150, deadline=None)
@given(data=st.data(), alphabet=st.sampled_from([2, 5, 5_000]))
def test_a_run_is_found_iff_it_is_long_enough(data: st.DataObject, alphabet: int) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    evaluation = [rng.integers(0, alphabet, size).tolist() for size in data.draw(st.lists(st.integers(0, 60), min_size=1, max_size=4))]
    source = data.draw(st.sampled_from(evaluation))
    start = data.draw(st.integers(0, max(0, len(source) - 1)))
    piece = source[start : start + data.draw(st.integers(0, 60))]
    before, after = (rng.integers(0, alphabet, data.draw(st.integers(0, 40))).tolist() for _ in range(2))
    tokens = before + piece + after
    found = find_passages(np.array(tokens, np.uint16), open_passages(pa.array(evaluation, pa.large_list(pa.uint32()))), MIN_TOKENS)
    expected = any(longest_common_run(tokens, document) >= needed(document) for document in evaluation)
    if alphabet == 5_000:  # with few tokens a run may stand in several places, of which the first is followed
        assert bool(len(found.positions)) == expected
    for position, document, share in zip(*found, strict=True):
        length = round(float(share) * len(evaluation[document]))
        run = tokens[position : position + length]
        assert length >= needed(evaluation[document]) and longest_common_run(run, evaluation[document]) == length
    assert expected or not len(found.positions)


def test_a_whole_document_inside_another_one_is_a_share_of_one() -> None:
    passages = open_passages(pa.array([list(range(100, 130)), list(range(200, 215))], pa.large_list(pa.uint32())))
    tokens = np.array([7, *range(100, 130), 8, 9, *range(200, 215), 3], np.uint16)
    found = find_passages(tokens, passages, 50)
    assert (found.positions.tolist(), found.documents.tolist(), found.shares.tolist()) == ([1, 33], [0, 1], [1.0, 1.0])
