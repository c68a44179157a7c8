"""Which stored fingerprints lie within Hamming distance k of a query? Exactly, without comparing with all of them.

Block permutation (Manku, Jain, Das Sarma 2007): cut the 64 bits into k + 1 blocks; two fingerprints at distance <= k are equal
in at least one block. Each block has a table from its bits to the fingerprints that hold them, so a query looks at one bucket
per table. A stored fingerprint that shares several blocks is reported in the first of them only.

Two tiers. The base is immutable: per table the fingerprints and their rows, sorted by bucket, so that a bucket is one
contiguous scan (0.4 ns per fingerprint). The growing tier takes new rows in linked buckets, and is merged into the
base when it has outgrown an eighth of it (amortized: every fingerprint is sorted about nine times, however many there are).

Memory per fingerprint: 12 (k + 1) bytes in the base, 12 + 4 (k + 1) in the growing tier. Work per query: for n fingerprints about
n (k + 1) / 2**(64 / (k + 1)) comparisons: 61 of a million at k = 3, 12,400 at k = 6 (5 microseconds).
"""

import itertools
from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

FINGERPRINT_BITS = 64
MAX_TABLE_BITS = 20
"""Largest table: 2**20 buckets. Wider blocks use their low bits as the key and are compared in full."""
GROWING_TABLE_BITS = 14
MIN_GROWING_ROWS = 8_192
NO_ROW = -1


class Tables(NamedTuple):
    """All that a query kernel reads: the blocks, the base and the growing tier. b blocks, T buckets, n base rows, c growing capacity."""

    shifts: npt.NDArray[np.uint64]  # [b] lowest bit of each block
    masks: npt.NDArray[np.uint64]  # [b] the block's bits, shifted down
    starts: npt.NDArray[np.uint32]  # [b, T + 1] where each bucket of the base starts
    fingerprints: npt.NDArray[np.uint64]  # [b, n] in bucket order
    rows: npt.NDArray[np.uint32]  # [b, n] row numbers in bucket order, ascending in each bucket
    heads: npt.NDArray[np.int32]  # [b, G] newest entry of each bucket of the growing tier, or NO_ROW
    links: npt.NDArray[np.int32]  # [c, b] the entry before it in its bucket
    new_fingerprints: npt.NDArray[np.uint64]  # [c]
    new_rows: npt.NDArray[np.uint32]  # [c]
    num_new: npt.NDArray[np.int64]  # [1] entries in the growing tier


class FingerprintIndex:
    """Stored fingerprints, each with a row number of the caller's. Answers depend on what is stored, not on how it came in."""

    def __init__(self, max_hamming: int, fingerprints: npt.NDArray[np.uint64], rows: npt.NDArray[np.uint32]) -> None:
        """Build the base. ``rows`` must ascend; they are what queries return."""
        self.max_hamming = max_hamming
        self.tables = _build(max_hamming, fingerprints, rows)

    @property
    def num_rows(self) -> int:
        """Fingerprints stored."""
        return len(self.tables.rows[0]) + int(self.tables.num_new[0])

    def reserve(self, num_rows: int) -> None:
        """Make room for this many ``insert`` calls; merges the growing tier when it is large against the base."""
        num_new = int(self.tables.num_new[0])
        if num_new > max(MIN_GROWING_ROWS, self.tables.rows.shape[1] // 8):
            fingerprints, rows = self._stored()
            self.tables = _build(self.max_hamming, fingerprints, rows)
            num_new = 0
        shortage = num_new + num_rows - len(self.tables.new_rows)
        if shortage > 0:
            self.tables = _extended(self.tables, max(shortage, len(self.tables.new_rows)))

    def add(self, fingerprints: npt.NDArray[np.uint64], rows: npt.NDArray[np.uint32]) -> None:
        """Store more fingerprints; their rows must be above all rows stored so far."""
        self.reserve(len(rows))
        _insert_all(self.tables, fingerprints, rows)

    def query(self, fingerprints: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """All pairs (query position, stored row) within the distance, sorted by position, then row."""
        positions, rows = _query_all(self.tables, self.max_hamming, fingerprints)
        order = np.lexsort((rows, positions))
        return positions[order], rows[order]

    def _stored(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint32]]:
        """Everything stored, in row order."""
        tables, num_new = self.tables, int(self.tables.num_new[0])
        order = np.argsort(tables.rows[0])
        fingerprints = np.concatenate([tables.fingerprints[0][order], tables.new_fingerprints[:num_new]])
        return fingerprints, np.concatenate([tables.rows[0][order], tables.new_rows[:num_new]])


def _build(max_hamming: int, fingerprints: npt.NDArray[np.uint64], rows: npt.NDArray[np.uint32]) -> Tables:
    num_blocks = max_hamming + 1
    edges = [FINGERPRINT_BITS * block // num_blocks for block in range(num_blocks + 1)]
    widths = [high - low for low, high in itertools.pairwise(edges)]
    base_bits = min(MAX_TABLE_BITS, *widths, max(8, len(rows).bit_length()))
    growing_bits = min(GROWING_TABLE_BITS, *widths)
    tables = Tables(
        shifts=np.array(edges[:-1], np.uint64),
        masks=np.array([(1 << width) - 1 for width in widths], np.uint64),
        starts=np.zeros((num_blocks, (1 << base_bits) + 1), np.uint32),
        fingerprints=np.empty((num_blocks, len(rows)), np.uint64),
        rows=np.empty((num_blocks, len(rows)), np.uint32),
        heads=np.full((num_blocks, 1 << growing_bits), NO_ROW, np.int32),
        links=np.empty((0, num_blocks), np.int32),
        new_fingerprints=np.empty(0, np.uint64),
        new_rows=np.empty(0, np.uint32),
        num_new=np.zeros(1, np.int64),
    )
    _sort_into_buckets(tables, np.ascontiguousarray(fingerprints), np.ascontiguousarray(rows))
    return tables


def _extended(tables: Tables, num_more: int) -> Tables:
    """The same tables with room for more new rows."""
    return tables._replace(
        links=np.concatenate([tables.links, np.empty((num_more, tables.links.shape[1]), np.int32)]),
        new_fingerprints=np.concatenate([tables.new_fingerprints, np.empty(num_more, np.uint64)]),
        new_rows=np.concatenate([tables.new_rows, np.empty(num_more, np.uint32)]),
    )


@numba.njit(cache=True, nogil=True)
def hamming(left, right):  # type: ignore[no-untyped-def]
    """Bits in which two uint64 differ; LLVM turns this into one popcnt."""
    bits = left ^ right
    bits -= (bits >> np.uint64(1)) & np.uint64(0x5555555555555555)
    bits = (bits & np.uint64(0x3333333333333333)) + ((bits >> np.uint64(2)) & np.uint64(0x3333333333333333))
    bits = (bits + (bits >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((bits * np.uint64(0x0101010101010101)) >> np.uint64(56))


@numba.njit(cache=True, nogil=True)
def _sort_into_buckets(tables, fingerprints, rows):  # type: ignore[no-untyped-def]
    """Counting sort of the base by each block's key; stable, so rows ascend in each bucket."""
    key_mask = np.uint64(tables.starts.shape[1] - 2)
    for block in range(len(tables.shifts)):
        starts = tables.starts[block]
        for fingerprint in fingerprints:
            starts[((fingerprint >> tables.shifts[block]) & key_mask) + np.uint64(1)] += np.uint32(1)
        starts[:] = np.cumsum(starts)
        cursor = starts.copy()
        for index in range(len(fingerprints)):
            key = (fingerprints[index] >> tables.shifts[block]) & key_mask
            tables.fingerprints[block, cursor[key]] = fingerprints[index]
            tables.rows[block, cursor[key]] = rows[index]
            cursor[key] += np.uint32(1)


@numba.njit(cache=True, nogil=True)
def _is_first_shared(tables, block, difference):  # type: ignore[no-untyped-def]
    """Whether ``block`` is the first one in which two fingerprints with this XOR are equal."""
    for earlier in range(block):
        if (difference >> tables.shifts[earlier]) & tables.masks[earlier] == 0:
            return False
    return (difference >> tables.shifts[block]) & tables.masks[block] == 0


@numba.njit(cache=True, nogil=True)
def find_near(tables, max_hamming, fingerprint, found):  # type: ignore[no-untyped-def]
    """Rows within the distance, into ``found``; returns (how many, the array, which is a longer one if it had to grow)."""
    count, found = _find_in_base(tables, max_hamming, fingerprint, found)
    return _find_in_new(tables, max_hamming, fingerprint, found, count)


@numba.njit(cache=True, nogil=True)
def _find_in_base(tables, max_hamming, fingerprint, found):  # type: ignore[no-untyped-def]
    count = 0
    key_mask = np.uint64(tables.starts.shape[1] - 2)
    for block in range(len(tables.shifts)):
        key = (fingerprint >> tables.shifts[block]) & key_mask
        start, end = np.int64(tables.starts[block, key]), np.int64(tables.starts[block, key + np.uint64(1)])
        bucket = tables.fingerprints[block, start:end]
        index = _next_near(bucket, 0, fingerprint, max_hamming)
        while index < len(bucket):
            if _is_first_shared(tables, block, bucket[index] ^ fingerprint):
                found = _with_room(found, count)
                found[count] = tables.rows[block, start + index]
                count += 1
            index = _next_near(bucket, index + 1, fingerprint, max_hamming)
    return count, found


@numba.njit(cache=True, nogil=True)
def _next_near(bucket, start, fingerprint, max_hamming):  # type: ignore[no-untyped-def]
    """First position from ``start`` on that is within the distance, or the bucket's length. A function of its own keeps the loop tight."""
    for index in range(start, len(bucket)):
        if hamming(bucket[index], fingerprint) <= max_hamming:
            return index
    return len(bucket)


@numba.njit(cache=True, nogil=True)
def _find_in_new(tables, max_hamming, fingerprint, found, count):  # type: ignore[no-untyped-def]
    key_mask = np.uint64(tables.heads.shape[1] - 1)
    for block in range(len(tables.shifts)):
        entry = tables.heads[block, (fingerprint >> tables.shifts[block]) & key_mask]
        while entry != NO_ROW:
            stored = tables.new_fingerprints[entry]
            if hamming(stored, fingerprint) <= max_hamming and _is_first_shared(tables, block, stored ^ fingerprint):
                found = _with_room(found, count)
                found[count] = tables.new_rows[entry]
                count += 1
            entry = tables.links[entry, block]
    return count, found


@numba.njit(cache=True, nogil=True)
def _with_room(found, count):  # type: ignore[no-untyped-def]
    if count < len(found):
        return found
    grown = np.empty(len(found) * 2, found.dtype)
    grown[:count] = found[:count]
    return grown


@numba.njit(cache=True, nogil=True)
def insert(tables, fingerprint, row):  # type: ignore[no-untyped-def]
    """Store one fingerprint in the growing tier, for which ``reserve`` has made room."""
    entry = tables.num_new[0]
    tables.new_fingerprints[entry] = fingerprint
    tables.new_rows[entry] = row
    key_mask = np.uint64(tables.heads.shape[1] - 1)
    for block in range(len(tables.shifts)):
        key = (fingerprint >> tables.shifts[block]) & key_mask
        tables.links[entry, block] = tables.heads[block, key]
        tables.heads[block, key] = entry
    tables.num_new[0] = entry + 1


@numba.njit(cache=True, nogil=True)
def _insert_all(tables, fingerprints, rows):  # type: ignore[no-untyped-def]
    for index in range(len(rows)):
        insert(tables, fingerprints[index], rows[index])


@numba.njit(cache=True, nogil=True)
def _query_all(tables, max_hamming, fingerprints):  # type: ignore[no-untyped-def]
    positions = np.empty(max(16, len(fingerprints)), np.int64)
    rows = np.empty(len(positions), np.int64)
    found = np.empty(16, np.int64)
    total = 0
    for position in range(len(fingerprints)):
        count, found = find_near(tables, max_hamming, fingerprints[position], found)
        for index in range(count):
            positions = _with_room(positions, total)
            rows = _with_room(rows, total)
            positions[total], rows[total] = position, found[index]
            total += 1
    return positions[:total], rows[:total]
