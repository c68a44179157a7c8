"""Text as tokens, the units that all quality models count: words, single characters of unspaced scripts, and punctuation marks.

word     a run of letters and digits, lower-cased code point by code point, every digit as 0, cut after MAX_WORD_CHARS
single   a letter of a script that is (or may be) written without spaces: Chinese and Japanese are modelled by character
mark     any other visible character; a run of the same one is one mark, so that a ruler is no longer than a dash
break    an empty line: the end of a paragraph (what kenlm calls a sentence); a line's end alone is a space, for text is often wrapped

A token is a 64-bit hash of its code points: no string is built, and two words of one text share a hash about never (1 in 10^7 for a million words).
Cost: one pass over the bytes, about 150 MB/s on one core; 17 bytes of scratch per byte of the longest text, touched per token only.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from pipelines.dedup.features import extend_hash, mix
from pipelines.text.buffers import Bytes, Offsets, Source
from pipelines.text.characters import (
    BLANK,
    CONTROL,
    DIGIT,
    HIDDEN,
    JOINER,
    LETTER,
    NEWLINE,
    SELECTOR,
    SPACE,
    TAG,
    UNSPACED,
    character_flags,
    code_point_at,
)

NOTHING, SPACING, LINE_END, WORD, SINGLE, MARK, BREAK = range(7)
"""Kinds of characters, and (from WORD on) of tokens. NOTHING is passed over as if it were not there."""
KIND_SHIFT = 24
CODE_MASK = (1 << KIND_SHIFT) - 1
MAX_WORD_CHARS = 32
"""A longer run is several tokens: what base64 costs is then bounded by its length, as prose is."""
BREAK_HASH = np.uint64(0x9AE16A3B2F90404F)
_LISTED = 0x20000


class Tokens(NamedTuple):
    """Scratch for the tokens of one text, and for what the models make of them."""

    hashes: npt.NDArray[np.uint64]
    starts: npt.NDArray[np.int64]
    """Byte where the token begins."""
    kinds: npt.NDArray[np.uint8]


def empty_tokens(longest_bytes: int) -> Tokens:
    """Room for the tokens of any text of this many bytes: breaks take two."""
    size = longest_bytes + 1
    return Tokens(np.empty(size, np.uint64), np.empty(size, np.int64), np.empty(size, np.uint8))


@functools.cache
def unit_table() -> npt.NDArray[np.uint32]:
    """For every code point its kind (upper 8 bits) and the code point that stands for it: lower case, 0 for digits. uint32 [0x110000]."""
    flags = character_flags()
    table = np.full(0x110000, MARK << KIND_SHIFT, np.uint32)
    for flag, kind in ((LETTER | DIGIT, WORD), (UNSPACED, SINGLE), (HIDDEN | SELECTOR | TAG | JOINER | CONTROL, NOTHING), (SPACE | BLANK, SPACING)):
        table[flags & np.uint32(flag) != 0] = kind << KIND_SHIFT
    table[flags & np.uint32(NEWLINE) != 0] = SPACING << KIND_SHIFT
    table[0x0A] = LINE_END << KIND_SHIFT
    folded = np.arange(0x110000, dtype=np.uint32)
    folded[:_LISTED] = [0x30 if chr(code).isdecimal() else ord(chr(code).lower()[0]) for code in range(_LISTED)]
    table |= folded
    table.flags.writeable = False
    return table


def unit_source(data: Bytes) -> Source:
    """What the kernels of this package read."""
    return Source(data, unit_table())


def fold(text: str) -> str:
    """The text as its tokens see it: folded, without what is passed over."""
    table = unit_table()
    entries = [int(table[ord(char)]) for char in text]
    return "".join(chr(entry & CODE_MASK) for entry in entries if entry >> KIND_SHIFT != NOTHING)


@njit(cache=True, nogil=True)
def tokenize(source: Any, start: Any, stop: Any, tokens: Any) -> Any:
    """Write the tokens of the UTF-8 bytes from ``start`` to ``stop``; returns how many. Never begins with a break; never two in a row."""
    data, table = source
    count = num_line_ends = num_chars = 0
    state = np.uint64(0)
    last_mark = np.uint32(0)
    at = start
    while at < stop:
        code, size = code_point_at(data, at)
        entry = table[code]
        kind = entry >> np.uint32(KIND_SHIFT)
        if kind == NOTHING:
            at += size
            continue
        if num_chars and (kind != WORD or num_chars == MAX_WORD_CHARS):
            tokens.hashes[count - 1] = mix(state)
            num_chars = 0
        if kind in (SPACING, LINE_END):
            num_line_ends += kind == LINE_END
            last_mark = np.uint32(0)
            at += size
            continue
        if num_line_ends > 1 and count:
            tokens.hashes[count], tokens.starts[count], tokens.kinds[count] = BREAK_HASH, at, BREAK
            count += 1
        num_line_ends = 0
        value = entry & np.uint32(CODE_MASK)
        if num_chars:
            state = extend_hash(state, value)
            num_chars += 1
        elif kind != MARK or value != last_mark:
            tokens.starts[count], tokens.kinds[count] = at, kind
            state = extend_hash(np.uint64(0), value)
            tokens.hashes[count] = mix(state)
            num_chars = 1 if kind == WORD else 0
            count += 1
        last_mark = value if kind == MARK else np.uint32(0)
        at += size
    if num_chars:
        tokens.hashes[count - 1] = mix(state)
    return count


@njit(cache=True, nogil=True)
def count_tokens(source: Any, offsets: Any, tokens: Any, counts: Any) -> None:
    """Tokens of each text, int64 [n]."""
    for row in range(len(offsets) - 1):
        counts[row] = tokenize(source, offsets[row], offsets[row + 1], tokens)


@njit(cache=True, nogil=True)
def gather_tokens(source: Any, offsets: Any, tokens: Any, gathered: Any) -> None:
    """The tokens of all texts one after another, into arrays of the size that ``count_tokens`` gave."""
    filled = 0
    for row in range(len(offsets) - 1):
        count = tokenize(source, offsets[row], offsets[row + 1], tokens)
        gathered.hashes[filled : filled + count] = tokens.hashes[:count]
        gathered.starts[filled : filled + count] = tokens.starts[:count]
        gathered.kinds[filled : filled + count] = tokens.kinds[:count]
        filled += count


def longest(offsets: Offsets) -> int:
    """Bytes of the longest text."""
    return int(np.diff(offsets).max(initial=0))


def all_tokens(source: Source, offsets: Offsets) -> tuple[Tokens, npt.NDArray[np.int64]]:
    """The tokens of a whole batch, and how many each text has."""
    scratch = empty_tokens(longest(offsets))
    counts = np.zeros(len(offsets) - 1, np.int64)
    count_tokens(source, offsets, scratch, counts)
    gathered = empty_tokens(int(counts.sum()))
    gather_tokens(source, offsets, scratch, gathered)
    total = int(counts.sum())
    return Tokens(gathered.hashes[:total], gathered.starts[:total], gathered.kinds[:total]), counts
