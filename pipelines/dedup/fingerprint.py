"""Fingerprints of whole batches of documents, computed over the Arrow string buffers without building a Python string.

fingerprint   64-bit SimHash (Charikar 2002) of the document's features (features.py), each distinct one weighted by how often
              it occurs, up to ``feature_cap``. Bit-identical to ``simhash.Simhash({feature: weight}, hashfunc=...)`` with the same
              feature hash: bit i is set iff more than half of the total weight has it set; a tie clears it.
sketch        32 bytes that estimate the overlap of two documents (sketch.py).
content hash  xxh3-128 of the text's UTF-8 bytes.

A document without features has fingerprint 0 and an all-zero sketch; the resolver never takes it for a near duplicate.
Cost: about 200 MB/s on one core: one pass over the bytes, then one hash table access and some ten operations per feature. Scratch memory is
4 times the longest document's bytes, plus 13 bytes for each of at most eight slots per distinct feature. The kernels release the
interpreter lock.
"""

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from pipelines.dedup.features import code_point_table, hash_features, max_features
from pipelines.dedup.sketch import sketch_features
from schemas.arrow import CONTENT_HASH_BYTES, SKETCH_BYTES
from schemas.settings_dedup import DedupSettings

NUM_PLANES = 32
"""Bit planes of the vertical counters: total weights up to 2**32 - 1, far above the features of the largest document."""
INITIAL_SLOTS = 1024


@dataclass(frozen=True)
class Fingerprints:
    """Fingerprints of n documents."""

    fingerprint: npt.NDArray[np.uint64]
    """uint64[n]."""
    sketch: npt.NDArray[np.uint8]
    """uint8[n, 32]."""


def fingerprint_texts(texts: pa.Array, settings: DedupSettings) -> Fingerprints:
    """SimHash and sketch of each text (string or large_string; null counts as empty). The array must be valid UTF-8, as Arrow demands."""
    offsets, data = _utf8(texts)
    num_texts = len(offsets) - 1
    result = Fingerprints(np.zeros(num_texts, np.uint64), np.zeros((num_texts, SKETCH_BYTES), np.uint8))
    if num_texts:
        longest = int(np.diff(offsets).max())
        scratch = np.empty(max_features(longest), np.uint64)
        batch = _Batch(offsets, data, code_point_table(), scratch)
        _fingerprint_batch(batch, settings.feature_cap, result.fingerprint, result.sketch)
    return result


def content_hashes(texts: pa.Array) -> pa.FixedSizeBinaryArray:
    """xxh3-128 of each text's UTF-8 bytes, big-endian; null counts as empty."""
    offsets, data = _utf8(texts)
    view = data.data
    bounds = offsets.tolist()
    digests = b"".join(xxhash.xxh3_128_digest(view[start:end]) for start, end in itertools.pairwise(bounds))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(CONTENT_HASH_BYTES), len(bounds) - 1, [None, pa.py_buffer(digests)])


def sketch_array(sketch: npt.NDArray[np.uint8]) -> pa.FixedSizeBinaryArray:
    """Sketches uint8[n, 32] as the Arrow column of the schemas."""
    buffer = pa.py_buffer(np.ascontiguousarray(sketch))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(SKETCH_BYTES), len(sketch), [None, buffer])


def _utf8(texts: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Offsets int64[n + 1] and bytes of a string column, without copying the bytes of a large_string array."""
    if isinstance(texts, pa.ChunkedArray):
        texts = pa.concat_arrays(texts.cast(pa.large_string()).chunks) if texts.num_chunks else pa.array([], pa.large_string())
    texts = pc.fill_null(texts.cast(pa.large_string()), "")
    _, offsets, data = texts.buffers()
    if not len(texts):
        return np.zeros(1, np.int64), np.empty(0, np.uint8)
    bounds = np.frombuffer(offsets, np.int64, len(texts) + 1, texts.offset * 8)
    return bounds, np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)


class _Batch(NamedTuple):
    """What the kernel reads, and its scratch."""

    offsets: npt.NDArray[np.int64]
    data: npt.NDArray[np.uint8]
    table: npt.NDArray[np.uint32]
    features: npt.NDArray[np.uint64]


class _Weights(NamedTuple):
    """Hash table from feature to weight. A slot belongs to a document iff its stamp is the document's: nothing is ever cleared."""

    keys: npt.NDArray[np.uint64]
    weights: npt.NDArray[np.uint8]
    stamps: npt.NDArray[np.uint32]


@numba.njit(cache=True, nogil=True)
def _fingerprint_batch(batch, cap, fingerprint, sketch):  # type: ignore[no-untyped-def]
    table = _empty_table(INITIAL_SLOTS)
    planes = np.zeros(NUM_PLANES, np.uint64)
    smallest = np.zeros(SKETCH_BYTES, np.uint64)
    for row in range(len(batch.offsets) - 1):
        count = hash_features(batch.data, batch.offsets[row], batch.offsets[row + 1], batch.table, batch.features)
        sketch_features(batch.features, count, smallest, sketch[row])
        total, used = _cap_weights(batch.features[:count], cap, _part(table, count), np.uint32(row + 1))
        if len(used.keys) > len(table.keys):
            table = used
        fingerprint[row] = _majority(batch.features[:total], planes)


@numba.njit(cache=True, nogil=True)
def _empty_table(num_slots):  # type: ignore[no-untyped-def]
    return _Weights(np.zeros(num_slots, np.uint64), np.zeros(num_slots, np.uint8), np.zeros(num_slots, np.uint32))


@numba.njit(cache=True, nogil=True)
def _part(table, count):  # type: ignore[no-untyped-def]
    """The first slots of the table, enough for this many features if it has them: a small table stays in the cache."""
    num_slots = 16
    while num_slots < 2 * count and num_slots < len(table.keys):
        num_slots *= 2
    return _Weights(table.keys[:num_slots], table.weights[:num_slots], table.stamps[:num_slots])


@numba.njit(cache=True, nogil=True)
def _cap_weights(features, cap, table, stamp):  # type: ignore[no-untyped-def]
    """Move the first ``cap`` occurrences of each feature to the front; returns how many these are, and the (grown) table."""
    done, distinct, total = _cap_until_full(features, (0, 0, 0), cap, table, stamp)
    while done < len(features):
        table = _grow(table, stamp)
        done, distinct, total = _cap_until_full(features, (done, distinct, total), cap, table, stamp)
    return total, table


@numba.njit(cache=True, nogil=True)
def _cap_until_full(features, progress, cap, table, stamp):  # type: ignore[no-untyped-def]
    """Go on from (features looked at, distinct ones, kept ones) until the end, or until the table is half full.

    A loop of its own: an array variable that is assigned anew in a loop has its references counted at every turn.
    """
    keys, weights, stamps = table
    done, distinct, total = progress
    while done < len(features) and distinct * 2 < len(keys):
        key = features[done]
        done += 1
        slot = _find(keys, stamps, stamp, key)
        if stamps[slot] != stamp:
            keys[slot], weights[slot], stamps[slot] = key, 0, stamp
            distinct += 1
        if weights[slot] < cap:
            weights[slot] += 1
            features[total] = key
            total += 1
    return done, distinct, total


@numba.njit(cache=True, nogil=True, inline="always")
def _find(keys, stamps, stamp, key):  # type: ignore[no-untyped-def]
    """Slot of the key, or the free one where it belongs. Linear probing; the keys are well mixed hashes."""
    mask = np.uint64(len(keys) - 1)
    slot = key & mask
    while stamps[slot] == stamp and keys[slot] != key:
        slot = (slot + np.uint64(1)) & mask
    return slot


@numba.njit(cache=True, nogil=True)
def _grow(table, stamp):  # type: ignore[no-untyped-def]
    """The same table with four times the slots."""
    grown = _empty_table(len(table.keys) * 4)
    for old in range(len(table.keys)):
        if table.stamps[old] == stamp:
            slot = _find(grown.keys, grown.stamps, stamp, table.keys[old])
            grown.keys[slot], grown.weights[slot], grown.stamps[slot] = table.keys[old], table.weights[old], stamp
    return grown


@numba.njit(cache=True, nogil=True)
def _majority(features, planes):  # type: ignore[no-untyped-def]
    """Bits that more than half of the features have set.

    Counts in vertical counters: plane p holds bit p of all 64 counters (``planes`` is scratch). Eight features at a time go
    through a tree of carry-save adders (Harley-Seal), so that only every eighth carry ripples. Then all 64 counters
    are compared with the threshold at once, from the highest plane down.
    """
    planes[:] = 0
    in_blocks = len(features) - len(features) % 8
    for index in range(0, in_blocks, 8):
        ones, twos_a = _add_three(planes[0], features[index], features[index + 1])
        ones, twos_b = _add_three(ones, features[index + 2], features[index + 3])
        twos, fours_a = _add_three(planes[1], twos_a, twos_b)
        ones, twos_a = _add_three(ones, features[index + 4], features[index + 5])
        planes[0], twos_b = _add_three(ones, features[index + 6], features[index + 7])
        planes[1], fours_b = _add_three(twos, twos_a, twos_b)
        planes[2], eights = _add_three(planes[2], fours_a, fours_b)
        _ripple(planes, 3, eights)
    for index in range(in_blocks, len(features)):
        _ripple(planes, 0, features[index])
    return _above(planes, np.uint64(len(features) // 2))  # for integers, count > total / 2 iff count > total // 2


@numba.njit(cache=True, nogil=True)
def _add_three(first, second, third):  # type: ignore[no-untyped-def]
    """64 full adders: (sum bits, carry bits)."""
    half = first ^ second
    return half ^ third, (first & second) | (half & third)


@numba.njit(cache=True, nogil=True)
def _ripple(planes, plane, carry):  # type: ignore[no-untyped-def]
    """Add 2**plane to the counter of each bit that is set in ``carry``."""
    while carry:
        carry_out = planes[plane] & carry
        planes[plane] ^= carry
        carry = carry_out
        plane += 1


@numba.njit(cache=True, nogil=True)
def _above(planes, threshold):  # type: ignore[no-untyped-def]
    """Bits whose counter is above the threshold."""
    above = np.uint64(0)
    equal = ~np.uint64(0)
    for plane in range(NUM_PLANES - 1, -1, -1):
        wanted = ~np.uint64(0) if (threshold >> np.uint64(plane)) & np.uint64(1) else np.uint64(0)
        above |= equal & planes[plane] & ~wanted
        equal &= ~(planes[plane] ^ wanted)
    return above
