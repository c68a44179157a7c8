"""Where personal data and secrets may stand: one compiled pass over the bytes of a batch that finds the few stretches worth a regular expression.

Each window is a stretch of one document, with the kind of data it may hold:

EMAIL       what surrounds an ``@``
NUMBER      digits with what may stand between the digits of one number; marked by what they may be
IPV6        hexadecimal digits and colons
IBAN        two capitals and two digits at the start of a word, and what follows
TOKEN       a word of 16 or more letters, digits, ``_`` and ``-`` that begins as a key does, and what points and colons join to it
ASSIGNMENT  the end of a word such as ``password`` before ``:`` or ``=``, and what follows
KEY_BLOCK   ``-----BEGIN`` up to the next one, 16 KiB at most

Invariant: everything that patterns.py accepts lies in a window of its kind, and a window depends on its document alone, never on the batch.
Full-width forms (``＠``, ``：``, ``１``) count as their ASCII ones. Cost: 400 MB/s on one core.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from pipelines.steps.buffers import Utf8

EMAIL, NUMBER, IPV6, IBAN, TOKEN, ASSIGNMENT, KEY_BLOCK = (1 << bit for bit in range(7))
WIDE, DOTTED, SIGNED, LONG = 1 << 7, 1 << 8, 1 << 9, 1 << 10
"""Marks on NUMBER windows: 14 digits or more; three dots or more; a plus sign; 10 digits or more."""

_TOKEN_CHARS, _EMAIL_BYTES, _IBAN_BYTES, _VALUE_BYTES, _BLOCK_BYTES = 16, 400, 48, 200, 16_384
_EXTENSION_BYTES = 16
_PHONE_DIGITS, _SIGNED_DIGITS, _CARD_DIGITS = 10, 8, 14
_MAX_GAP = 3
"""Characters other than digits between two digits of one number: as in ``+49 (0)30`` and ``(010) 8888``, at most."""

_MERGED = ASSIGNMENT
"""The largest of the kinds whose overlapping windows become one."""

_WORD, _JOIN, _SIGN, _FULL, _GENERAL = 1, 2, 4, 8, 16
"""Classes of bytes: of a word; between the digits of a number; what ``_next_sign`` looks for; first of a full-width form; first of a dash."""


_KEY_PAIRS = tuple(ord(pair[0]) << 8 | ord(pair[1]) for pair in "A3 AK AS AR AI AB AC gh gi gl xo xa GO ya sk rk hf np py do SG LT ey".split())


class Windows(NamedTuple):
    """m windows, ordered by document and, for each kind, by position."""

    rows: npt.NDArray[np.int64]
    """Document of each window."""
    kinds: npt.NDArray[np.int64]
    """One of the kinds, with its marks."""
    starts: npt.NDArray[np.int64]
    """First byte, counted from the start of the document."""
    stops: npt.NDArray[np.int64]
    """Behind the last byte, counted likewise; a complete character ends there."""


def _classes() -> npt.NDArray[np.uint8]:
    table = np.zeros(256, np.uint8)
    for byte in range(128):
        char = chr(byte)
        table[byte] |= _WORD * (char.isalnum() or char in "_-")
        table[byte] |= _JOIN * (char in " .-()+/")
        table[byte] |= _SIGN * (char.isdigit() or char in "@:=")
    table[0xEF] |= _FULL  # U+F000 to U+FFFF: the full-width forms among others
    table[0xE2] |= _GENERAL  # U+2000 to U+2FFF: the dashes among others
    table.flags.writeable = False
    return table


_CLASSES = _classes()


def find_windows(texts: Utf8, wanted: int) -> Windows:
    """The windows of the wanted kinds (a sum of them)."""
    has_block = _rows_with_blocks(texts) if wanted & KEY_BLOCK else np.zeros(len(texts.offsets) - 1, np.bool_)
    found = _scan_all(texts.data, texts.offsets, _CLASSES, np.int64(wanted), has_block)
    return Windows(found[:, 0], found[:, 1], found[:, 2], found[:, 3])


def _rows_with_blocks(texts: Utf8) -> npt.NDArray[np.bool_]:
    """The documents with ``-----BEGIN`` in them: the standard library finds it at memory speed."""
    first, last = texts.offsets[0], texts.offsets[-1]
    memory = texts.data[first:last].tobytes()
    has_block = np.zeros(len(texts.offsets) - 1, np.bool_)
    at = memory.find(b"-----BEGIN")
    while at >= 0:
        row = int(np.searchsorted(texts.offsets, first + at, side="right")) - 1
        has_block[row] = True
        at = memory.find(b"-----BEGIN", int(texts.offsets[row + 1] - first))
    return has_block


@njit(cache=True, nogil=True)
def _scan_all(data: Any, offsets: Any, classes: Any, wanted: Any, has_block: Any) -> Any:
    found = np.empty((64, 4), np.int64)
    count = 0
    latest = np.empty(_MERGED + 1, np.int64)
    for row in range(len(offsets) - 1):
        latest[:] = -1
        found, count = _scan(data, offsets[row], offsets[row + 1], row, classes, wanted, latest, found, count)
        if has_block[row]:
            found, count = _add_blocks(data, offsets[row], offsets[row + 1], row, found, count)
    return found[:count].copy()


@njit(cache=True, nogil=True)
def _scan(data: Any, begin: Any, stop: Any, row: Any, classes: Any, wanted: Any, latest: Any, found: Any, count: Any) -> Any:
    """One document. ``number_end`` and ``ipv6_end``: up to where these have been looked at; ``latest[kind]``: the last window of a kind that is merged."""
    number_end = ipv6_end = begin
    at = _next_sign(data, begin, stop, classes)
    while at < stop:
        sign = _ascii(data, at, stop, classes[data[at]])
        following = at + 1
        if _is_digit(sign):
            if wanted & IBAN and _opens_iban(data, at, begin, stop):
                first = _before(data, at - 2, begin)
                found, count = _extend(latest, found, count, row, IBAN, first - begin, _whole(data, at + _IBAN_BYTES, stop) - begin)
            if wanted & NUMBER and at >= number_end:
                found, count, number_end = _add_number(data, at, begin, stop, classes, row, found, count)
                following = number_end
        elif sign == 0x40 and wanted & EMAIL:
            first = _whole(data, max(at - _EMAIL_BYTES, begin), stop)
            found, count = _extend(latest, found, count, row, EMAIL, first - begin, _whole(data, at + _EMAIL_BYTES, stop) - begin)
        elif sign == 0x3A or sign == 0x3D:
            first = _keyword(data, at, begin)
            if wanted & ASSIGNMENT and first >= 0:
                found, count = _extend(latest, found, count, row, ASSIGNMENT, first - begin, _whole(data, at + _VALUE_BYTES, stop) - begin)
            if wanted & IPV6 and data[at] == 0x3A and at >= ipv6_end:
                found, count, ipv6_end = _add_ipv6(data, at, begin, stop, row, found, count)
        at = _next_sign(data, following, stop, classes)
    if wanted & TOKEN:
        found, count = _add_tokens(data, begin, stop, row, classes, latest, found, count)
    return found, count


@njit(cache=True, nogil=True)
def _next_sign(data: Any, at: Any, stop: Any, classes: Any) -> Any:
    """Where the next digit, ``@``, ``:`` or ``=`` is, full-width ones included; ``stop`` if there is none."""
    while at < stop:
        kind = classes[data[at]]
        if kind & (_SIGN | _FULL):
            if kind & _SIGN:
                return at
            sign = _ascii(data, at, stop, kind)
            if 0 < sign < 0x80 and classes[sign] & _SIGN:
                return at
        at += 1
    return at


@njit(cache=True, nogil=True)
def _add_tokens(data: Any, begin: Any, stop: Any, row: Any, classes: Any, latest: Any, found: Any, count: Any) -> Any:
    """Windows around long words. Looks at every sixteenth byte first: such a word always holds one of these."""
    at = begin
    while at < stop:
        if not classes[data[at]] & _WORD:
            at += _TOKEN_CHARS
            continue
        start = end = at
        while start > begin and classes[data[start - 1]] & _WORD:
            start -= 1
        while end < stop and classes[data[end]] & _WORD:
            end += 1
        if end - start >= _TOKEN_CHARS and _opens_key(data, start, begin):
            found, count = _add_token(data, start, end, begin, stop, row, latest, found, count)
        at += ((end - at) // _TOKEN_CHARS + 1) * _TOKEN_CHARS
    return found, count


@njit(cache=True, nogil=True)
def _add(found: Any, count: Any, row: Any, kind: Any, start: Any, stop: Any) -> Any:
    """Append a window."""
    if count == len(found):
        grown = np.empty((2 * count, 4), np.int64)
        grown[:count] = found
        found = grown
    found[count, 0], found[count, 1], found[count, 2], found[count, 3] = row, kind, start, stop
    return found, count + 1


@njit(cache=True, nogil=True)
def _extend(latest: Any, found: Any, count: Any, row: Any, kind: Any, start: Any, stop: Any) -> Any:
    """Append a window, or let the last one of its kind in this document grow if they overlap: no byte is looked at twice."""
    before = latest[kind]
    if before >= 0 and found[before, 3] >= start:
        found[before, 3] = stop
        return found, count
    latest[kind] = count
    return _add(found, count, row, kind, start, stop)


@njit(cache=True, nogil=True)
def _opens_key(data: Any, start: Any, begin: Any) -> Any:
    """Whether the word begins as one of the keys in patterns.py, or stands behind ``SG.``, ``ya29.`` or the digits and the colon of a bot's token."""
    if start - 2 >= begin and data[start - 1] in (0x2E, 0x3A) and (data[start - 2] == 0x47 or 0x30 <= data[start - 2] <= 0x39):
        return True
    pair = np.int64(data[start]) << 8 | data[start + 1]
    for first in _KEY_PAIRS:
        if pair == first:
            return True
    return False


@njit(cache=True, nogil=True)
def _add_token(data: Any, start: Any, end: Any, begin: Any, stop: Any, row: Any, latest: Any, found: Any, count: Any) -> Any:
    """The word, what ``.`` and ``:`` join to it, and one character on either side; nothing if an earlier window has it."""
    before = latest[TOKEN]
    if before >= 0 and found[before, 3] >= end - begin:
        return found, count
    while start > begin and (_is_letter_or_digit(data[start - 1]) or data[start - 1] in (0x2D, 0x2E, 0x3A, 0x5F)):
        start -= 1
    while end < stop and (_is_letter_or_digit(data[end]) or data[end] in (0x2D, 0x2E, 0x3A, 0x5F)):
        end += 1
    return _extend(latest, found, count, row, TOKEN, _before(data, start, begin) - begin, _whole(data, end + 1, stop) - begin)


@njit(cache=True, nogil=True)
def _whole(data: Any, at: Any, stop: Any) -> Any:
    """``at``, or where the character that it would cut ends."""
    if at >= stop:
        return stop
    while at < stop and data[at] & 0xC0 == 0x80:
        at += 1
    return at


@njit(cache=True, nogil=True, inline="always")
def _ascii(data: Any, at: Any, stop: Any, kind: Any) -> Any:
    """The ASCII byte, or that of a full-width form, that the character at ``at`` stands for; 0 for any other character."""
    if not kind & (_FULL | _GENERAL):
        return np.int64(data[at])
    if at + 2 >= stop:
        return 0
    if kind & _GENERAL:
        return 0x2D if data[at + 1] == 0x80 and 0x90 <= data[at + 2] <= 0x95 else 0
    if data[at + 1] == 0xBC and 0x81 <= data[at + 2]:
        return np.int64(data[at + 2]) - 0x60  # U+FF01..U+FF3F -> 0x21..0x5F
    return 0


@njit(cache=True, nogil=True, inline="always")
def _is_digit(sign: Any) -> Any:
    return 0x30 <= sign <= 0x39


@njit(cache=True, nogil=True)
def _add_number(data: Any, at: Any, begin: Any, stop: Any, classes: Any, row: Any, found: Any, count: Any) -> Any:
    """The number run that begins with the digit at ``at``, as a window if it has digits enough; also returns where it ends.

    The window begins up to four characters before the digit, so that ``+``, ``(`` and the character before them are seen.
    """
    num_digits = chain = longest_chain = num_signs = gap = 0  # chain: points with a digit on either side, in a row
    before = at - 1
    while before >= max(at - 4, begin):
        num_signs += data[before] == 0x2B or (data[before] == 0x8B and before - 1 >= begin and data[before - 1] == 0xBC)
        before -= 1
    end = cursor = at
    while cursor < stop and gap <= _MAX_GAP:
        kind = classes[data[cursor]]
        sign = _ascii(data, cursor, stop, kind)
        size = 3 if kind & (_FULL | _GENERAL) else 1
        if _is_digit(sign):
            num_digits += 1
            longest_chain = max(chain, longest_chain)
            gap = 0
            end = cursor + size
        elif sign and (sign < 128 and classes[sign] & _JOIN):
            chain = chain + 1 if sign == 0x2E and gap == 0 else 0
            gap += 1
            num_signs += sign == 0x2B
        else:
            if sign in (0x58, 0x78) and gap == 0 and num_digits >= 17:  # the check character of an identity number
                end = cursor + size
            break
        cursor += size
    if num_digits >= _PHONE_DIGITS or longest_chain >= 3 or (num_signs and num_digits >= _SIGNED_DIGITS):
        marks = (WIDE if num_digits >= _CARD_DIGITS else 0) | (LONG if num_digits >= _PHONE_DIGITS else 0)
        marks |= (DOTTED if longest_chain >= 3 else 0) | (SIGNED if num_signs else 0)
        first = at
        for _ in range(4):
            first = _before(data, first, begin)
        found, count = _add(found, count, row, NUMBER | marks, first - begin, _whole(data, end + _EXTENSION_BYTES, stop) - begin)
    return found, count, end


@njit(cache=True, nogil=True)
def _before(data: Any, at: Any, begin: Any) -> Any:
    """Start of the character before ``at``."""
    at = max(at - 1, begin)
    while at > begin and data[at] & 0xC0 == 0x80:
        at -= 1
    return at


@njit(cache=True, nogil=True)
def _add_ipv6(data: Any, at: Any, begin: Any, stop: Any, row: Any, found: Any, count: Any) -> Any:
    """The run of hexadecimal digits, colons and dots around the colon at ``at``, if it could be an address; also returns where it ends."""
    start = at
    while start > begin and _is_address_byte(data[start - 1]):
        start -= 1
    end = at
    num_colons = num_digits = 0
    has_pair = False
    while end < stop and _is_address_byte(data[end]):
        num_colons += data[end] == 0x3A
        has_pair |= data[end] == 0x3A and end + 1 < stop and data[end + 1] == 0x3A
        end += 1
    for cursor in range(start, end):
        num_digits += _is_digit(data[cursor])
    if num_digits and (num_colons >= 7 or (has_pair and num_colons >= 2)) and end - start <= 64:
        found, count = _add(found, count, row, IPV6, start - begin, end - begin)
    return found, count, end


@njit(cache=True, nogil=True, inline="always")
def _is_address_byte(byte: Any) -> Any:
    return 0x30 <= byte <= 0x3A or byte == 0x2E or 0x41 <= byte <= 0x46 or 0x61 <= byte <= 0x66


@njit(cache=True, nogil=True)
def _opens_iban(data: Any, at: Any, begin: Any, stop: Any) -> Any:
    """Whether two capitals at the start of a word stand before the digit at ``at``, and another digit behind it."""
    if at - 2 < begin or at + 1 >= stop or not _is_digit(data[at + 1]):
        return False
    if not (0x41 <= data[at - 1] <= 0x5A and 0x41 <= data[at - 2] <= 0x5A):
        return False
    return at - 3 < begin or not _is_letter_or_digit(data[at - 3])


@njit(cache=True, nogil=True, inline="always")
def _is_letter_or_digit(byte: Any) -> Any:
    return 0x30 <= byte <= 0x39 or 0x41 <= byte <= 0x5A or 0x61 <= byte <= 0x7A


@njit(cache=True, nogil=True)
def _keyword(data: Any, at: Any, begin: Any) -> Any:
    """Where to look for the word before the ``:`` or ``=`` at ``at``; -1 if it does not end as one of the words that patterns.py knows.

    These are …word, …wd, …phrase, …cret, …key, …ken, and 密码, 口令, 密钥 (by their last two bytes).
    """
    last = at - 1
    while last > begin and at - last <= 3 and data[last] in (0x20, 0x22, 0x27, 0x5D):
        last -= 1
    if last - 2 < begin:
        return -1
    one, two, three = data[last - 2] | 0x20, data[last - 1] | 0x20, data[last] | 0x20
    latin = (two == 0x72 and three == 0x64) or (two == 0x77 and three == 0x64) or (one == 0x61 and two == 0x73 and three == 0x65)
    latin |= (one == 0x72 and two == 0x65 and three == 0x74) or (one == 0x6B and two == 0x65) or (two == 0x65 and three == 0x79)
    chinese = (data[last - 1] == 0xA0 and data[last] == 0x81) or (data[last - 1] == 0xBB and data[last] == 0xA4)
    chinese |= data[last - 1] == 0x92 and data[last] == 0xA5
    if not (latin or chinese):
        return -1
    first = max(last - 24, begin)
    return _whole(data, first, last)


@njit(cache=True, nogil=True)
def _add_blocks(data: Any, begin: Any, stop: Any, row: Any, found: Any, count: Any) -> Any:
    """A window from each ``-----BEGIN`` to the next. Looks at every fifth byte: five dashes always hold one of these."""
    at = begin + 4
    open_at = -1
    while at < stop:
        if data[at] != 0x2D:
            at += 5
            continue
        first = at
        while first > begin and data[first - 1] == 0x2D and at - first < 5:
            first -= 1
        behind = at
        while behind < stop and data[behind] == 0x2D:
            behind += 1
        if behind - first >= 5 and _is_begin(data, behind, stop):
            if open_at >= 0:
                found, count = _add_block(data, open_at, behind - 5, begin, row, found, count)
            open_at = behind - 5
        at = behind + 4
    return _add_block(data, open_at, stop, begin, row, found, count) if open_at >= 0 else (found, count)


@njit(cache=True, nogil=True)
def _add_block(data: Any, start: Any, stop: Any, begin: Any, row: Any, found: Any, count: Any) -> Any:
    return _add(found, count, row, KEY_BLOCK, start - begin, _whole(data, min(start + _BLOCK_BYTES, stop), stop) - begin)


@njit(cache=True, nogil=True)
def _is_begin(data: Any, at: Any, stop: Any) -> Any:
    if at + 5 > stop:
        return False
    return data[at] == 0x42 and data[at + 1] == 0x45 and data[at + 2] == 0x47 and data[at + 3] == 0x49 and data[at + 4] == 0x4E
