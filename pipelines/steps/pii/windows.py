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
Full-width forms (``＠``, ``：``, ``１``) count as their ASCII ones. Cost: 200 MB/s on one core.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from pipelines.text.buffers import Utf8

EMAIL, NUMBER, IPV6, IBAN, TOKEN, ASSIGNMENT, KEY_BLOCK = (1 << bit for bit in range(7))
WIDE, DOTTED, SIGNED, LONG = 1 << 7, 1 << 8, 1 << 9, 1 << 10
"""Marks on NUMBER windows: 14 digits or more; three dots or more; a plus sign; 10 digits or more."""

_TOKEN_CHARS, _EMAIL_BYTES, _IBAN_BYTES, _VALUE_BYTES, _BLOCK_BYTES, _EXTENSION_BYTES = 16, 400, 48, 200, 16_384, 16
_PHONE_DIGITS, _SIGNED_DIGITS, _CARD_DIGITS = 10, 8, 14
_MAX_GAP = 3
"""Characters other than digits between two digits of one number: as in ``+49 (0)30`` and ``(010) 8888``, at most."""

_MERGED = ASSIGNMENT  # the largest of the kinds whose overlapping windows become one

_WORD, _JOIN, _SIGN, _FULL, _GENERAL = 1, 2, 4, 8, 16
"""Classes of bytes: of a word; between the digits of a number; what ``_next_sign`` looks for; first of a full-width form; of a dash or space."""
_KEY_PAIRS = np.frombuffer(b"A3AKASARAIABACghgiglxoxaGOyaskrkhfnppydoSGLTey", ">u2").astype(np.int64)
"""The first two letters of the keys in patterns.py, as numbers."""
_BEGIN = np.frombuffer(b"BEGIN", np.uint8)
_AT_SIGN, _COLON, _EQUALS, _HYPHEN = 0x40, 0x3A, 0x3D, 0x2D


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


class _Text(NamedTuple):
    """One document for the kernels."""

    data: npt.NDArray[np.uint8]
    begin: int
    stop: int
    classes: npt.NDArray[np.uint8]


class _Found(NamedTuple):
    """Windows so far, their positions in the bytes of the batch."""

    windows: npt.NDArray[np.int64]
    """int64 [capacity, 4]: row, kind, start, stop."""
    latest: npt.NDArray[np.int64]
    """At 0 how many there are (more than the capacity: too many); at each kind that is merged its last window in this document."""


def _classes() -> npt.NDArray[np.uint8]:
    table = np.zeros(256, np.uint8)
    for byte in range(128):
        char = chr(byte)
        table[byte] |= _WORD * (char.isalnum() or char in "_-")
        table[byte] |= _JOIN * (char in " .-()+/")
        table[byte] |= _SIGN * (char.isdigit() or char in "@:=")
    table[0xEF] |= _FULL  # U+F000 to U+FFFF: the full-width forms among others
    table[0xE2] |= _GENERAL  # U+2000 to U+2FFF: the dashes and the minus sign among others
    table[0xE3] |= _GENERAL  # U+3000 to U+3FFF: the ideographic space, and the kana prolongation mark, which serves as a dash, among others
    table.flags.writeable = False
    return table


_CLASSES = _classes()


def find_windows(texts: Utf8, wanted: int) -> Windows:
    """The windows of the wanted kinds (a sum of them)."""
    has_block = _rows_with_blocks(texts) if wanted & KEY_BLOCK else np.zeros(len(texts.offsets) - 1, np.bool_)
    wanted_now = np.int64(wanted - (KEY_BLOCK if wanted & KEY_BLOCK and not has_block.any() else 0))
    capacity = int(texts.offsets[-1] - texts.offsets[0]) // 256 + 1024
    while True:
        found = _Found(np.empty((capacity, 4), np.int64), np.zeros(_MERGED + 1, np.int64))
        _scan_all(texts, _CLASSES, wanted_now, has_block, found)
        if found.latest[0] <= capacity:
            break
        capacity = int(found.latest[0])  # far more numbers than text: once more with room for all
    rows, kinds, starts, stops = found.windows[: found.latest[0]].T
    begins = texts.offsets[rows]
    return Windows(rows, kinds, starts - begins, stops - begins)


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
def _scan_all(texts: Any, classes: Any, wanted: Any, has_block: Any, found: Any) -> None:
    for row in range(len(texts.offsets) - 1):
        found.latest[1:] = -1
        text = _Text(texts.data, texts.offsets[row], texts.offsets[row + 1], classes)
        _scan(text, row, wanted, found)
        if wanted & TOKEN:
            _add_tokens(text, row, found)
        if wanted & KEY_BLOCK and has_block[row]:
            _add_blocks(text, row, found)


@njit(cache=True, nogil=True)
def _scan(text: Any, row: Any, wanted: Any, found: Any) -> None:
    """One document, without long words and key blocks. ``number_end`` and ``ipv6_end``: up to where these have been looked at."""
    data, begin, stop, classes = text
    number_end = ipv6_end = begin
    at = _next_sign(data, begin, stop, classes)
    while at < stop:
        sign = _ascii(data, at, stop, classes[data[at]])
        following = at + 1
        if _is_digit(sign):
            if wanted & IBAN and _opens_iban(data, at, begin, stop):
                _extend(found, row, IBAN, _before(data, at - 2, begin), _whole(data, at + _IBAN_BYTES, stop))
            if wanted & NUMBER and at >= number_end:
                following = number_end = _add_number(text, at, row, found)
        elif sign == _AT_SIGN and wanted & EMAIL:
            _extend(found, row, EMAIL, _whole(data, max(at - _EMAIL_BYTES, begin), stop), _whole(data, at + _EMAIL_BYTES, stop))
        elif sign in (_COLON, _EQUALS):
            first = _keyword(data, at, begin)
            if wanted & ASSIGNMENT and first >= 0:
                _extend(found, row, ASSIGNMENT, first, _whole(data, at + _VALUE_BYTES, stop))
            if wanted & IPV6 and data[at] == _COLON and at >= ipv6_end:
                ipv6_end = _add_ipv6(text, at, row, found)
        at = _next_sign(data, following, stop, classes)


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
def _add_tokens(text: Any, row: Any, found: Any) -> None:
    """Windows around long words. Looks at every sixteenth byte first: such a word always holds one of these."""
    data, begin, stop, classes = text
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
            _add_token(text, start, end, row, found)
        at += ((end - at) // _TOKEN_CHARS + 1) * _TOKEN_CHARS


@njit(cache=True, nogil=True)
def _add(found: Any, row: Any, kind: Any, start: Any, stop: Any) -> None:
    """Append a window; without room for it, count it."""
    windows, latest = found
    count = latest[0]
    if count < len(windows):
        windows[count, 0], windows[count, 1], windows[count, 2], windows[count, 3] = row, kind, start, stop
    latest[0] = count + 1


@njit(cache=True, nogil=True)
def _extend(found: Any, row: Any, kind: Any, start: Any, stop: Any) -> None:
    """Append a window, or let the last one of its kind in this document grow if they overlap: no byte is looked at twice."""
    windows, latest = found
    before = latest[kind]
    if 0 <= before < len(windows) and windows[before, 3] >= start:
        windows[before, 3] = stop
        return
    latest[kind] = latest[0]
    _add(found, row, kind, start, stop)


@njit(cache=True, nogil=True)
def _opens_key(data: Any, start: Any, begin: Any) -> Any:
    """Whether the word begins as one of the keys in patterns.py, or stands behind ``SG.``, ``ya29.`` or the digits and the colon of a bot's token."""
    if start - 2 >= begin and data[start - 1] in (0x2E, 0x3A) and (data[start - 2] == 0x47 or 0x30 <= data[start - 2] <= 0x39):
        return True
    pair = np.int64(data[start]) << 8 | data[start + 1]
    return (pair == _KEY_PAIRS).any()


@njit(cache=True, nogil=True)
def _add_token(text: Any, start: Any, end: Any, row: Any, found: Any) -> None:
    """The word, what ``.`` and ``:`` join to it, and one character on either side; nothing if an earlier window has it."""
    data, begin, stop, _ = text
    before = found.latest[TOKEN]
    if 0 <= before < len(found.windows) and found.windows[before, 3] >= end:
        return
    while start > begin and (_is_letter_or_digit(data[start - 1]) or data[start - 1] in (0x2D, 0x2E, 0x3A, 0x5F)):
        start -= 1
    while end < stop and (_is_letter_or_digit(data[end]) or data[end] in (0x2D, 0x2E, 0x3A, 0x5F)):
        end += 1
    _extend(found, row, TOKEN, _before(data, start, begin), _whole(data, end + 1, stop))


@njit(cache=True, nogil=True)
def _whole(data: Any, at: Any, stop: Any) -> Any:
    """``at``, or where the character that it would cut ends."""
    while at < stop and data[at] & 0xC0 == 0x80:
        at += 1
    return min(at, stop)


@njit(cache=True, nogil=True, inline="always")
def _ascii(data: Any, at: Any, stop: Any, kind: Any) -> Any:
    """The ASCII byte, or that of a full-width form, that the character at ``at`` stands for; 0 for any other character."""
    if not kind & (_FULL | _GENERAL):
        return np.int64(data[at])
    if at + 2 >= stop:
        return 0
    if kind & _GENERAL:
        code = np.int64(data[at]) << 16 | np.int64(data[at + 1]) << 8 | data[at + 2]
        return 0x20 if code == 0xE38080 else 0x2D if 0xE28090 <= code <= 0xE28095 or code in (0xE28892, 0xE383BC) else 0
    if data[at + 1] == 0xBC and data[at + 2] >= 0x81:
        return np.int64(data[at + 2]) - 0x60  # U+FF01..U+FF3F -> 0x21..0x5F
    return 0


@njit(cache=True, nogil=True, inline="always")
def _is_digit(sign: Any) -> Any:
    return 0x30 <= sign <= 0x39


@njit(cache=True, nogil=True)
def _add_number(text: Any, at: Any, row: Any, found: Any) -> Any:
    """The number run that begins with the digit at ``at``, as a window if it has digits enough; returns where it ends.

    The window begins up to four characters before the digit, so that ``+``, ``(`` and the character before them are seen.
    """
    data, begin, stop, classes = text
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
        _add(found, row, NUMBER | marks, first, _whole(data, end + _EXTENSION_BYTES, stop))
    return end


@njit(cache=True, nogil=True)
def _before(data: Any, at: Any, begin: Any) -> Any:
    """Start of the character before ``at``."""
    at = max(at - 1, begin)
    while at > begin and data[at] & 0xC0 == 0x80:
        at -= 1
    return at


@njit(cache=True, nogil=True)
def _add_ipv6(text: Any, at: Any, row: Any, found: Any) -> Any:
    """The run of hexadecimal digits, colons and dots around the colon at ``at``, if it could be an address; returns where it ends."""
    data, begin, stop, _ = text
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
        _add(found, row, IPV6, start, end)
    return end


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

    These are …word, …wd, …phrase, …pass, …cret, …key, …ken, and 密码, 口令, 密钥 (by their last two bytes).
    """
    last = at - 1
    while last > begin and at - last <= 3 and data[last] in (0x20, 0x22, 0x27, 0x5D):
        last -= 1
    if last - 2 < begin:
        return -1
    one, two, three = data[last - 2] | 0x20, data[last - 1] | 0x20, data[last] | 0x20
    latin = (two == 0x72 and three == 0x64) or (two == 0x77 and three == 0x64) or (one == 0x61 and two == 0x73 and three in (0x65, 0x73))
    latin |= (one == 0x72 and two == 0x65 and three == 0x74) or (one == 0x6B and two == 0x65) or (two == 0x65 and three == 0x79)
    chinese = (data[last - 1] == 0xA0 and data[last] == 0x81) or (data[last - 1] == 0xBB and data[last] == 0xA4)
    chinese |= data[last - 1] == 0x92 and data[last] == 0xA5
    return _whole(data, max(last - 24, begin), last) if latin or chinese else -1


@njit(cache=True, nogil=True)
def _add_blocks(text: Any, row: Any, found: Any) -> None:
    """A window from each ``-----BEGIN`` to the next, or of 16 KiB. Looks at every fifth byte: five dashes always hold one of these."""
    data, begin, stop, _ = text
    open_at = -1
    at = begin + 4
    while at < stop:
        if data[at] != _HYPHEN:
            at += 5
            continue
        while at < stop and data[at] == _HYPHEN:
            at += 1
        start = at - 5
        if _is_begin(data, at, stop) and start >= begin and data[start] == _HYPHEN:
            if open_at >= 0:
                _add(found, row, KEY_BLOCK, open_at, _whole(data, min(open_at + _BLOCK_BYTES, start), stop))
            open_at = start
        at += 4
    if open_at >= 0:
        _add(found, row, KEY_BLOCK, open_at, _whole(data, min(open_at + _BLOCK_BYTES, stop), stop))


@njit(cache=True, nogil=True)
def _is_begin(data: Any, at: Any, stop: Any) -> Any:
    return at + 5 <= stop and (data[at : at + 5] == _BEGIN).all()
