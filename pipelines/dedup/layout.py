"""How the tables of a fingerprint index are cut: which bits are a table's key, and how many of them may differ.

Multi-index hashing (Norouzi, Punjani, Fleet 2012). Cut the 64 bits into m blocks and write k = m r + a with 0 <= a < m. Two fingerprints at
distance <= k differ in at most r bits in one of the first a + 1 blocks, or in at most r - 1 bits in one of the others: if not, they would
differ in at least (a + 1)(r + 1) + (m - a - 1) r = k + 1 bits. So a query looks, in the table of each block, at the buckets of all keys within the
block's radius: its probes. A block of radius -1 needs no table. With m = k + 1 this is plain block permutation (Manku, Jain, Das Sarma 2007).

A table's key is the low bits of its block, as many as pay off. Few blocks mean long keys, many probes and short buckets; many blocks the
opposite. The cheapest by the cost model below is taken when the tables are built, so the layout follows their size. Memory is 8 m bytes per
fingerprint. A query among uniform fingerprints, and a core's time for each of 65,536 queries asked together (`python -m benchmarks.dedup_index`):

    n             k = 3                                              k = 6
    1,000,000     4 tables,  4 probes,    61 compared   0.16 µs      5 tables, 31 probes,  3,906 compared   1.1 µs
    10,000,000    4 tables,  4 probes,   610 compared   0.47 µs      4 tables, 52 probes,  7,935 compared   2.1 µs
    50,000,000    4 tables,  4 probes, 3,052 compared   1.19 µs      4 tables, 52 probes, 39,673 compared   5.3 µs

The time is not constant: 64 bits in m blocks leave keys of 64/m bits, and n / 2^(64/m) fingerprints for each of their probes. What grows is what
costs least: comparisons of neighbours in memory, a dozen in a nanosecond. Beside the 140 µs that all other steps take for a document of 3 kB,
fifty times as many fingerprints add 3 % to its cost.
"""

import functools
import itertools
import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FINGERPRINT_BITS = 64
MIN_KEY_BITS = 8
MAX_KEY_BITS = 24
PROBE_NS = 28.0
"""One probe: its bucket's bounds and first entries come from memory, in batches, which wait for many at the same time."""
COMPARE_NS = 0.08
"""One entry of a bucket: 4 bytes in sequence, an XOR and a popcount, in vector instructions (AVX-512; without them it is about twice as much)."""
TABLE_BYTES_NS = 0.15
"""What a byte per fingerprint is worth, in time per query: of two layouts that are about as fast, the smaller one."""


class Layout(NamedTuple):
    """One entry per table."""

    shifts: tuple[int, ...]
    """Lowest bit of the block."""
    widths: tuple[int, ...]
    """Bits of the block."""
    key_bits: tuple[int, ...]
    """Low bits of the block that are the key."""
    radii: tuple[int, ...]
    """Bits in which a query's block may differ."""

    def cost_ns(self, num_rows: int) -> float:
        """What a query costs by the model, for uniform fingerprints."""
        costs = [_table_cost_ns(num_rows, bits, radius) for bits, radius in zip(self.key_bits, self.radii, strict=True)]
        return sum(costs) + TABLE_BYTES_NS * 8 * len(costs)


@functools.lru_cache(64)
def choose_layout(num_rows: int, max_hamming: int) -> Layout:
    """The cheapest layout that finds everything within ``max_hamming`` among this many fingerprints."""
    candidates = [layout_of_blocks(num_rows, max_hamming, num_blocks) for num_blocks in range(1, max_hamming + 2)]
    return min(candidates, key=lambda layout: layout.cost_ns(num_rows))


@functools.cache
def probe_flips(key_bits: int, radius: int) -> npt.NDArray[np.uint64]:
    """Every pattern of at most ``radius`` of the key's bits, fewest bits first: XORed to a key they give the keys to look at."""
    patterns = [sum(1 << bit for bit in bits) for size in range(radius + 1) for bits in itertools.combinations(range(key_bits), size)]
    return np.array(patterns, np.uint64)


def layout_of_blocks(num_rows: int, max_hamming: int, num_blocks: int) -> Layout:
    """The layout of so many blocks, with the key lengths that pay off for this many fingerprints."""
    radius, rest = divmod(max_hamming, num_blocks)
    radii = [radius if block <= rest else radius - 1 for block in range(num_blocks)]
    edges = [FINGERPRINT_BITS - FINGERPRINT_BITS * (num_blocks - block) // num_blocks for block in range(num_blocks + 1)]  # first blocks are widest
    blocks = [(low, high - low, radius) for (low, high), radius in zip(itertools.pairwise(edges), radii, strict=True) if radius >= 0]
    key_bits = [_best_key_bits(num_rows, width, radius) for _, width, radius in blocks]
    shifts, widths, radii_of_tables = zip(*blocks, strict=True)
    return Layout(shifts, widths, tuple(key_bits), radii_of_tables)


def _best_key_bits(num_rows: int, width: int, radius: int) -> int:
    """Never more buckets than twice the rows."""
    largest = min(width, MAX_KEY_BITS, max(MIN_KEY_BITS, num_rows.bit_length()))
    return min(range(min(width, MIN_KEY_BITS), largest + 1), key=lambda bits: _table_cost_ns(num_rows, bits, radius))


def _table_cost_ns(num_rows: int, key_bits: int, radius: int) -> float:
    return _num_probes(key_bits, radius) * (PROBE_NS + COMPARE_NS * num_rows / float(1 << key_bits))


def _num_probes(key_bits: int, radius: int) -> int:
    return sum(math.comb(key_bits, size) for size in range(radius + 1))
