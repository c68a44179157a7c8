"""Where a document is taken apart: arrays for its characters, words and lines, and a hash table, used by all documents of a batch in turn.

Invariant: nothing is left over from one document to the next: each kernel says how much of an array is filled.
Cost: decoding about 1 ns per character; the arrays take up to 140 bytes per character of the longest document.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

FNV_OFFSET = np.uint64(0xCBF29CE484222325)
FNV_PRIME = np.uint64(0x100000001B3)
_MIN_SLOTS = 16
"""Of a hash table: how few its users clear and probe at least, so how few there must be."""

I32 = npt.NDArray[np.int32]
U64 = npt.NDArray[np.uint64]


class Scratch(NamedTuple):
    """The arrays; the comments say what one entry is. Inner loops take the arrays that they need out of the tuple: passing it on is not free."""

    codes: I32
    """Code point of a character."""
    kinds: npt.NDArray[np.uint32]
    """pipelines.steps.rules.marks.rule_flags of a character."""
    words: U64
    """Hash of a word's characters."""
    word_chars: I32
    word_marks: I32
    """Its size in halves (bits of words.HALVES), and what is in it (words.HAS_LETTER, words.IS_PLAIN)."""
    starts: I32
    """First character of a line."""
    stops: I32
    """Behind a line's last character, before the newline."""
    tops: I32
    """First character of a line that is not white."""
    ends: I32
    """Behind the last such character."""
    lines: U64
    """Hash of a line, without the white space at its ends."""
    masks: I32
    """Kinds of phrases that occur in a line (pipelines.steps.rules.phrases)."""
    keys: U64
    """Hash table: 0 is a free slot."""
    counts: I32
    firsts: I32
    grams: U64
    """Hash of the n-gram at a candidate position."""
    positions: I32
    """Candidate position of an n-gram: the number of its first word."""
    slots: I32
    """Slot of a candidate's n-gram."""


def empty_scratch(num_chars: int) -> Scratch:
    """Room for documents of up to ``num_chars`` characters."""
    size = num_chars + 2
    num_slots = max(_MIN_SLOTS, 1 << (2 * size).bit_length())
    keys = np.zeros(num_slots, np.uint64)
    slot_counts, slot_firsts = np.zeros((2, num_slots), np.int32)
    words, lines, grams = np.zeros((3, size), np.uint64)
    codes, word_chars, word_marks, starts, stops, tops, ends, masks, positions, slots = np.zeros((10, size), np.int32)
    return Scratch(
        *(codes, np.zeros(size, np.uint32), words, word_chars, word_marks, starts, stops, tops, ends, lines, masks),
        *(keys, slot_counts, slot_firsts, grams, positions, slots),
    )


@njit(cache=True, nogil=True, inline="always")
def mixed(digest: Any, value: Any) -> Any:
    """FNV-1a over whole values instead of bytes."""
    return (digest ^ np.uint64(value)) * FNV_PRIME


@njit(cache=True, nogil=True)
def count_chars(data: Any, offsets: Any, num_chars: Any) -> None:
    """Characters of each document: the bytes that do not continue one."""
    for i in range(len(offsets) - 1):
        total = 0
        for at in range(offsets[i], offsets[i + 1]):
            total += (data[at] & 0xC0) != 0x80
        num_chars[i] = total


@njit(cache=True, nogil=True)
def decode(data: Any, flags: Any, at: Any, stop: Any, scratch: Any) -> Any:
    """Fill ``codes`` and ``kinds`` from valid UTF-8; the number of characters."""
    codes, kinds = scratch.codes, scratch.kinds
    num = 0
    while at < stop:
        lead = np.int64(data[at])
        if lead < 0x80:
            code, size = lead, 1
        elif lead < 0xE0:
            code, size = (lead & 0x1F) << 6 | (np.int64(data[at + 1]) & 0x3F), 2
        elif lead < 0xF0:
            code, size = (lead & 0x0F) << 12 | (np.int64(data[at + 1]) & 0x3F) << 6 | (np.int64(data[at + 2]) & 0x3F), 3
        else:
            high = (lead & 0x07) << 18 | (np.int64(data[at + 1]) & 0x3F) << 12
            code, size = high | (np.int64(data[at + 2]) & 0x3F) << 6 | (np.int64(data[at + 3]) & 0x3F), 4
        codes[num] = code
        kinds[num] = flags[code]
        num += 1
        at += size
    return num


@njit(cache=True, nogil=True)
def encode(codes: Any, num_chars: Any, out: Any, at: Any) -> Any:
    """Write ``codes`` as UTF-8 at ``at``; the byte behind them."""
    for k in range(num_chars):
        code = codes[k]
        if code < 0x80:
            out[at] = code
            at += 1
        elif code < 0x800:
            out[at], out[at + 1] = 0xC0 | code >> 6, 0x80 | code & 0x3F
            at += 2
        elif code < 0x10000:
            out[at], out[at + 1], out[at + 2] = 0xE0 | code >> 12, 0x80 | code >> 6 & 0x3F, 0x80 | code & 0x3F
            at += 3
        else:
            out[at], out[at + 1] = 0xF0 | code >> 18, 0x80 | code >> 12 & 0x3F
            out[at + 2], out[at + 3] = 0x80 | code >> 6 & 0x3F, 0x80 | code & 0x3F
            at += 4
    return at


@njit(cache=True, nogil=True)
def split_lines(scratch: Any, num_chars: Any) -> Any:
    """Fill ``starts`` and ``stops``; the number of lines. As ``str.splitlines`` of normalized text: a newline at the end begins no line."""
    codes, starts, stops = scratch.codes, scratch.starts, scratch.stops
    num_lines = start = 0
    for k in range(num_chars):
        if codes[k] == 0x0A:
            starts[num_lines] = start
            stops[num_lines] = k
            num_lines += 1
            start = k + 1
    if start < num_chars:
        starts[num_lines] = start
        stops[num_lines] = num_chars
        num_lines += 1
    return num_lines


@njit(cache=True, nogil=True)
def clear_table(scratch: Any, num_entries: Any) -> Any:
    """An empty table with room for ``num_entries``; the mask of its slots. Short documents use the first slots only, which stay in the cache."""
    mask = _MIN_SLOTS - 1
    while mask < 2 * num_entries:
        mask = 2 * mask + 1
    scratch.keys[: mask + 1] = 0
    return mask


@njit(cache=True, nogil=True)
def enter(keys: Any, counts: Any, mask: Any, key: Any) -> Any:
    """The slot of ``key`` (linear probing), and whether it was entered just now, with a count of 0."""
    key |= np.uint64(1)
    slot = np.int64((key ^ key >> np.uint64(29)) >> np.uint64(3)) & mask
    while keys[slot] != 0:
        if keys[slot] == key:
            return slot, False
        slot = (slot + 1) & mask
    keys[slot] = key
    counts[slot] = 0
    return slot, True
