"""What a document's features are: the words and characters that its fingerprint is made of.

A feature is a run of word characters (what ``\\w`` matches), lower-cased code point by code point, or one single Han or kana
character: Chinese and Japanese put no spaces between words, and without the split their near duplicates are not found.
A feature is hashed over its code points, so that no string is ever built.

The lower-casing is that of one code point at a time: 'İ' becomes 'i', and every 'Σ' becomes 'σ', at the end of a word too.
Word characters and case come from the Unicode tables of the running Python: a new Python may see characters that Unicode
has added since, and only those, in another way.
"""

from functools import cache

import numba
import numpy as np
import numpy.typing as npt

SINGLES = (
    (0x3005, 0x3007),  # 々〆〇
    (0x3021, 0x3029),  # Hangzhou numerals
    (0x3041, 0x3096),  # hiragana
    (0x309D, 0x309F),  # hiragana iteration marks
    (0x30A1, 0x30FA),  # katakana
    (0x30FC, 0x30FF),  # katakana length and iteration marks
    (0x31F0, 0x31FF),  # katakana for Ainu
    (0x3400, 0x4DBF),  # Han, extension A
    (0x4E00, 0x9FFF),  # Han
    (0xF900, 0xFAFF),  # Han, compatibility
    (0xFF66, 0xFF9D),  # half-width katakana
    (0x1B000, 0x1B16F),  # kana supplements
    (0x20000, 0x3FFFF),  # Han, supplementary planes
)
"""Code points (first, last) that are features of their own: Han and kana. Hangul is written with spaces and stays in words."""

SINGLE_BIT = np.uint32(1 << 31)
TABLE_SIZE = 0x20000
"""Code points with an entry in the table. Above it there are only Han (two planes), marks and private characters."""


@cache
def code_point_table() -> npt.NDArray[np.uint32]:
    """uint32[TABLE_SIZE]: 0 for a separator, else the lower-case code point, with SINGLE_BIT set where it stands alone. 50 ms, once."""
    table = np.zeros(TABLE_SIZE, np.uint32)
    for code_point in range(TABLE_SIZE):
        char = chr(code_point)
        if char.isalnum() or char == "_":
            table[code_point] = ord(char.lower()[0])
    for first, last in SINGLES:
        for code_point in range(first, min(last + 1, TABLE_SIZE)):
            table[code_point] = np.uint32(code_point) | SINGLE_BIT
    table.flags.writeable = False
    return table


@numba.njit(cache=True, nogil=True, inline="always")
def mix(value):  # type: ignore[no-untyped-def]
    """Finalizer of MurmurHash3 (public domain, A. Appleby): every input bit reaches every output bit. uint64 -> uint64."""
    value ^= value >> np.uint64(33)
    value *= np.uint64(0xFF51AFD7ED558CCD)
    value ^= value >> np.uint64(33)
    value *= np.uint64(0xC4CEB9FE1A85EC53)
    return value ^ (value >> np.uint64(33))


@numba.njit(cache=True, nogil=True, inline="always")
def extend_hash(state, code_point):  # type: ignore[no-untyped-def]
    """One step of the feature hash: fold a code point into the uint64 state, which starts at 0 and ends in ``mix``."""
    state = (state ^ np.uint64(code_point)) * np.uint64(0x9E3779B97F4A7C15)
    return state ^ (state >> np.uint64(32))


@numba.njit(cache=True, nogil=True, inline="always")
def decode(data, position):  # type: ignore[no-untyped-def]
    """Code point at ``position`` of valid UTF-8 bytes, and the position of the next one."""
    first = np.uint32(data[position])
    if first < 0x80:
        return first, position + 1
    second = np.uint32(data[position + 1]) & np.uint32(0x3F)
    if first < 0xE0:
        return (first & np.uint32(0x1F)) << np.uint32(6) | second, position + 2
    third = np.uint32(data[position + 2]) & np.uint32(0x3F)
    if first < 0xF0:
        return (first & np.uint32(0x0F)) << np.uint32(12) | second << np.uint32(6) | third, position + 3
    fourth = np.uint32(data[position + 3]) & np.uint32(0x3F)
    return (first & np.uint32(0x07)) << np.uint32(18) | second << np.uint32(12) | third << np.uint32(6) | fourth, position + 4


@numba.njit(cache=True, nogil=True, inline="always")
def classify(code_point, table):  # type: ignore[no-untyped-def]
    """The table's entry, continued above TABLE_SIZE."""
    if code_point < TABLE_SIZE:
        return table[code_point]
    return code_point | SINGLE_BIT if code_point < 0x40000 else np.uint32(0)


@numba.njit(cache=True, nogil=True)
def hash_features(data, start, end, table, features):  # type: ignore[no-untyped-def]
    """Write the feature hashes of the UTF-8 bytes ``data[start:end]`` to ``features`` in reading order; returns how many.

    ``features`` is uint64 with room for ``max_features(end - start)``.
    """
    count = 0
    state = np.uint64(0)
    in_word = False
    position = start
    while position < end:
        code_point, position = decode(data, position)
        entry = classify(code_point, table)
        is_single = entry >= SINGLE_BIT
        if in_word and (entry == 0 or is_single):
            features[count] = mix(state)
            count += 1
            state = np.uint64(0)
            in_word = False
        if is_single:
            features[count] = mix(extend_hash(np.uint64(0), entry ^ SINGLE_BIT))
            count += 1
        elif entry != 0:
            state = extend_hash(state, entry)
            in_word = True
    if in_word:
        features[count] = mix(state)
        count += 1
    return count


def max_features(num_bytes: int) -> int:
    """Most features that this many bytes of UTF-8 can hold: one-letter words with a separator between them."""
    return num_bytes // 2 + 1
