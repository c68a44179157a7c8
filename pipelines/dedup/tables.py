"""Immutable tables over fingerprints, in memory or mapped from a file: exact answers to "what lies within Hamming distance k?".

One table per block of the layout (layout.py). A table is the fingerprints and their rows in the order of their buckets, so that a bucket is one
contiguous scan, and the place where each bucket starts. A pair that several tables would find is reported by the first whose block it
matches within the radius, so nothing is reported twice.

Cost: building is a counting sort per table, some 20 ns per fingerprint. A batch of queries first asks memory for the bucket bounds of
a group of probes, then for the buckets, then compares: cache misses overlap instead of adding up.
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


@numba.njit(cache=True, nogil=True)
def find_within(tables, max_hamming, queries, wanted):  # type: ignore[no-untyped-def]
    """Found rows of every query; those that are not ``wanted`` find nothing."""
    group = max(1, PROBES_AT_ONCE // len(tables.probe_tables))
    bounds = np.empty(2 * group * len(tables.probe_tables), np.int64)
    starts = np.zeros(len(queries) + 1, np.int64)
    found = np.empty(64, np.int64)
    count = 0
    for first in range(0, len(queries), group):
        end = min(first + group, len(queries))
        num_bounds = 0
        for query in range(first, end):
            if wanted[query]:
                num_bounds = _find_buckets(tables, queries[query], bounds, num_bounds)
        num_bounds = 0
        for query in range(first, end):
            if wanted[query]:
                count, found = _scan_buckets(tables, max_hamming, (queries[query], num_bounds), bounds, (count, found))
                num_bounds += 2 * len(tables.probe_tables)
            starts[query + 1] = count
    return Found(starts, found[:count])


@numba.njit(cache=True, nogil=True)
def _find_buckets(tables, fingerprint, bounds, num_bounds):  # type: ignore[no-untyped-def]
    """Append where the bucket of each probe starts and ends, asking memory for it; empty where the bucket belongs to another part."""
    starts, fingerprints, probe_tables, probe_flips = tables.starts, tables.fingerprints, tables.probe_tables, tables.probe_flips
    shifts, key_masks, first_starts = tables.shifts, tables.key_masks, tables.first_starts
    part, num_parts, num_rows = tables.part[0], tables.part[1], tables.num_rows
    for probe in range(len(probe_tables)):
        table = probe_tables[probe]
        key = np.int64(((fingerprint >> shifts[table]) & key_masks[table]) ^ probe_flips[probe])
        if num_parts > 1 and key * num_parts // np.int64(key_masks[table] + np.uint64(1)) != part:
            bounds[num_bounds] = bounds[num_bounds + 1] = 0
        else:
            bucket = first_starts[table] + key
            start = table * num_rows + np.int64(starts[bucket])
            bounds[num_bounds], bounds[num_bounds + 1] = start, table * num_rows + np.int64(starts[bucket + 1])
            prefetch(fingerprints, start)
        num_bounds += 2
    return num_bounds


@numba.njit(cache=True, nogil=True)
def _scan_buckets(tables, max_hamming, query, bounds, so_far):  # type: ignore[no-untyped-def]
    fingerprint, num_bounds = query
    count, found = so_far
    fingerprints = tables.fingerprints
    for probe in range(len(tables.probe_tables)):
        end = bounds[num_bounds + 2 * probe + 1]
        entry = _next_near(fingerprints, bounds[num_bounds + 2 * probe], end, fingerprint, max_hamming)
        while entry < end:
            if is_reported_by(tables, tables.probe_tables[probe], fingerprints[entry] ^ fingerprint):
                found = with_room(found, count)
                found[count] = tables.rows[entry]
                count += 1
            entry = _next_near(fingerprints, entry + 1, end, fingerprint, max_hamming)
    return count, found


@numba.njit(cache=True, nogil=True)
def _next_near(fingerprints, start, end, fingerprint, max_hamming):  # type: ignore[no-untyped-def]
    """First entry from ``start`` on that is within the distance, or ``end``. A function of its own keeps the loop tight."""
    for entry in range(start, end):
        if hamming(fingerprints[entry], fingerprint) <= max_hamming:
            return entry
    return end


@numba.njit(cache=True, nogil=True)
def count_equal(tables, queries):  # type: ignore[no-untyped-def]
    """How many stored fingerprints equal each query: one bucket of the first table."""
    counts = np.zeros(len(queries), np.int64)
    for query in range(len(queries)):
        bucket = tables.first_starts[0] + np.int64((queries[query] >> tables.shifts[0]) & tables.key_masks[0])
        for entry in range(tables.starts[bucket], tables.starts[bucket + 1]):
            counts[query] += tables.fingerprints[entry] == queries[query]
    return counts
