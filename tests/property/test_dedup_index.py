"""The index answers as brute force does."""

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.dedup.index import FingerprintIndex

Pairs = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


def brute_force(stored: npt.NDArray[np.uint64], queries: npt.NDArray[np.uint64], max_hamming: int) -> Pairs:
    positions, rows = np.nonzero(np.bitwise_count(queries[:, None] ^ stored[None, :]) <= max_hamming)
    return positions.astype(np.int64), rows.astype(np.int64)


def built(stored: npt.NDArray[np.uint64], cuts: list[int], max_hamming: int) -> FingerprintIndex:
    """An index whose base is the part before the first cut; the other parts are added one after the other."""
    edges = [0, *sorted(cuts), len(stored)]
    rows = np.arange(len(stored), dtype=np.uint32)
    index = FingerprintIndex(max_hamming, stored[: edges[1]], rows[: edges[1]])
    for start, end in itertools.pairwise(edges[1:]):
        index.add(stored[start:end], rows[start:end])
    return index


def assert_equal(answer: Pairs, expected: Pairs) -> None:
    assert np.array_equal(answer[0], expected[0])
    assert np.array_equal(answer[1], expected[1])


@st.composite
def clustered(draw: st.DrawFn) -> npt.NDArray[np.uint64]:
    """Fingerprints that are few bits away from each other, repeats included."""
    centre = draw(st.sampled_from([0, 2**64 - 1, 0x9E3779B97F4A7C15]))
    flips = draw(st.lists(st.lists(st.integers(0, 63), max_size=7), min_size=1, max_size=40))
    return np.array([centre ^ sum({1 << bit for bit in bits}) for bits in flips], np.uint64)


@settings(max_examples=120, deadline=None)
@given(clustered(), clustered(), st.integers(0, 6), st.lists(st.integers(0, 40), max_size=4))
def test_query_equals_brute_force_for_every_distance(
    stored: npt.NDArray[np.uint64], queries: npt.NDArray[np.uint64], max_hamming: int, cuts: list[int]
) -> None:
    index = built(stored, [min(cut, len(stored)) for cut in cuts], max_hamming)
    assert index.num_rows == len(stored)
    assert_equal(index.query(queries), brute_force(stored, queries, max_hamming))


@pytest.mark.parametrize("max_hamming", range(7))
def test_planted_neighbours_among_thousands_are_all_found_and_nothing_else(max_hamming: int) -> None:
    rng = np.random.default_rng(max_hamming)
    stored = rng.integers(0, 2**64, 20_000, dtype=np.uint64)
    stored[::7] &= np.uint64(0xFFFF_0000_0000_00FF)  # crowded buckets
    queries = stored[rng.integers(0, len(stored), 300)]
    for _ in range(max_hamming + 1):
        queries = queries ^ (np.uint64(1) << rng.integers(0, 64, len(queries), dtype=np.uint64))
    index = built(stored, [4_000, 4_001, 15_000, 19_000], max_hamming)  # 15,000 is beyond the first merge
    assert_equal(index.query(queries), brute_force(stored, queries, max_hamming))


def test_an_empty_index_answers_with_nothing() -> None:
    index = FingerprintIndex(3, np.empty(0, np.uint64), np.empty(0, np.uint32))
    assert_equal(index.query(np.array([0, 1], np.uint64)), (np.empty(0, np.int64), np.empty(0, np.int64)))


def test_merging_the_growing_tier_changes_no_answer() -> None:
    rng = np.random.default_rng(1)
    stored = rng.integers(0, 2**16, 30_000, dtype=np.uint64)
    index = FingerprintIndex(2, stored[:0], np.empty(0, np.uint32))
    for start in range(0, len(stored), 3_000):
        rows = np.arange(start, start + 3_000, dtype=np.uint32)
        index.add(stored[start : start + 3_000], rows)
    assert_equal(index.query(stored[:50]), brute_force(stored, stored[:50], 2))
