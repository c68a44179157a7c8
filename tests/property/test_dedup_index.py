"""The index answers as brute force does."""

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.dedup.base import ALIGNMENT, MAGIC, OLDER_MAGIC, Part, open_base, write_base
from pipelines.dedup.growing import GROWING_ROWS
from pipelines.dedup.ids import hash_ids
from pipelines.dedup.index import FingerprintIndex, merge_found
from pipelines.dedup.index_shards import Shard
from pipelines.dedup.kept import Columns
from pipelines.dedup.layout import Layout, choose_layout, layout_of_blocks
from pipelines.dedup.tables import build_tables, find_within
from schemas.errors import ShardCorrupt

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
    """Fingerprints that are at most seven bits away from one of three, repeats included."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    centre = draw(st.sampled_from([0, 2**64 - 1, 0x9E3779B97F4A7C15]))
    num_flips = rng.integers(0, 8, draw(st.integers(1, 40)))
    return np.array([centre ^ sum({1 << int(bit) for bit in rng.integers(0, 64, size)}) for size in num_flips], np.uint64)


@settings(max_examples=100, deadline=None)
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
    queries = stored[rng.integers(0, len(stored), 600)]  # enough to look at the tables region by region
    for _ in range(max_hamming + 1):
        queries = queries ^ (np.uint64(1) << rng.integers(0, 64, len(queries), dtype=np.uint64))
    index = built(stored, [400, 401, 600, GROWING_ROWS + 2_000, 19_000], max_hamming)  # the last two are beyond the first merge
    assert_equal(index.query(queries), brute_force(stored, queries, max_hamming))


def test_an_empty_index_answers_with_nothing() -> None:
    index = FingerprintIndex(3, np.empty(0, np.uint64), np.empty(0, np.uint32))
    assert_equal(index.query(np.array([0, 1], np.uint64)), (np.empty(0, np.int64), np.empty(0, np.int64)))


def test_merging_the_growing_tier_changes_no_answer() -> None:
    rng = np.random.default_rng(1)
    stored = rng.integers(0, 2**16, 30_000, dtype=np.uint64)
    index = FingerprintIndex(2, stored[:0], np.empty(0, np.uint32))
    for start in range(0, len(stored), 3_000):  # merges once
        rows = np.arange(start, start + 3_000, dtype=np.uint32)
        index.add(stored[start : start + 3_000], rows)
    assert_equal(index.query(stored[:50]), brute_force(stored, stored[:50], 2))


@st.composite
def layouts(draw: st.DrawFn) -> tuple[int, Layout]:
    """Any distance, any number of blocks that can serve it, keys for any number of fingerprints."""
    max_hamming = draw(st.integers(0, 6))
    num_blocks = draw(st.integers(max(1, (max_hamming + 1) // 2), max_hamming + 1))  # radius 2 at most: more is right too, and slow to test
    return max_hamming, layout_of_blocks(draw(st.sampled_from([0, 1_000, 100_000])), max_hamming, num_blocks)


@settings(max_examples=100, deadline=None)
@given(layouts(), clustered(), clustered(), st.integers(1, 5))
def test_every_layout_finds_every_pair_once_and_its_parts_share_them_out(
    chosen: tuple[int, Layout], stored: npt.NDArray[np.uint64], queries: npt.NDArray[np.uint64], num_parts: int
) -> None:
    max_hamming, layout = chosen
    given_rows = np.cumsum(1 + np.arange(len(stored), dtype=np.uint32) % 3, dtype=np.uint32)  # some are not compared with
    tables = build_tables(layout, stored, given_rows)
    wanted = np.arange(len(queries)) % 3 != 1
    parts = [find_within(tables._replace(part=np.array([part, num_parts])), max_hamming, queries, wanted) for part in range(num_parts)]
    positions, rows = brute_force(stored, queries, max_hamming)
    for found in (find_within(tables, max_hamming, queries, wanted), merge_found(parts, len(queries))):
        found_positions = np.repeat(np.arange(len(queries)), np.diff(found.starts))
        order = np.lexsort((found.rows, found_positions))
        assert_equal((found_positions[order], found.rows[order]), (positions[wanted[positions]], given_rows[rows[wanted[positions]]]))


def test_the_cost_of_a_query_grows_far_slower_than_the_index() -> None:
    for max_hamming in (3, 6):
        small, large = (choose_layout(num_rows, max_hamming).cost_ns(num_rows) for num_rows in (1_000_000, 50_000_000))
        assert large < 4.2 * small
        assert len(choose_layout(50_000_000, max_hamming).shifts) <= len(choose_layout(1_000_000, max_hamming).shifts)


def columns_part(columns: Columns, part: slice) -> Columns:
    return Columns(columns.fingerprint[part], columns.content_hash[part], columns.sketch[part])


def part_of(fingerprints: npt.NDArray[np.uint64], not_compared: list[int]) -> Part:
    num_rows = len(fingerprints)
    content_hash = np.stack([fingerprints, np.arange(num_rows, dtype=np.uint64) // 2], axis=1)
    ids = pa.array([f"id {row // 3}" for row in range(num_rows)], pa.large_string())
    return Part(Columns(fingerprints, content_hash, np.full((num_rows, 32), 7, np.uint8)), ids, np.array(not_compared, np.int64))


@pytest.mark.parametrize("max_hamming", [0, 3, 6])
def test_a_base_in_a_file_answers_as_brute_force_does_also_in_shards(tmp_path: Path, max_hamming: int) -> None:
    rng = np.random.default_rng(max_hamming)
    stored = rng.integers(0, 2**64, 3_000, dtype=np.uint64) & np.uint64(0xFFFF_0000_FFFF_00FF)
    parts = [part_of(stored[:1_000], [3, 999]), part_of(stored[1_000:], [0])]
    with (tmp_path / "base").open("x+b") as file:
        assert write_base(file, parts, max_hamming) == 3_000
    base = open_base(tmp_path / "base")
    queries = stored[::7] ^ np.uint64(1 << 33)
    wanted = np.ones(len(queries), bool)
    _, rows = brute_force(stored, queries, max_hamming)
    compared = ~np.isin(rows, [3, 999, 1_000])
    for found in (
        find_within(base.near, max_hamming, queries, wanted),
        merge_found([Shard(tmp_path / "base", max_hamming, part, 3).find(queries, wanted) for part in range(3)], len(queries)),
    ):
        order = np.lexsort((found.rows, np.repeat(np.arange(len(queries)), np.diff(found.starts))))
        assert np.array_equal(found.rows[order], rows[compared])
    assert base.rows_by_content(np.array([[stored[5], 2], [stored[5], 9]], np.uint64)).tolist() == [5, -1]
    assert sorted(base.rows_by_id(pa.array(["id 1", "no"], pa.string()))[1].tolist()) == [3, 4, 5, 1_003, 1_004, 1_005]


def test_the_same_documents_give_the_same_bytes_however_they_are_cut_into_parts(tmp_path: Path) -> None:
    stored = np.random.default_rng(0).integers(0, 2**64, 500, dtype=np.uint64)
    whole = part_of(stored, [4, 300])
    halves = [
        Part(columns_part(whole.columns, part), whole.doc_ids[part], np.array([rows], np.int64))
        for part, rows in ((slice(0, 200), 4), (slice(200, None), 100))
    ]
    for name, parts in (("whole", [whole]), ("halves", halves)):
        with (tmp_path / name).open("x+b") as file:
            write_base(file, parts, 3)
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "halves").read_bytes()


def rewritten_as_before(path: Path) -> None:
    """With whole values where tags are: the first format."""
    base, data = open_base(path), path.read_bytes()
    length = int.from_bytes(data[len(MAGIC) : len(MAGIC) + 8], "little")
    header = json.loads(data[len(MAGIC) + 8 : len(MAGIC) + 8 + length])
    hashes = {"near": base.columns.fingerprint, "exact": base.columns.content_hash[:, 1], "ids": hash_ids(base.doc_ids)}
    for name, values in hashes.items():
        del header["arrays"][f"{name}.tags"]
        in_bucket_order = values[getattr(base, name).rows]
        header["arrays"][f"{name}.values"] = {"dtype": "<u8", "shape": [len(in_bucket_order)], "offset": len(data)}
        data += in_bucket_order.tobytes()
    encoded = json.dumps(header).encode()
    start = OLDER_MAGIC + len(encoded).to_bytes(8, "little") + encoded
    path.write_bytes(start + data[len(start) :])


def test_a_base_of_the_first_format_answers_like_a_new_one(tmp_path: Path) -> None:
    stored = np.random.default_rng(0).integers(0, 2**64, 500, dtype=np.uint64)
    path, wanted, ids = tmp_path / "base", np.ones(500, bool), pa.array(["id 7", "no", "id 100"], pa.string())
    with path.open("x+b") as file:
        write_base(file, [part_of(stored, [4, 300])], 6)
    old, new = path.with_name("old"), open_base(path)
    old.write_bytes(path.read_bytes())
    rewritten_as_before(old)
    opened = open_base(old)
    for queries in (stored, stored ^ np.uint64(1 << 63 | 1 << 20)):
        for of_old, of_new in zip(find_within(opened.near, 6, queries, wanted), find_within(new.near, 6, queries, wanted), strict=True):
            assert np.array_equal(of_old, of_new)
        hashes = np.stack([queries, np.arange(500, dtype=np.uint64) // 2], axis=1)
        assert np.array_equal(opened.rows_by_content(hashes), new.rows_by_content(hashes))
    assert [found.tolist() for found in opened.rows_by_id(ids)] == [found.tolist() for found in new.rows_by_id(ids)]
    with (tmp_path / "next").open("x+b") as file:
        write_base(file, [opened.as_part()], 6)
    assert (tmp_path / "next").read_bytes() == path.read_bytes(), "the next compaction brings it up to date"


DAMAGES: list[Callable[[bytes], bytes]] = [
    lambda data: data[:100],
    lambda data: b"x" + data[1:],
    lambda data: data[:9_000],
    lambda data: data.replace(b'"max_hamming"', b'"min_hamming"'),
    lambda data: data.replace(b'"<u8"', b'"|O8"'),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_base_is_refused_with_its_name(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "base"
    with path.open("x+b") as file:
        write_base(file, [part_of(np.arange(100, dtype=np.uint64), [])], 3)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ShardCorrupt, match="base is not a duplicate index"):
        open_base(path)


def spread_out(path: Path, size_bytes: int) -> None:
    """Move the arrays of a base apart, with holes between them, so that the file is of this size and takes no more disk than before."""
    data = path.read_bytes()
    length = int.from_bytes(data[len(MAGIC) : len(MAGIC) + 8], "little")
    header = json.loads(data[len(MAGIC) + 8 : len(MAGIC) + 8 + length])
    places = header["arrays"].values()
    edges = [*(place["offset"] for place in places), len(data)]
    pieces = [data[start:end] for start, end in itertools.pairwise(edges)]
    for number, place in enumerate(places, 1):
        place["offset"] = size_bytes * number // (len(pieces) + 1) // ALIGNMENT * ALIGNMENT
    encoded = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(MAGIC + len(encoded).to_bytes(8, "little") + encoded)
        for place, piece in zip(places, pieces, strict=True):
            file.seek(place["offset"])
            file.write(piece)
        file.truncate(size_bytes)


def test_a_base_larger_than_memory_is_opened_and_queried(tmp_path: Path) -> None:
    stored = np.random.default_rng(0).integers(0, 2**64, 500, dtype=np.uint64)
    path, wanted = tmp_path / "base", np.ones(500, bool)
    with path.open("x+b") as file:
        write_base(file, [part_of(stored, [])], 6)
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    spread_out(path, 4 * memory_bytes)
    base = open_base(path)
    assert path.stat().st_size > 3 * memory_bytes
    assert find_within(base.near, 6, stored ^ np.uint64(1 << 40), wanted).rows.tolist() == list(range(500))
    assert base.rows_by_content(np.array([[stored[5], 2]], np.uint64)).tolist() == [5]
    assert base.rows_by_id(pa.array(["id 1"], pa.string()))[1].tolist() == [3, 4, 5]
    assert not any(array.flags.writeable for array in (*base.columns, base.near.tags, base.exact.rows, base.not_compared))
