"""What each Unicode code point is to the steps: one table of flags, and the UTF-8 decoding that the compiled kernels share.

Built from the standard library's ``unicodedata`` (Unicode Character Database, UAX #44) and the block ranges below for what that module
does not know: scripts written without spaces, scripts in which joiners change the shape of a word, and emoji (UTS #51).
Cost: 4.5 MB and about 0.1 s, once per process.
"""

import functools
import unicodedata
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

SPACE = 1 << 0
"""Ends a word inside a line: space, tab, ideographic space."""
BLANK = 1 << 1
"""Any other space; normalization writes an ordinary one."""
NEWLINE = 1 << 2
"""Anything that ends a line."""
CONTROL = 1 << 3
"""Control characters and code points that are not characters: removed, and counted as a sign of wrong decoding."""
HIDDEN = 1 << 4
"""Characters without a shape that say nothing: removed."""
JOINER = 1 << 5
"""ZWNJ and ZWJ: kept where they join or part."""
SELECTOR = 1 << 6
"""Variation selectors: one is kept behind the character that it varies."""
TAG = 1 << 7
"""Tag characters: kept in emoji flags only; elsewhere they hide text."""
EMOJI = 1 << 8
"""Pictographs, and what modifies them."""
JOINING = 1 << 9
"""Letters and marks of scripts in which joiners have a meaning: Arabic, Syriac, Mongolian, the Indic scripts."""
LETTER = 1 << 10
"""Letters and combining marks of all scripts."""
DIGIT = 1 << 11
"""Numbers of all scripts."""
SYMBOL = 1 << 12
"""Mathematical, currency, modifier and other symbols, private use, ``#`` and the ellipsis; never emoji."""
UNSPACED = 1 << 13
"""Letters of scripts that are (or may be) written without spaces: each counts as a word."""
SEPARATOR = 1 << 14
"""East Asian punctuation and forms: ends a word as a space does, but is a visible character."""
LATIN = 1 << 15
"""Below U+0590 (Latin, Greek, Cyrillic, Armenian, digits, ASCII): what encoded data and minified code are written in."""
MARK = 1 << 16
"""Combining marks: belong to the letter before them."""

ZWNJ = 0x200C
ZWJ = 0x200D
BLACK_FLAG = 0x1F3F4
REPLACEMENT = 0xFFFD

Flags = npt.NDArray[np.uint32]

_BLANKS = ((0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x202F, 0x202F), (0x205F, 0x205F))
_NEWLINES = ((0x0A, 0x0D), (0x85, 0x85), (0x2028, 0x2029))
# soft hyphen, Arabic letter mark, zero-width space, direction marks and embeddings, word joiner and invisible operators, BOM, annotations
_HIDDEN = ((0xAD, 0xAD), (0x61C, 0x61C), (0x200B, 0x200B), (0x200E, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0xFEFF, 0xFEFF), (0xFFF9, 0xFFFB))
_SELECTORS = ((0x180B, 0x180D), (0x180F, 0x180F), (0xFE00, 0xFE0F), (0xE0100, 0xE01EF))
_TAGS = ((0xE0000, 0xE007F),)
_EMOJI = (
    *((0x2194, 0x2199), (0x21A9, 0x21AA), (0x231A, 0x231B), (0x2328, 0x2328), (0x23CF, 0x23CF), (0x23E9, 0x23FA), (0x24C2, 0x24C2)),
    *((0x25AA, 0x25AB), (0x25B6, 0x25B6), (0x25C0, 0x25C0), (0x25FB, 0x25FE), (0x2600, 0x27BF), (0x2934, 0x2935), (0x2B05, 0x2B07)),
    *((0x2B1B, 0x2B1C), (0x2B50, 0x2B50), (0x2B55, 0x2B55), (0x3030, 0x3030), (0x303D, 0x303D), (0x3297, 0x3297), (0x3299, 0x3299)),
    *((0x1F000, 0x1F0FF), (0x1F10D, 0x1F10F), (0x1F12F, 0x1F12F), (0x1F16C, 0x1F171), (0x1F17E, 0x1F17F), (0x1F18E, 0x1F18E)),
    *((0x1F191, 0x1F19A), (0x1F1E6, 0x1F265), (0x1F300, 0x1F64F), (0x1F680, 0x1F6FF), (0x1F7E0, 0x1F7EB), (0x1F90C, 0x1FAFF)),
)
_JOINING = (
    *((0x600, 0x6FF), (0x700, 0x77F), (0x7C0, 0x7FF), (0x840, 0x8FF), (0x900, 0xDFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x1800, 0x18AF)),
    *((0x1900, 0x194F), (0x1B00, 0x1BFF), (0x1C00, 0x1C4F), (0xA800, 0xA82F), (0xA840, 0xA8FF), (0xA980, 0xA9DF), (0xAA00, 0xAA5F)),
    *((0xAAE0, 0xAAFF), (0xABC0, 0xABFF), (0xFB50, 0xFDFF), (0xFE70, 0xFEFE), (0x10A00, 0x10AFF), (0x11000, 0x1184F), (0x11900, 0x11FFF)),
)
_UNSPACED = (
    *((0xE00, 0xEFF), (0xF00, 0xFFF), (0x1000, 0x109F), (0x1100, 0x11FF), (0x1780, 0x17FF), (0x1950, 0x19DF), (0x1A20, 0x1AAF)),
    *((0x1B00, 0x1B7F), (0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3021, 0x3029), (0x3031, 0x3035), (0x3038, 0x303C), (0x3041, 0x31FF)),
    *((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xA000, 0xA4CF), (0xA960, 0xA97F), (0xA980, 0xA9FF), (0xAA60, 0xAA7F), (0xAA80, 0xAADF)),
    *((0xAC00, 0xD7FF), (0xF900, 0xFAFF), (0xFF66, 0xFFDC), (0x16F00, 0x18DFF), (0x1AFF0, 0x1B2FF), (0x20000, 0x3FFFF)),
)
# CJK symbols and punctuation, vertical and small forms, full-width punctuation (letters and digits of that block stay what they are)
_SEPARATORS = ((0x3001, 0x3004), (0x3008, 0x3020), (0x30A0, 0x30A0), (0x30FB, 0x30FB), (0xFE10, 0xFE6F), (0xFF01, 0xFF65), (0xFFE0, 0xFFEE))
_BY_CATEGORY = {"L": LETTER, "M": LETTER | MARK, "N": DIGIT, "S": SYMBOL}
_LISTED = 0x20000  # code points above are classed by range alone: ideographs, tags, selectors, private use


def _fill(table: Flags, ranges: tuple[tuple[int, int], ...], flag: int, *, only: int = 0, clear: int = 0) -> None:
    for first, last in ranges:
        span = table[first : last + 1]
        chosen = (span & only != 0) if only else np.ones(len(span), bool)
        span[chosen] = (span[chosen] & ~np.uint32(clear)) | np.uint32(flag)


def _by_category() -> Flags:
    table = np.zeros(0x110000, np.uint32)
    categories = [unicodedata.category(chr(code)) for code in range(_LISTED)]
    table[:_LISTED] = [_BY_CATEGORY.get(category[0], 0) for category in categories]
    control = np.array([category == "Cc" for category in categories])
    table[:_LISTED][control] = CONTROL
    table[0xE000:0xF900] = SYMBOL
    table[0xF0000:] = SYMBOL
    table[0x20000:0x40000] = LETTER
    return table


@functools.cache
def character_flags() -> Flags:
    """The flags of every code point, uint32 [0x110000], read-only."""
    table = _by_category()
    table[:0x590] |= np.uint32(LATIN)
    table[[ord("#"), 0x2026]] |= np.uint32(SYMBOL)
    table[[0xFDD0 + i for i in range(32)]] = CONTROL
    table[[plane * 0x10000 + low for plane in range(17) for low in (0xFFFE, 0xFFFF)]] = CONTROL
    everything = 0xFFFFFFFF
    _fill(table, _JOINING, JOINING, only=LETTER)
    _fill(table, _UNSPACED, UNSPACED, only=LETTER | DIGIT)
    table[table & MARK != 0] &= ~np.uint32(UNSPACED)
    _fill(table, _SEPARATORS, SEPARATOR, clear=SYMBOL)
    _fill(table, ((0xFF10, 0xFF19), (0xFF21, 0xFF3A), (0xFF41, 0xFF5A)), 0, clear=SEPARATOR)
    _fill(table, ((0xFE20, 0xFE2F),), 0, clear=SEPARATOR)  # combining half marks
    _fill(table, _EMOJI, EMOJI, clear=everything)
    _fill(table, _SELECTORS, SELECTOR, clear=everything)
    _fill(table, _TAGS, TAG, clear=everything)
    _fill(table, _BLANKS, BLANK, clear=everything)
    _fill(table, ((0x20, 0x20), (0x09, 0x09), (0x3000, 0x3000)), SPACE, clear=everything)
    _fill(table, _NEWLINES, NEWLINE, clear=everything)
    _fill(table, _HIDDEN, HIDDEN, clear=everything)
    _fill(table, ((ZWNJ, ZWJ),), JOINER, clear=everything)
    table.flags.writeable = False
    return table


@njit(cache=True, nogil=True, inline="always")
def code_point_at(data: Any, at: Any) -> Any:
    """The code point that begins at byte ``at`` of valid UTF-8, and its length in bytes."""
    lead = np.int64(data[at])
    if lead < 0x80:
        return lead, 1
    if lead < 0xE0:
        return (lead & 0x1F) << 6 | (np.int64(data[at + 1]) & 0x3F), 2
    if lead < 0xF0:
        return (lead & 0x0F) << 12 | (np.int64(data[at + 1]) & 0x3F) << 6 | (np.int64(data[at + 2]) & 0x3F), 3
    return (lead & 0x07) << 18 | (np.int64(data[at + 1]) & 0x3F) << 12 | (np.int64(data[at + 2]) & 0x3F) << 6 | (np.int64(data[at + 3]) & 0x3F), 4
