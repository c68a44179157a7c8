"""Pieces to ids: byte-level BPE over a whole batch of texts, from UTF-8 buffers straight into an array of ids.

Merges go by rank, the leftmost of equals first, until none is left: what a heap of pairs gives (Sennrich et al. 2016). Short pieces search
their few pairs one by one; long ones (Chinese runs, base64) keep them in a heap, so that a piece of n bytes costs n log n.

Words repeat: pieces of up to 24 bytes and 8 ids are remembered in a table of one cache line each, the newest of two that fall on the
same line. A remembered piece is compared byte for byte, so a hash can never be mistaken for a word. The table has a fixed size.
Cost: 50 to 80 MB/s on one core, 8 MB for the table.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from pipelines.text.characters import code_point_at
from pipelines.text.packed import MULTIPLIER, packed, stirred
from pipelines.tokenizers.engine.pieces import UNASSIGNED, Scanner, piece_end

_CACHE_LINES = 1 << 17
_CACHE_SHIFT = np.uint64(64 - 17)
_ABOUT = 3
"""The word of a line that holds the piece's length and its number of ids; three words of bytes before it, four of ids behind it."""
_MAX_CACHED_BYTES = 24
_MAX_CACHED_IDS = 8
_MAX_SEARCHED_BYTES = 28
"""Pieces up to this length search their pairs, longer ones keep a heap."""
_ROOM_BYTES = 4096
_FREE = np.uint64(0xFFFFFFFFFFFFFFFF)
_NO_RANK = np.int32(0x7FFFFFFF)
_HIGH = np.uint64(32)


class Merges(NamedTuple):
    """A BPE model. ``rank`` is the merge's number; lower ones go first."""

    byte_ids: npt.NDArray[np.int32]
    """Id of each byte, int32 [256]."""
    byte_ranks: npt.NDArray[np.int32]
    """Rank of the merge of two bytes, int32 [65536]."""
    keys: npt.NDArray[np.uint64]
    """Hash table of pairs of ids, ``left << 32 | right``; its size is a power of two."""
    ranks: npt.NDArray[np.int32]
    """Rank of the pair in the same slot."""
    merged: npt.NDArray[np.int32]
    """Id that a merge makes, by rank."""


class Encoded(NamedTuple):
    """Ids of n texts."""

    ids: npt.NDArray[Any]
    offsets: npt.NDArray[np.int64]
    """int64 [n + 1]."""
    is_unusual: npt.NDArray[np.bool_]
    """Whether a text holds a code point that Unicode had not assigned."""


class _Scratch(NamedTuple):
    """Room for one piece: its symbols as a linked list, and the heap of its pairs."""

    ids: npt.NDArray[np.int32]
    after: npt.NDArray[np.int32]
    before: npt.NDArray[np.int32]
    heap: npt.NDArray[np.uint64]


def make_merges(byte_ids: Sequence[int], pairs: Mapping[tuple[int, int], tuple[int, int]]) -> Merges:
    """``byte_ids``: the id of each byte; ``pairs``: (left id, right id) -> (rank, id of the merge), ranks from 0 without holes."""
    num_slots = 1 << max(4, (3 * len(pairs)).bit_length())
    merges = Merges(
        np.array(byte_ids, np.int32),
        np.full(1 << 16, _NO_RANK, np.int32),
        np.full(num_slots, _FREE, np.uint64),
        np.full(num_slots, _NO_RANK, np.int32),
        np.zeros(max(1, len(pairs)), np.int32),
    )
    for rank, merged in pairs.values():
        merges.merged[rank] = merged
    left_right = np.array(list(pairs), np.int64).reshape(-1, 2)
    ranks = np.array([rank for rank, _ in pairs.values()], np.int32)
    _fill_pairs(merges, left_right, ranks)
    return merges


def new_cache() -> npt.NDArray[np.uint64]:
    """An empty table of pieces, uint64 [lines, 8]: 24 bytes of the piece, its length and number of ids, eight ids. For one model, one thread."""
    raw = np.zeros(_CACHE_LINES * 8 + 8, np.uint64)
    first = -raw.ctypes.data // 8 % 8  # a line of the table is a line of the processor's cache
    return raw[first : first + _CACHE_LINES * 8].reshape(_CACHE_LINES, 8)


def encode_texts(data: Any, offsets: Any, scanner: Scanner, merges: Merges, cache: npt.NDArray[np.uint64], dtype: Any) -> Encoded:
    """Ids (of ``dtype``) of the texts ``data[offsets[i]:offsets[i + 1]]``, valid UTF-8."""
    num_bytes = int(offsets[-1] - offsets[0]) + 1  # no text has more ids than bytes; ids are written in pairs
    result = Encoded(np.empty(num_bytes, np.uint32), np.zeros(len(offsets), np.int64), np.zeros(len(offsets) - 1, np.bool_))
    _encode_all(data, offsets, scanner, merges, cache, result)
    return Encoded(result.ids[: result.offsets[-1]].astype(dtype), result.offsets, result.is_unusual)


@njit(cache=True, nogil=True)
def _fill_pairs(merges: Any, pairs: Any, ranks: Any) -> None:
    for number in range(len(pairs)):
        slot = _slot_of(merges.keys, pairs[number, 0], pairs[number, 1])
        merges.keys[slot] = _key(pairs[number, 0], pairs[number, 1])
        merges.ranks[slot] = ranks[number]
    for left in range(256):
        for right in range(256):
            merges.byte_ranks[left << 8 | right] = _rank_of(merges.keys, merges.ranks, merges.byte_ids[left], merges.byte_ids[right])


@njit(cache=True, nogil=True, inline="always")
def _key(left: Any, right: Any) -> Any:
    return np.uint64(left) << np.uint64(32) | np.uint64(right)


@njit(cache=True, nogil=True, inline="always")
def _slot_of(keys: Any, left: Any, right: Any) -> Any:
    """The slot that holds the pair, or the free one where it belongs (linear probing)."""
    key = _key(left, right)
    mask = np.uint64(len(keys) - 1)
    mixed = key * MULTIPLIER
    slot = (mixed ^ mixed >> np.uint64(32)) & mask
    while keys[slot] != key and keys[slot] != _FREE:
        slot = (slot + np.uint64(1)) & mask
    return slot


@njit(cache=True, nogil=True, inline="always")
def _rank_of(keys: Any, ranks: Any, left: Any, right: Any) -> Any:
    return ranks[_slot_of(keys, left, right)]


@njit(cache=True, nogil=True)
def _encode_all(data: Any, offsets: Any, scanner: Any, merges: Any, cache: Any, result: Any) -> None:
    """The path of a remembered piece is inlined here: a call that passes arrays costs as much as looking the piece up."""
    classes, is_gpt2, max_digits = scanner
    out, out_offsets, is_unusual = result
    scratch = _room(_ROOM_BYTES)
    cursor: Any = 0
    for row in range(len(offsets) - 1):
        at, stop = offsets[row], offsets[row + 1]
        is_unusual[row] = _has_unassigned(data, at, stop, classes)
        while at < stop:
            end = piece_end(data, at, stop, classes, is_gpt2, max_digits)
            length = end - at
            if length > _MAX_CACHED_BYTES:
                # Room for a giant is taken on the side: a variable that is assigned anew in this loop would be counted at each turn.
                cursor = _encode_long(data, at, end, merges, scratch if length <= _ROOM_BYTES else _room(length), out, cursor)
                at = end
                continue
            first = packed(data, at, length)
            second = packed(data, at + 8, length - 8) if length > 8 else np.uint64(0)
            third = packed(data, at + 16, length - 16) if length > 16 else np.uint64(0)
            digest = stirred(np.uint64(length), first)
            if length > 8:
                digest = stirred(stirred(digest, second), third)
            line = (digest * MULTIPLIER) >> _CACHE_SHIFT
            about = cache[line, _ABOUT]
            is_known = cache[line, 0] == first and cache[line, 1] == second and cache[line, 2] == third
            if is_known and about & np.uint64(0xFF) == np.uint64(length):
                num_ids = np.int64(about >> np.uint64(8))
                for pair in range((num_ids + 1) >> 1):
                    ids = cache[line, _ABOUT + 1 + pair]
                    out[cursor + 2 * pair], out[cursor + 2 * pair + 1] = np.uint32(ids), np.uint32(ids >> _HIGH)
                cursor += num_ids
            else:
                cache[line, 0], cache[line, 1], cache[line, 2] = first, second, third
                cursor = _encode_short(data, at, length, merges, scratch, cache[line], out, cursor)
            at = end
        out_offsets[row + 1] = cursor


@njit(cache=True, nogil=True)
def _has_unassigned(data: Any, at: Any, stop: Any, classes: Any) -> Any:
    while at < stop:
        if data[at] < 0x80:
            at += 1
            continue
        code, size = code_point_at(data, at)
        if classes[code] & UNASSIGNED:
            return True
        at += size
    return False


@njit(cache=True, nogil=True)
def _room(num_bytes: Any) -> Any:
    """Each merge takes one pair from the heap and adds at most two."""
    size = np.int64(num_bytes)
    return _Scratch(np.empty(size, np.int32), np.empty(size, np.int32), np.empty(size, np.int32), np.empty(3 * size, np.uint64))


@njit(cache=True, nogil=True)
def _encode_short(data: Any, at: Any, length: Any, merges: Any, scratch: Any, line: Any, out: Any, cursor: Any) -> Any:
    """Write the ids of a piece to ``out[cursor:]`` and remember them in the line, which has its bytes; returns where they end."""
    ids = scratch.ids
    num_ids = _merge_by_search(data, at, length, merges, ids, scratch.after)
    for number in range(num_ids):
        out[cursor + number] = ids[number]
    line[_ABOUT] = np.uint64(length) | np.uint64(num_ids) << np.uint64(8) if num_ids <= _MAX_CACHED_IDS else np.uint64(0)
    if num_ids <= _MAX_CACHED_IDS:
        ids[num_ids] = 0
        for pair in range((num_ids + 1) >> 1):
            line[_ABOUT + 1 + pair] = np.uint64(ids[2 * pair]) | np.uint64(ids[2 * pair + 1]) << _HIGH
    return cursor + num_ids


@njit(cache=True, nogil=True, inline="always")
def _merge_by_search(data: Any, at: Any, length: Any, merges: Any, ids: Any, pair_ranks: Any) -> Any:
    """Ids of ``data[at:at + length]`` in ``ids``; returns how many. ``pair_ranks[i]`` is that of the pair (i, i + 1)."""
    byte_ids, byte_ranks, keys, ranks, merged = merges
    for number in range(length):
        ids[number] = byte_ids[data[at + number]]
        if number + 1 < length:
            pair_ranks[number] = byte_ranks[np.int64(data[at + number]) << 8 | np.int64(data[at + number + 1])]
    while length > 1:
        best = 0
        rank = pair_ranks[0]
        for number in range(1, length - 1):
            if pair_ranks[number] < rank:
                best, rank = number, pair_ranks[number]
        if rank == _NO_RANK:
            break
        ids[best] = merged[rank]
        length -= 1
        for number in range(best + 1, length):
            ids[number] = ids[number + 1]
            pair_ranks[number - 1] = pair_ranks[number]
        if best > 0:
            pair_ranks[best - 1] = _rank_of(keys, ranks, ids[best - 1], ids[best])
        if best + 1 < length:
            pair_ranks[best] = _rank_of(keys, ranks, ids[best], ids[best + 1])
    return length


@njit(cache=True, nogil=True)
def _encode_long(data: Any, at: Any, end: Any, merges: Any, scratch: Any, out: Any, cursor: Any) -> Any:
    """As _encode_short, with a heap of ``rank << 32 | left symbol`` and without the cache."""
    length = end - at
    ids, after, before, heap = scratch
    byte_ids, byte_ranks, keys, ranks, merged = merges
    size = 0
    for number in range(length):
        ids[number] = byte_ids[data[at + number]]
        after[number], before[number] = number + 1, number - 1
        if number + 1 < length:
            rank = byte_ranks[np.int64(data[at + number]) << 8 | np.int64(data[at + number + 1])]
            size = _push(heap, size, rank, number)
    while size:
        top = heap[0]
        size = _pop(heap, size)
        left = np.int64(top & np.uint64(0xFFFFFFFF))
        right = np.int64(after[left])
        # A pair that has changed since it was pushed has another rank now; a symbol that was merged away is -1.
        if ids[left] < 0 or right >= length or _rank_of(keys, ranks, ids[left], ids[right]) != np.int32(top >> np.uint64(32)):
            continue
        ids[left] = merged[np.int64(top >> np.uint64(32))]
        ids[right] = -1
        after[left] = after[right]
        if after[left] < length:
            before[after[left]] = left
            size = _push(heap, size, _rank_of(keys, ranks, ids[left], ids[after[left]]), left)
        if before[left] >= 0:
            size = _push(heap, size, _rank_of(keys, ranks, ids[before[left]], ids[left]), before[left])
    symbol: Any = np.int64(0)
    while symbol < length:
        out[cursor] = ids[symbol]
        cursor += 1
        symbol = np.int64(after[symbol])
    return cursor


@njit(cache=True, nogil=True)
def _push(heap: Any, size: Any, rank: Any, left: Any) -> Any:
    """Add a pair to the binary heap, unless it is none; returns the new size."""
    if rank == _NO_RANK:
        return size
    entry = np.uint64(rank) << np.uint64(32) | np.uint64(left)
    slot = size
    while slot > 0 and heap[(slot - 1) >> 1] > entry:
        heap[slot] = heap[(slot - 1) >> 1]
        slot = (slot - 1) >> 1
    heap[slot] = entry
    return size + 1


@njit(cache=True, nogil=True)
def _pop(heap: Any, size: Any) -> Any:
    """Remove the smallest entry; returns the new size."""
    size -= 1
    entry = heap[size]
    slot = 0
    while 2 * slot + 1 < size:
        child = 2 * slot + 1
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= entry:
            break
        heap[slot] = heap[child]
        slot = child
    heap[slot] = entry
    return size
