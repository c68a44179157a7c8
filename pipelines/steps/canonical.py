"""Which texts normalization would not change, found in one pass: on real streams nearly all of them.

Invariant: a text that is called canonical is left as it is by every part of normalization; a text that is not called so may still be.
A character belongs to canonical text if no rule of normalize.py is about it, it is NFC by itself (quick check "yes", UAX #15 §9), its
combining class does not go down, and it does not stand behind a character with which it could be mojibake.

Cost: 300 to 1,000 MB/s on one core; the table 2.2 MB and 0.1 s, once per process.
"""

import functools
import unicodedata
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from pipelines.steps.mojibake import CONTINUATIONS, LEADS
from pipelines.text.characters import BLANK, CONTROL, HIDDEN, JOINER, NEWLINE, SELECTOR, TAG, character_flags, code_point_at

_CLASS_MASK = 0xFF
_CHANGES = 1 << 8
_LEAD = 1 << 9
_CONTINUATION = 1 << 10
_LISTED = 0x20000  # code points above that are not CJK ideographs: tags, selectors, private use; they take the long way


@functools.cache
def _table() -> npt.NDArray[np.uint16]:
    """By code point: the canonical combining class, and whether normalization may change it, uint16 [0x110000]."""
    table = np.full(0x110000, _CHANGES, np.uint16)
    table[0x20000:0x2FFFE] = 0
    listed = [chr(code) for code in range(_LISTED)]
    table[:_LISTED] = [unicodedata.combining(character) for character in listed]
    unstable = (unicodedata.category(character) == "Cn" or not unicodedata.is_normalized("NFC", character) for character in listed)
    table[:_LISTED][np.fromiter(unstable, bool, _LISTED)] = _CHANGES
    table[list(_composing())] = _CHANGES
    table[0x2A6E0:0x2A700] = table[0x2F800:0x30000] = _CHANGES  # compatibility ideographs decompose
    table[character_flags() & (BLANK | CONTROL | HIDDEN | JOINER | NEWLINE | SELECTOR | TAG) != 0] = _CHANGES
    table[0x0A] = 0
    table[list(LEADS)] |= _LEAD
    table[list(CONTINUATIONS)] |= _CONTINUATION
    table.flags.writeable = False
    return table


def _composing() -> set[int]:
    """Code points that may compose with what stands before them (quick check "maybe"): second halves of pairs, and Hangul's vowels and tails."""
    pairs = (unicodedata.decomposition(chr(code)) for code in range(_LISTED))
    seconds = {int(pair.split()[1], 16) for pair in pairs if " " in pair and not pair.startswith("<")}
    return seconds | {*range(0x1161, 0x1176), *range(0x11A8, 0x11C3)}


def are_canonical(data: Any, offsets: Any) -> npt.NDArray[np.bool_]:
    """Whether normalization leaves each of the texts ``data[offsets[i]:offsets[i + 1]]`` (valid UTF-8) as it is, bool [n]."""
    result = np.zeros(len(offsets) - 1, np.bool_)
    _check_all(data, offsets, _table(), result)
    return result


@njit(cache=True, nogil=True)
def _check_all(data: Any, offsets: Any, table: Any, result: Any) -> None:
    for row in range(len(result)):
        result[row] = _is_canonical(data, offsets[row], offsets[row + 1], table)


@njit(cache=True, nogil=True)
def _is_canonical(data: Any, at: Any, stop: Any, table: Any) -> Any:
    start = at
    num_breaks = 2  # line ends just passed; the text begins as if behind two, so none may follow
    num_blanks = num_spaces = 0  # white space just passed, and how much of it is U+0020
    is_hard = False  # the line before ends in two spaces
    before = np.int64(0)
    while at < stop:
        lead = data[at]
        if 0x20 < lead < 0x7F:
            if num_blanks == 1 and num_spaces == 1 and at == start + 1:
                return False
            at += 1
            num_breaks, num_blanks, num_spaces, is_hard, before = 0, 0, 0, False, np.int64(0)
            continue
        code, size = code_point_at(data, at)
        at += size
        if code == 0x0A:
            num_breaks += 1
            if num_breaks > 2 or (num_breaks == 2 and is_hard) or (num_blanks and not (num_breaks == 1 and num_blanks == 2 and num_spaces == 2)):
                return False
            is_hard = num_blanks == 2
            num_blanks, num_spaces, before = 0, 0, np.int64(0)
        elif code in (0x20, 0x09, 0x3000):
            num_blanks += 1
            num_spaces += code == 0x20
            before = np.int64(0)
        else:
            kind = np.int64(table[code])
            out_of_order = (kind & _CLASS_MASK) != 0 and (before & _CLASS_MASK) > (kind & _CLASS_MASK)
            if kind & _CHANGES or out_of_order or (before & _LEAD and kind & _CONTINUATION):
                return False
            if num_blanks == 1 and num_spaces == 1 and at - size == start + 1:
                return False
            num_breaks, num_blanks, num_spaces, is_hard, before = 0, 0, 0, False, kind
    return num_breaks == 0 and num_blanks == 0
