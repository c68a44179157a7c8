"""Immutable tables over fingerprints, in memory or mapped from a file: exact answers to "what lies within Hamming distance k?".

One table per block of the layout (layout.py). A table is, in the order of its buckets, the tags and the rows of the fingerprints, and the
place where each bucket starts, so that a bucket is one contiguous scan. A tag is the 32 bits above the key. A probe knows in how many bits the
key differs, so tags may differ in what is left of k: few that are no answer pass (one in 18,000 at k = 6 and one bit of the key), and these are
compared as a whole. Tags are half of a fingerprint and go through vector instructions twice as fast.

A pair that several tables would find is reported by the first whose block it matches within the radius, so nothing is reported twice.

Cost: building is a counting sort per table, some 20 ns per fingerprint; memory is 8 bytes per fingerprint and table. A batch of queries walks
through each table once: region after region of its buckets (the keys' first bits), and in each the queries that have probes there. So what
the probes of several queries touch is in the caches and its pages are mapped, whatever the size of the table: the more queries are asked at
once, the fewer misses each has. Within a region memory is asked for a group of buckets before they are compared.
"""

from typing import Any, NamedTuple, TypeVar

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import types
from numba.extending import intrinsic

from pipelines.dedup.layout import Layout, probe_flips

_Number = TypeVar("_Number", bound=np.generic)
PROBES_AT_ONCE = 512
VERIFIED_AHEAD = 16
TAG_BITS = 32
STEP = 32
"""Tags that vector instructions take at once. A scan goes on to the end of the last step: what follows a bucket costs less than single tags."""
MAX_REGION_BITS = 12
MIN_QUERIES_BITS = 5
"""A batch of 2^b queries divides a table into 2^(b - 5) regions: enough of them for caches, few enough for each to have its queries."""


class Tables(NamedTuple):
    """All that a query kernel reads. m tables, p probes, n stored fingerprints, T buckets of a table.

    What queries are answered from is read-only, in memory as in a mapped file: to Numba these are two types, and one is enough to compile.
    """

    shifts: npt.NDArray[np.uint64]  # [m] lowest bit of each block
    masks: npt.NDArray[np.uint64]  # [m] the block's bits, shifted down
    radii: npt.NDArray[np.int64]  # [m]
    key_masks: npt.NDArray[np.uint64]  # [m] the key's bits, the lowest of the block
    probe_tables: npt.NDArray[np.int64]  # [p] which table
    probe_flips: npt.NDArray[np.uint64]  # [p] what to flip in the key
    first_starts: npt.NDArray[np.int64]  # [m + 1] where in ``starts`` each table's T + 1 entries begin
    starts: npt.NDArray[np.uint32]  # [sum of (T + 1)] where each bucket starts in its table
    tags: npt.NDArray[np.uint32]  # [m * n] table after table, in bucket order
    rows: npt.NDArray[np.uint32]  # [m * n] row numbers in bucket order, ascending in each bucket
    num_rows: int  # n
    fingerprints: npt.NDArray[np.uint64]  # the whole one of row r at r - first_row; [0]: who asks has them and compares
    first_row: int
    part: npt.NDArray[np.int64]  # [2] (i, n): only probes of the i-th of n equal ranges of each table's buckets


class Found(NamedTuple):
    """Rows found by a batch of queries: those of query q are ``rows[starts[q] : starts[q + 1]]``, in no particular order."""

    starts: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]


def tables_over(
    layout: Layout,
    starts: npt.NDArray[np.uint32],
    entries: tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]],
    fingerprints: npt.NDArray[np.uint64],
    first_row: int = 0,
) -> Tables:
    """Tables over given arrays; ``entries`` are tags and rows, sorted or still to be filled."""
    tags, rows = entries
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
        tags=tags,
        rows=rows,
        num_rows=len(rows) // len(flips),
        fingerprints=fingerprints,
        first_row=first_row,
        part=np.array([0, 1]),
    )


def num_starts(layout: Layout) -> int:
    """Length of ``Tables.starts``."""
    return sum((1 << bits) + 1 for bits in layout.key_bits)


def build_tables(layout: Layout, fingerprints: npt.NDArray[np.uint64], rows: npt.NDArray[np.uint32]) -> Tables:
    """Tables in memory. ``rows`` must ascend, mostly without gaps; they are what queries return."""
    num_entries = len(layout.shifts) * len(rows)
    first_row = int(rows[0]) if len(rows) else 0
    by_row = np.zeros(int(rows[-1]) - first_row + 1 if len(rows) else 0, np.uint64)
    by_row[rows - np.uint32(first_row)] = fingerprints
    entries = np.empty(num_entries, np.uint32), np.empty(num_entries, np.uint32)
    tables = tables_over(layout, np.zeros(num_starts(layout), np.uint32), entries, by_row, first_row)
    for table in range(len(layout.shifts)):
        fill_table(tables, table, fingerprints, rows)
    starts, tags, stored_rows = read_only(tables.starts), read_only(tables.tags), read_only(tables.rows)
    return tables._replace(starts=starts, tags=tags, rows=stored_rows, fingerprints=read_only(tables.fingerprints))


def read_only(array: npt.NDArray[_Number]) -> npt.NDArray[_Number]:
    """A view of the array that nobody writes to."""
    view = array.view()
    view.flags.writeable = False
    return view


def fill_table(tables: Tables, table: int, fingerprints: npt.NDArray[np.uint64], rows: npt.NDArray[np.uint32]) -> None:
    """Sort the fingerprints into the buckets of one table, whose ``starts`` are zero."""
    starts = tables.starts[tables.first_starts[table] : tables.first_starts[table + 1]]
    entries = slice(table * tables.num_rows, (table + 1) * tables.num_rows)
    sort_into_buckets((fingerprints, rows), tables.shifts[table], starts, (tables.tags[entries], tables.rows[entries]))


def tags_of(layout: Layout, values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint32]:
    """The tags of values that stand table after table."""
    tags, num_rows = np.empty(len(values), np.uint32), len(values) // len(layout.shifts)
    for table, (shift, key_bits) in enumerate(zip(layout.shifts, layout.key_bits, strict=True)):
        _fill_tags(tags, values, table * num_rows, (table + 1) * num_rows, np.uint64(shift + key_bits))
    return tags


def stored(tables: Tables) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint32]]:
    """Everything in the tables, in row order."""
    rows = np.sort(tables.rows[: tables.num_rows])
    return tables.fingerprints[rows - np.uint32(tables.first_row)], rows


def _popcount_of(integer: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        return builder.ctpop(arguments[0])

    def typed(typing_context: Any, value: Any) -> Any:  # noqa: ARG001
        return integer(integer), generate

    return intrinsic(typed)


def _generate_prefetch(typing_context: Any, array: Any, index: Any) -> Any:  # noqa: ARG001
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        struct = context.make_array(signature.args[0])(context, builder, arguments[0])
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        address = builder.bitcast(builder.gep(struct.data, [arguments[1]]), pointer)
        function = builder.module.declare_intrinsic("llvm.prefetch", [pointer], ir.FunctionType(ir.VoidType(), [pointer, number, number, number]))
        builder.call(function, [address, number(0), number(3), number(1)])  # for reading, into all caches, data
        return context.get_dummy_value()

    return types.void(array, index), generate


_popcount: Any = _popcount_of(types.uint64)
"""Bits set in a uint64: one instruction."""
_popcount_32: Any = _popcount_of(types.uint32)
"""Bits set in a uint32, which Numba takes for a uint64 after any operation: in vectors of them, one instruction for as many as fit."""
prefetch: Any = intrinsic(_generate_prefetch)
"""Ask memory for the cache line of ``array[index]`` of a one-dimensional array, without waiting for it."""


@numba.njit(cache=True, nogil=True)
def hamming(left, right):  # type: ignore[no-untyped-def]
    """Bits in which two uint64 differ."""
    return np.int64(_popcount(left ^ right))


@numba.njit(cache=True, nogil=True)
def tag_of(fingerprint, key_end):  # type: ignore[no-untyped-def]
    """The 32 bits above the key, which ends at this bit; those beyond the last come from below."""
    low = key_end & np.uint64(63)
    return np.uint32(fingerprint >> low | fingerprint << (np.uint64(64) - low & np.uint64(63)))


@numba.njit(cache=True, nogil=True)
def _fill_tags(tags, values, start, end, key_end):  # type: ignore[no-untyped-def]
    for entry in range(start, end):
        tags[entry] = tag_of(values[entry], key_end)


@numba.njit(cache=True, nogil=True)
def sort_into_buckets(source, shift, starts, target):  # type: ignore[no-untyped-def]
    """Counting sort of (tags, rows) by the low bits of ``value >> shift``; stable. ``starts`` is zero and has one entry more than buckets."""
    values, rows = source
    sorted_tags, sorted_rows = target
    key_mask = np.uint64(len(starts) - 2)
    key_end = shift + np.uint64(_popcount(key_mask))
    for value in values:
        starts[((value >> shift) & key_mask) + np.uint64(1)] += np.uint32(1)
    for bucket in range(1, len(starts)):
        starts[bucket] += starts[bucket - 1]
    cursor = starts.copy()
    for index in range(len(values)):
        key = (values[index] >> shift) & key_mask
        sorted_tags[cursor[key]] = tag_of(values[index], key_end)
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
    """The array, or a longer copy if it has no place of this number."""
    if count < len(found):
        return found
    grown = np.empty(max(len(found) * 2, count + 1), found.dtype)
    grown[: len(found)] = found
    return grown


def find_within(tables: Tables, max_hamming: int, queries: npt.NDArray[np.uint64], wanted: npt.NDArray[np.bool_]) -> Found:
    """Found rows of every query; those that are not ``wanted`` find nothing."""
    asked = np.flatnonzero(wanted)
    hits, count = np.empty(64, np.uint64), 0
    for table in range(len(tables.radii)):
        key_bits, radius = int(tables.key_masks[table]).bit_length(), int(tables.radii[table])
        region_bits = max(0, min(key_bits, MAX_REGION_BITS, len(asked).bit_length() - MIN_QUERIES_BITS))
        flips = probe_flips(region_bits, radius), probe_flips(key_bits - region_bits, radius)
        first = count
        hits, count = _find_in_table(tables, table, max_hamming, (queries, asked, region_bits), flips, (hits, first))
        if len(tables.fingerprints):
            count = _keep_verified(tables, table, max_hamming, queries, hits, (first, count))
    return Found(*_by_query(hits[:count], len(queries)))


@numba.njit(cache=True, nogil=True)
def _find_in_table(tables, table, max_hamming, batch, flips, so_far):  # type: ignore[no-untyped-def]
    """Append what the tags of one table propose: region after region, in each the queries whose keys are few flips away from it."""
    queries, asked, region_bits = batch
    region_flips, low_flips = flips
    hits, count = so_far
    shift, key_mask, radius = tables.shifts[table], tables.key_masks[table], tables.radii[table]
    starts = tables.starts[tables.first_starts[table] : tables.first_starts[table + 1]]
    entries = slice(table * tables.num_rows, (table + 1) * tables.num_rows)
    tags, rows = tables.tags[entries], tables.rows[entries]
    part, num_parts = np.uint64(tables.part[0]), np.uint64(tables.part[1])
    key_bits = hamming(key_mask, np.uint64(0))
    low_bits = np.uint64(key_bits - region_bits)
    low_mask = (np.uint64(1) << low_bits) - np.uint64(1)
    edges, ordered, fingerprints = _by_region(queries, asked, shift + low_bits, region_bits)
    num_low = _num_patterns(low_flips, radius)
    probes, num_probes = np.empty((PROBES_AT_ONCE + len(low_flips), 5), np.uint32), 0
    for region in range(np.uint64(1) << np.uint64(region_bits)):
        for region_flip in region_flips:
            source = region ^ region_flip
            num_flipped = hamming(region_flip, np.uint64(0))
            for place in range(edges[source], edges[source + np.uint64(1)]):
                query = fingerprints[place]
                key = region << low_bits | (query >> shift & low_mask)
                tag = tag_of(query, shift + np.uint64(key_bits))
                for flip in low_flips[: num_low[radius - num_flipped]]:
                    bucket = key ^ flip
                    start, end = starts[bucket], starts[bucket + np.uint64(1)]
                    if start < end and (num_parts == np.uint64(1) or bucket * num_parts // (key_mask + np.uint64(1)) == part):
                        prefetch(tags, np.int64(start))
                        probes[num_probes, 0], probes[num_probes, 1] = ordered[place], tag
                        probes[num_probes, 2], probes[num_probes, 3] = start, end
                        probes[num_probes, 4] = max_hamming - num_flipped - hamming(flip, np.uint64(0))
                        num_probes += 1
                if num_probes >= PROBES_AT_ONCE:
                    hits, count = _scan(tags, rows, probes[:num_probes], (hits, count))
                    num_probes = 0
    return _scan(tags, rows, probes[:num_probes], (hits, count))


@numba.njit(cache=True, nogil=True)
def _by_region(queries, asked, shift, region_bits):  # type: ignore[no-untyped-def]
    """Where each region's queries start, and the asked ones in the order of their keys' first bits: their numbers, and their fingerprints."""
    mask = (np.uint64(1) << np.uint64(region_bits)) - np.uint64(1)
    edges = np.zeros((1 << region_bits) + 1, np.int64)
    for query in asked:
        edges[(queries[query] >> shift & mask) + np.uint64(1)] += 1
    edges = np.cumsum(edges)
    cursor, ordered, fingerprints = edges.copy(), np.empty(len(asked), np.int64), np.empty(len(asked), np.uint64)
    for query in asked:
        region = queries[query] >> shift & mask
        ordered[cursor[region]], fingerprints[cursor[region]] = query, queries[query]
        cursor[region] += 1
    return edges, ordered, fingerprints


@numba.njit(cache=True, nogil=True)
def _num_patterns(flips, radius):  # type: ignore[no-untyped-def]
    """How many patterns flip at most 0, 1, … ``radius`` bits."""
    counts = np.zeros(radius + 1, np.int64)
    for flip in flips:
        counts[hamming(flip, np.uint64(0))] += 1
    return np.cumsum(counts)


@numba.njit(cache=True, nogil=True)
def _scan(tags, rows, probes, so_far):  # type: ignore[no-untyped-def]
    """Append query << 32 | row for the probed buckets' tags that differ in few enough bits."""
    hits, count = so_far
    for probe in range(len(probes)):
        query, tag, start, end, limit = probes[probe, 0], probes[probe, 1], int(probes[probe, 2]), int(probes[probe, 3]), probes[probe, 4]
        whole_steps = start + (end - start + STEP - 1) // STEP * STEP
        if _least_distance(tags, start, whole_steps if whole_steps < len(tags) else len(tags), tag) <= limit:
            hits = with_room(hits, count + end - start)
            count = _collect(tags, rows, (query, tag, start, end, limit), hits, count)
    return hits, count


@numba.njit(cache=True, nogil=True)
def _collect(tags, rows, probe, hits, count):  # type: ignore[no-untyped-def]
    """Store query << 32 | row for a bucket's near tags; there must be room for all of them."""
    query, tag, start, end, limit = probe
    for first in range(start, end, STEP):
        last = first + STEP if first + STEP < end else end
        if _least_distance(tags, first, last, tag) <= limit:
            for entry in range(first, last):
                if _popcount_32(tags[entry] ^ tag) <= limit:
                    hits[count] = np.uint64(query) << np.uint64(32) | np.uint64(rows[entry])
                    count += 1
    return count


@numba.njit(cache=True, nogil=True)
def _least_distance(tags, start, end, tag):  # type: ignore[no-untyped-def]
    """Of a bucket's tags. All of them, in 32 bits and without a branch, is what the compiler turns into vector instructions."""
    least = np.uint32(TAG_BITS)
    for entry in range(np.uint64(start), np.uint64(end)):
        least = min(least, _popcount_32(tags[entry] ^ tag))
    return least


@numba.njit(cache=True, nogil=True)
def _keep_verified(tables, table, max_hamming, queries, hits, places):  # type: ignore[no-untyped-def]
    """Of ``hits[first:count]`` keep those whose whole fingerprints are near and that no earlier table reports; returns the new count."""
    first, count = places
    kept = first
    for place in range(first, count):
        if place + VERIFIED_AHEAD < count:
            prefetch(tables.fingerprints, _row(hits[place + VERIFIED_AHEAD]) - tables.first_row)
        difference = tables.fingerprints[_row(hits[place]) - tables.first_row] ^ queries[hits[place] >> np.uint64(32)]
        if hamming(difference, np.uint64(0)) <= max_hamming and is_reported_by(tables, table, difference):
            hits[kept] = hits[place]
            kept += 1
    return kept


@numba.njit(cache=True, nogil=True)
def _row(hit):  # type: ignore[no-untyped-def]
    return np.int64(hit & np.uint64(0xFFFFFFFF))


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
    key_end = tables.shifts[0] + np.uint64(_popcount(tables.key_masks[0]))
    for query in range(len(queries)):
        bucket = tables.first_starts[0] + np.int64((queries[query] >> tables.shifts[0]) & tables.key_masks[0])
        tag = tag_of(queries[query], key_end)
        for entry in range(tables.starts[bucket], tables.starts[bucket + 1]):
            if tables.tags[entry] == tag:
                counts[query] += tables.fingerprints[np.int64(tables.rows[entry]) - tables.first_row] == queries[query]
    return counts
