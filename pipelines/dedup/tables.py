"""Immutable tables over fingerprints, in memory or mapped from a file: exact answers to "what lies within Hamming distance k?".

One table per block of the layout (layout.py). A table is the fingerprints and their rows in the order of their buckets, so that a bucket is one
contiguous scan, and the place where each bucket starts. A pair that several tables would find is reported by the first whose block it
matches within the radius, so nothing is reported twice.

Cost: building is a counting sort per table, some 20 ns per fingerprint. A batch of queries walks through each table once: region after
region of its buckets (the keys' first bits), and in each the queries that have probes there. So what the probes of several queries touch is
in the caches and its pages are mapped, whatever the size of the table: the more queries are asked at once, the fewer misses each has. Within
a region memory is asked for a group of buckets before they are compared.
"""

from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import types
from numba.extending import intrinsic

from pipelines.dedup.layout import Layout, probe_flips

PROBES_AT_ONCE = 512
MAX_REGION_BITS = 12
MIN_QUERIES_BITS = 5
"""A batch of 2^b queries divides a table into 2^(b - 5) regions: enough of them for caches, few enough for each to have its queries."""


class Tables(NamedTuple):
    """All that a query kernel reads. m tables, p probes, n stored fingerprints, T buckets of a table."""

    shifts: npt.NDArray[np.uint64]  # [m] lowest bit of each block
    masks: npt.NDArray[np.uint64]  # [m] the block's bits, shifted down
    radii: npt.NDArray[np.int64]  # [m]
    key_masks: npt.NDArray[np.uint64]  # [m] the key's bits, the lowest of the block
    probe_tables: npt.NDArray[np.int64]  # [p] which table
    probe_flips: npt.NDArray[np.uint64]  # [p] what to flip in the key
    first_starts: npt.NDArray[np.int64]  # [m + 1] where in ``starts`` each table's T + 1 entries begin
    starts: npt.NDArray[np.uint32]  # [sum of (T + 1)] where each bucket starts in its table
    fingerprints: npt.NDArray[np.uint64]  # [m * n] table after table, in bucket order
    rows: npt.NDArray[np.uint32]  # [m * n] row numbers in bucket order, ascending in each bucket
    num_rows: int  # n
    part: npt.NDArray[np.int64]  # [2] (i, n): only probes of the i-th of n equal ranges of each table's buckets


class Found(NamedTuple):
    """Rows found by a batch of queries: those of query q are ``rows[starts[q] : starts[q + 1]]``, in no particular order."""

    starts: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]


def tables_over(layout: Layout, starts: npt.NDArray[np.uint32], fingerprints: npt.NDArray[np.uint64], rows: npt.NDArray[np.uint32]) -> Tables:
    """Tables over given arrays, sorted or still to be filled."""
    flips = [probe_flips(bits, radius) for bits, radius in zip(layout.key_bits, layout.radii, strict=True)]
    return Tables(
        shifts=np.array(layout.shifts, np.uint64),
        masks=np.array([(1 << width) - 1 for width in layout.widths], np.uint64),
        radii=np.array(layout.radii, np.int64),
        key_masks=np.array([(1 << bits) - 1 for bits in layout.key_bits], np.uint64),
        probe_tables=np.repeat(np.arange(len(flips)), [len(part) for part in flips]),
        probe_flips=np.concatenate(flips),
        first_starts=np.cumsum([0, *((1 << bits) + 1 for bits in layout.key_bits)]),
        starts=starts,
        fingerprints=fingerprints,
        rows=rows,
        num_rows=len(rows) // len(flips),
        part=np.array([0, 1]),
    )


def num_starts(layout: Layout) -> int:
    """Length of ``Tables.starts``."""
    return sum((1 << bits) + 1 for bits in layout.key_bits)


def build_tables(layout: Layout, fingerprints: npt.NDArray[np.uint64], rows: npt.NDArray[np.uint32]) -> Tables:
    """Tables in memory. ``rows`` must ascend; they are what queries return."""
    num_entries = len(layout.shifts) * len(rows)
    tables = tables_over(layout, np.zeros(num_starts(layout), np.uint32), np.empty(num_entries, np.uint64), np.empty(num_entries, np.uint32))
    for table in range(len(layout.shifts)):
        fill_table(tables, table, fingerprints, rows)
    return tables


def fill_table(tables: Tables, table: int, fingerprints: npt.NDArray[np.uint64], rows: npt.NDArray[np.uint32]) -> None:
    """Sort the fingerprints into the buckets of one table, whose ``starts`` are zero."""
    starts = tables.starts[tables.first_starts[table] : tables.first_starts[table + 1]]
    entries = slice(table * tables.num_rows, (table + 1) * tables.num_rows)
    sort_into_buckets((fingerprints, rows), tables.shifts[table], starts, (tables.fingerprints[entries], tables.rows[entries]))


def stored(tables: Tables) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint32]]:
    """Everything in the tables, in row order."""
    fingerprints, rows = tables.fingerprints[: tables.num_rows], tables.rows[: tables.num_rows]
    order = np.argsort(rows)
    return fingerprints[order], rows[order]


def _generate_popcount(typing_context: Any, value: Any) -> Any:  # noqa: ARG001
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


def _generate_prefetch(typing_context: Any, array: Any, index: Any) -> Any:  # noqa: ARG001
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        struct = context.make_array(signature.args[0])(context, builder, arguments[0])
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        address = builder.bitcast(builder.gep(struct.data, [arguments[1]]), pointer)
        function = builder.module.declare_intrinsic("llvm.prefetch", [pointer], ir.FunctionType(ir.VoidType(), [pointer, number, number, number]))
        builder.call(function, [address, number(0), number(3), number(1)])  # for reading, into all caches, data
        return context.get_dummy_value()

    return types.void(array, index), generate


_popcount: Any = intrinsic(_generate_popcount)
"""Bits set in a uint64: one instruction."""
prefetch: Any = intrinsic(_generate_prefetch)
"""Ask memory for the cache line of ``array[index]`` of a one-dimensional array, without waiting for it."""


@numba.njit(cache=True, nogil=True)
def hamming(left, right):  # type: ignore[no-untyped-def]
    """Bits in which two uint64 differ."""
    return np.int64(_popcount(left ^ right))


@numba.njit(cache=True, nogil=True)
def sort_into_buckets(source, shift, starts, target):  # type: ignore[no-untyped-def]
    """Counting sort of (values, rows) by the low bits of ``value >> shift``; stable. ``starts`` is zero and has one entry more than buckets."""
    values, rows = source
    sorted_values, sorted_rows = target
    key_mask = np.uint64(len(starts) - 2)
    for value in values:
        starts[((value >> shift) & key_mask) + np.uint64(1)] += np.uint32(1)
    for bucket in range(1, len(starts)):
        starts[bucket] += starts[bucket - 1]
    cursor = starts.copy()
    for index in range(len(values)):
        key = (values[index] >> shift) & key_mask
        sorted_values[cursor[key]] = values[index]
        sorted_rows[cursor[key]] = rows[index]
        cursor[key] += np.uint32(1)


@numba.njit(cache=True, nogil=True)
def is_reported_by(tables, table, difference):  # type: ignore[no-untyped-def]
    """Whether ``table`` is the first one whose block this XOR of two fingerprints matches within the radius."""
    for earlier in range(table):
        if hamming((difference >> tables.shifts[earlier]) & tables.masks[earlier], np.uint64(0)) <= tables.radii[earlier]:
            return False
    return hamming((difference >> tables.shifts[table]) & tables.masks[table], np.uint64(0)) <= tables.radii[table]


@numba.njit(cache=True, nogil=True)
def with_room(found, count):  # type: ignore[no-untyped-def]
    """The array, or a copy of twice the length if it is full."""
    if count < len(found):
        return found
    grown = np.empty(len(found) * 2, found.dtype)
    grown[:count] = found[:count]
    return grown


def find_within(tables: Tables, max_hamming: int, queries: npt.NDArray[np.uint64], wanted: npt.NDArray[np.bool_]) -> Found:
    """Found rows of every query; those that are not ``wanted`` find nothing."""
    asked = np.flatnonzero(wanted)
    hits, count = np.empty(64, np.uint64), 0
    for table in range(len(tables.radii)):
        key_bits, radius = int(tables.key_masks[table]).bit_length(), int(tables.radii[table])
        region_bits = max(0, min(key_bits, MAX_REGION_BITS, len(asked).bit_length() - MIN_QUERIES_BITS))
        flips = probe_flips(region_bits, radius), probe_flips(key_bits - region_bits, radius)
        hits, count = _find_in_table(tables, table, max_hamming, (queries, asked, region_bits), flips, (hits, count))
    return Found(*_by_query(hits[:count], len(queries)))


@numba.njit(cache=True, nogil=True)
def _find_in_table(tables, table, max_hamming, batch, flips, so_far):  # type: ignore[no-untyped-def]
    """Append what one table reports: region after region, in each the queries whose keys are few flips away from it."""
    queries, asked, region_bits = batch
    region_flips, low_flips = flips
    hits, count = so_far
    shift, key_mask, radius = tables.shifts[table], tables.key_masks[table], tables.radii[table]
    starts = tables.starts[tables.first_starts[table] : tables.first_starts[table + 1]]
    fingerprints = tables.fingerprints[table * tables.num_rows : (table + 1) * tables.num_rows]
    part, num_parts = np.uint64(tables.part[0]), np.uint64(tables.part[1])
    low_bits = np.uint64(hamming(key_mask, np.uint64(0)) - region_bits)
    low_mask = (np.uint64(1) << low_bits) - np.uint64(1)
    edges, ordered = _by_region(queries, asked, shift + low_bits, region_bits)
    num_low = _num_patterns(low_flips, radius)
    probes, num_probes = np.empty((PROBES_AT_ONCE + len(low_flips), 3), np.uint64), 0
    for region in range(np.uint64(1) << np.uint64(region_bits)):
        for region_flip in region_flips:
            source = region ^ region_flip
            num_flips = num_low[radius - hamming(region_flip, np.uint64(0))]
            for place in range(edges[source], edges[source + np.uint64(1)]):
                key = region << low_bits | (queries[ordered[place]] >> shift & low_mask)
                for flip in low_flips[:num_flips]:
                    bucket = key ^ flip
                    start, end = np.uint64(starts[bucket]), np.uint64(starts[bucket + np.uint64(1)])
                    if start < end and (num_parts == np.uint64(1) or bucket * num_parts // (key_mask + np.uint64(1)) == part):
                        prefetch(fingerprints, np.int64(start))
                        probes[num_probes, 0], probes[num_probes, 1], probes[num_probes, 2] = ordered[place], start, end
                        num_probes += 1
                if num_probes >= PROBES_AT_ONCE:
                    hits, count = _scan(tables, table, max_hamming, queries, probes[:num_probes], (hits, count))
                    num_probes = 0
    return _scan(tables, table, max_hamming, queries, probes[:num_probes], (hits, count))


@numba.njit(cache=True, nogil=True)
def _by_region(queries, asked, shift, region_bits):  # type: ignore[no-untyped-def]
    """The asked queries in the order of their keys' first bits, and where those of each region start."""
    mask = (np.uint64(1) << np.uint64(region_bits)) - np.uint64(1)
    edges = np.zeros((1 << region_bits) + 1, np.int64)
    for query in asked:
        edges[(queries[query] >> shift & mask) + np.uint64(1)] += 1
    edges = np.cumsum(edges)
    cursor, ordered = edges.copy(), np.empty(len(asked), np.int64)
    for query in asked:
        region = queries[query] >> shift & mask
        ordered[cursor[region]] = query
        cursor[region] += 1
    return edges, ordered


@numba.njit(cache=True, nogil=True)
def _num_patterns(flips, radius):  # type: ignore[no-untyped-def]
    """How many patterns flip at most 0, 1, … ``radius`` bits."""
    counts = np.zeros(radius + 1, np.int64)
    for flip in flips:
        counts[hamming(flip, np.uint64(0))] += 1
    return np.cumsum(counts)


@numba.njit(cache=True, nogil=True)
def _scan(tables, table, max_hamming, queries, probes, so_far):  # type: ignore[no-untyped-def]
    """Append query << 32 | row for what the probed buckets hold within the distance."""
    hits, count = so_far
    fingerprints = tables.fingerprints[table * tables.num_rows : (table + 1) * tables.num_rows]
    for probe in range(len(probes)):
        query, start, end = probes[probe, 0], probes[probe, 1], probes[probe, 2]
        if _num_near(fingerprints, start, end, queries[query], max_hamming):
            for entry in range(start, end):
                difference = fingerprints[entry] ^ queries[query]
                if hamming(difference, np.uint64(0)) <= max_hamming and is_reported_by(tables, table, difference):
                    hits = with_room(hits, count)
                    hits[count] = query << np.uint64(32) | np.uint64(tables.rows[table * tables.num_rows + np.int64(entry)])
                    count += 1
    return hits, count


@numba.njit(cache=True, nogil=True)
def _num_near(fingerprints, start, end, fingerprint, max_hamming):  # type: ignore[no-untyped-def]
    """Entries of a bucket within the distance. Counting all of them, without a branch, is what the compiler turns into vector instructions."""
    count = 0
    for entry in range(start, end):
        count += hamming(fingerprints[entry], fingerprint) <= max_hamming
    return count


@numba.njit(cache=True, nogil=True)
def _by_query(hits, num_queries):  # type: ignore[no-untyped-def]
    """(starts, rows) as in Found: a counting sort."""
    starts = np.zeros(num_queries + 1, np.int64)
    for hit in hits:
        starts[(hit >> np.uint64(32)) + np.uint64(1)] += 1
    starts = np.cumsum(starts)
    cursor, rows = starts.copy(), np.empty(len(hits), np.int64)
    for hit in hits:
        query = hit >> np.uint64(32)
        rows[cursor[query]] = hit & np.uint64(0xFFFFFFFF)
        cursor[query] += 1
    return starts, rows


@numba.njit(cache=True, nogil=True)
def count_equal(tables, queries):  # type: ignore[no-untyped-def]
    """How many stored fingerprints equal each query: one bucket of the first table."""
    counts = np.zeros(len(queries), np.int64)
    for query in range(len(queries)):
        bucket = tables.first_starts[0] + np.int64((queries[query] >> tables.shifts[0]) & tables.key_masks[0])
        for entry in range(tables.starts[bucket], tables.starts[bucket + 1]):
            counts[query] += tables.fingerprints[entry] == queries[query]
    return counts
