"""What language identification sees of a text: an excerpt in lower case, without digits, marks and ASCII punctuation, because those are no
language. Where they stood is one space.

All capitals read as Japanese or Vietnamese to the model: lower case is what it was trained on most. Case is that of one code point at a time.
Cost: 1 GB/s and more of long texts, 150 MB/s of what is taken; the table 4.5 MB and 0.2 s, once per process.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
from numba import njit

from pipelines.text.characters import code_point_at

EXCERPT_CHARS = 400
"""Characters taken from the start, and as many from the middle of a longer text: headings and front matter are often English."""
_LONG_BYTES = 4 * EXCERPT_CHARS
_MOST_BYTES = 8 * EXCERPT_CHARS
NOTHING, HAS_LETTER, HAS_HAN, HAS_OTHER_ASIAN, NOT_SIMPLIFIED, NOT_TRADITIONAL, NOT_JAPANESE = (1 << bit for bit in range(24, 31))
"""Above a code point's lower case: it says nothing about the language, it is a letter, Han, or kana or Hangul; Han that the national set of
simplified Chinese (GB 2312), of traditional Chinese (Big5), or of Japanese (JIS X 0208) does not have."""
_FLAGS = HAS_LETTER | HAS_HAN | HAS_OTHER_ASIAN | NOT_SIMPLIFIED | NOT_TRADITIONAL | NOT_JAPANESE
_SETS = {
    NOTHING: r"[\p{N}\p{S}\p{C}!-/:-@\[-`{-~\s]",
    HAS_LETTER: r"\p{L}",
    HAS_HAN: r"\p{Han}",
    HAS_OTHER_ASIAN: r"[\p{Hiragana}\p{Katakana}\p{Hangul}]",
}
_HAN = ((0x3400, 0xA000), (0xF900, 0xFB00), (0x20000, 0x33480))
_NATIONAL = {NOT_SIMPLIFIED: "gb2312", NOT_TRADITIONAL: "big5", NOT_JAPANESE: "euc_jp"}
_LISTED = 0x33480  # above that there are only tags, selectors and private use
_SPACE = 0x20
_BLOCK = 64


class Excerpts(NamedTuple):
    """Excerpt i is ``data[offsets[i]:offsets[i + 1]]``."""

    data: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]
    flags: npt.NDArray[np.uint32]
    """The flags of all its characters."""


@functools.cache
def _table() -> npt.NDArray[np.uint32]:
    """By code point: its lower case and its flags, uint32 [0x110000]."""
    codes = np.array([*range(0xD800), *range(0xE000, _LISTED)], np.uint32)
    characters = pl.Series(list(codes.tobytes().decode("utf-32-le")))
    lower = "".join(characters.str.to_lowercase().str.head(1).to_list())
    entries = np.frombuffer(lower.encode("utf-32-le"), np.uint32).copy()
    for flag, pattern in _SETS.items():
        entries |= np.where(characters.str.contains(pattern).to_numpy(), np.uint32(flag), np.uint32(0))
    table = np.full(0x110000, NOTHING, np.uint32)
    table[codes] = entries
    han = np.concatenate([np.arange(first, last) for first, last in _HAN])
    for flag, name in _NATIONAL.items():
        table[np.setdiff1d(han, _national(name), assume_unique=True)] |= np.uint32(flag)
    table.flags.writeable = False
    return table


def _national(name: str) -> npt.NDArray[np.uint32]:
    """The code points that the encoding has as two bytes (three of EUC-JP are JIS X 0212, which hardly any text needs), ascending."""
    pairs = bytes(byte for lead in range(0xA1, 0xFF) for trail in range(0x40, 0xFF) for byte in (lead, trail, 0x0A))
    return np.unique(np.frombuffer(pairs.decode(name, "ignore").encode("utf-32-le"), np.uint32))


def excerpts(data: Any, offsets: Any) -> Excerpts:
    """The excerpts of the texts ``data[offsets[i]:offsets[i + 1]]``, valid UTF-8."""
    # In lower case a character of two bytes may take three.
    room = int(np.minimum(np.diff(offsets), _MOST_BYTES).sum()) * 3 // 2 + 2 * len(offsets)
    taken = Excerpts(np.empty(room, np.uint8), np.zeros(len(offsets), np.int64), np.zeros(len(offsets) - 1, np.uint32))
    _excerpt_all(data, offsets, _table(), taken)
    return taken


@njit(cache=True, nogil=True)
def _excerpt_all(data: Any, offsets: Any, table: Any, taken: Any) -> None:
    out, out_offsets, flags = taken
    cursor = 0
    for row in range(len(flags)):
        start, stop = offsets[row], offsets[row + 1]
        cursor, some = _take(data, start, stop, table, out, cursor)
        flags[row] |= some
        if stop - start > _LONG_BYTES:
            out[cursor] = _SPACE
            cursor, some = _take(data, _middle(data, start, stop), stop, table, out, cursor + 1)
            flags[row] |= some
        out_offsets[row + 1] = cursor


@njit(cache=True, nogil=True)
def _take(data: Any, at: Any, stop: Any, table: Any, out: Any, cursor: Any) -> Any:
    """Write the next characters at ``cursor``; where they end, and their flags."""
    some = np.uint32(0)
    was_space = False
    num_chars = 0
    while at < stop and num_chars < EXCERPT_CHARS:
        code, size = code_point_at(data, at)
        at += size
        num_chars += 1
        entry = table[code]
        if entry & np.uint32(NOTHING):
            if not was_space:
                out[cursor] = _SPACE
                cursor += 1
            was_space = True
            continue
        was_space = False
        some |= entry
        cursor = _write(np.int64(entry) & 0x1FFFFF, out, cursor)
    return cursor, some & np.uint32(_FLAGS)


@njit(cache=True, nogil=True, inline="always")
def _write(code: Any, out: Any, at: Any) -> Any:
    """The code point as UTF-8; the byte behind it."""
    if code < 0x80:
        out[at] = code
        return at + 1
    if code < 0x800:
        out[at], out[at + 1] = 0xC0 | code >> 6, 0x80 | code & 0x3F
        return at + 2
    if code < 0x10000:
        out[at], out[at + 1], out[at + 2] = 0xE0 | code >> 12, 0x80 | code >> 6 & 0x3F, 0x80 | code & 0x3F
        return at + 3
    out[at], out[at + 1] = 0xF0 | code >> 18, 0x80 | code >> 12 & 0x3F
    out[at + 2], out[at + 3] = 0x80 | code >> 6 & 0x3F, 0x80 | code & 0x3F
    return at + 4


@njit(cache=True, nogil=True)
def _middle(data: Any, at: Any, stop: Any) -> Any:
    """The byte at which the character in the middle begins."""
    left = _num_chars(data, at, stop) >> 1
    while at + _BLOCK <= stop:
        num_chars = _num_chars(data, at, at + _BLOCK)
        if num_chars > left:
            break
        left -= num_chars
        at += _BLOCK
    while data[at] & 0xC0 == 0x80:  # the rest of a character that was counted where it began
        at += 1
    while left:
        at += 1
        left -= (data[at] & 0xC0) != 0x80
    return at


@njit(cache=True, nogil=True, inline="always")
def _num_chars(data: Any, at: Any, stop: Any) -> Any:
    """Characters that begin in the range."""
    total = 0
    for index in range(at, stop):
        total += (data[index] & 0xC0) != 0x80
    return total
