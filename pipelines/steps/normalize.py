"""One canonical spelling of every text, so that equal documents have equal bytes.

In this order: (0) terminal output becomes what its reader saw (terminal.py); (1) mojibake is undone on the lines that show it
(mojibake.py); (2) one pass over the UTF-8 bytes: every line end is
``\\n``, other spaces become U+0020, controls and characters without a shape go, joiners stay where a script or an emoji needs them,
spaces at line ends go, but for two within a paragraph, which are Markdown's line break; one space before the first line goes, other
indentation stays; no two blank lines in a row, none at either end; (3) Unicode NFC (UAX #15). Repeated while (1) still finds something.

Texts that are canonical already, which one look at the bytes shows (canonical.py), skip all of it and keep their buffers.

Invariant: idempotent and deterministic, and no text gets longer in (1) or (2). Cost on one core: 300 MB/s and more for canonical text, else about 60.
NFC is Polars' (linear; pyarrow's utf8_normalize is quadratic in a run of combining marks: 1 s for 80 KB of them).
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
from numba import njit

from pipelines.steps.canonical import are_canonical
from pipelines.steps.mojibake import find_mojibake
from pipelines.steps.terminal import as_seen
from pipelines.text.buffers import Source, large_strings, utf8_views
from pipelines.text.characters import (
    BLACK_FLAG,
    BLANK,
    CONTROL,
    EMOJI,
    HIDDEN,
    JOINER,
    JOINING,
    NEWLINE,
    SELECTOR,
    SPACE,
    TAG,
    ZWJ,
    character_flags,
    code_point_at,
)

_NOT_SHOWN = CONTROL | HIDDEN
_WHITE = SPACE | BLANK | NEWLINE
_SPACE_BYTE = np.array([0x20], np.uint8)


class Normalized(NamedTuple):
    """The texts, and what the quality rules cannot see in them any more."""

    texts: pa.Array
    """large_string [n], no nulls."""
    num_controls: npt.NDArray[np.int64]
    """Control characters that were removed, int64 [n]."""


def normalize(texts: pa.Array) -> Normalized:
    """Normalize each text of a ``string`` or ``large_string`` array; a null becomes an empty text."""
    texts = texts.cast(pa.large_string())
    if texts.null_count:
        texts = texts.fill_null("")
    num_controls = np.zeros(len(texts), np.int64)
    rows = np.flatnonzero(~are_canonical(*utf8_views(texts)))
    if len(rows):
        changed = _normalize_slowly(texts.take(pa.array(rows)))
        num_controls[rows] = changed.num_controls
        texts = _with_rows(texts, rows, changed.texts)
    return Normalized(texts, num_controls)


def _normalize_slowly(texts: pa.Array) -> Normalized:
    """Texts of which some rule may say something."""
    texts, num_controls = _one_round(_repaired(as_seen(texts)))
    # Taking out a character can bring the two halves of a mojibake sequence together: each round shortens the text, so this ends.
    while len(rows := find_mojibake(texts)[0]):
        again, more_controls = _one_round(_repaired(texts.take(pa.array(rows))))
        num_controls[rows] += more_controls
        texts = _with_rows(texts, rows, again)
    return Normalized(texts, num_controls)


def _repaired(texts: pa.Array) -> pa.Array:
    rows, repaired = find_mojibake(texts)
    return _with_rows(texts, rows, repaired) if len(rows) else texts


def _with_rows(texts: pa.Array, rows: npt.NDArray[np.int64], replacements: pa.Array) -> pa.Array:
    source = np.arange(len(texts))
    source[rows] = len(texts) + np.arange(len(rows))
    return pa.concat_arrays([texts, replacements]).take(pa.array(source))


def _one_round(texts: pa.Array) -> Normalized:
    data, offsets = utf8_views(texts)
    out, out_offsets, num_controls = _rewrite_all(Source(data, character_flags()), offsets)
    texts = large_strings(out, out_offsets)
    rows = np.flatnonzero(~are_canonical(out, out_offsets))  # those of which the rewriting has not shown that they are NFC
    if len(rows):
        composed = pl.from_arrow(texts.take(pa.array(rows)))
        assert isinstance(composed, pl.Series)
        texts = _with_rows(texts, rows, composed.str.normalize("NFC").to_arrow().cast(pa.large_string()))
    return Normalized(texts, num_controls)


@njit(cache=True, nogil=True)
def _rewrite_all(source: Any, offsets: Any) -> Any:
    n = len(offsets) - 1
    out = np.empty(offsets[n] - offsets[0], np.uint8)
    out_offsets = np.zeros(n + 1, np.int64)
    num_controls = np.zeros(n, np.int64)
    for i in range(n):
        out_offsets[i + 1], num_controls[i] = _rewrite(source, offsets[i], offsets[i + 1], out, out_offsets[i])
    return out[: out_offsets[n]], out_offsets, num_controls


@njit(cache=True, nogil=True)
def _rewrite(source: Any, at: Any, stop: Any, out: Any, start: Any) -> Any:
    """Rewrite one text into ``out[start:]``; returns where it ends there, and how many controls were dropped.

    ``end`` is the end of the last visible character, ``cursor`` where the next one goes: between them lie the line ends and the
    indentation that become real only if something visible follows.
    """
    data, flags = source
    cursor = end = start
    num_controls = num_breaks = num_kept = 0
    before = np.int64(0)  # the code point last written
    while at < stop:
        if 0x20 < data[at] < 0x7F:
            cursor = _first_cursor(out, start, end, cursor)
            while at < stop and 0x20 < data[at] < 0x7F:
                out[cursor] = data[at]
                cursor += 1
                at += 1
            end, num_breaks, before = cursor, 0, np.int64(data[at - 1])
            continue
        code, size = code_point_at(data, at)
        kind = flags[code]
        if kind & NEWLINE:
            if code != 0x0A or before != 0x0D or data[at - 1] != 0x0D:  # the LF of CR LF has been counted
                num_breaks += 1
                num_kept = _line_break_spaces(out, end, cursor) if num_breaks == 1 and end > start else 0
            cursor = end + num_kept
            if end > start:
                for _ in range(min(num_breaks, 2)):
                    out[cursor] = 0x0A
                    cursor += 1
            before = code
        elif kind & (SPACE | BLANK):
            cursor = _copy(_SPACE_BYTE, 0, 1, out, cursor) if kind & BLANK else _copy(data, at, size, out, cursor)
            before = np.int64(0x20)
        elif _is_kept(code, before, _code_point_behind(data, at + size, stop, kind), flags):
            cursor = end = _copy(data, at, size, out, _first_cursor(out, start, end, cursor))
            num_breaks = 0
            before = code
        elif kind & CONTROL:
            num_controls += 1
        at += size
    return end, num_controls


@njit(cache=True, nogil=True)
def _first_cursor(out: Any, start: Any, end: Any, cursor: Any) -> Any:
    """Where a visible character goes: of the first one's indentation, a single space is not kept."""
    return start if end == start and cursor == start + 1 and out[start] == 0x20 else cursor


@njit(cache=True, nogil=True)
def _line_break_spaces(out: Any, end: Any, cursor: Any) -> Any:
    """How many spaces stay at a line's end: two, which are there, or none."""
    if cursor - end < 2 or out[cursor - 1] != 0x20 or out[cursor - 2] != 0x20:
        return 0
    out[end] = out[end + 1] = 0x20
    return 2


@njit(cache=True, nogil=True, inline="always")
def _copy(data: Any, at: Any, size: Any, out: Any, cursor: Any) -> Any:
    for k in range(size):
        out[cursor + k] = data[at + k]
    return cursor + size


@njit(cache=True, nogil=True)
def _code_point_behind(data: Any, at: Any, stop: Any, kind: Any) -> Any:
    """What follows a joiner; 0 at the end of the text. Nobody asks what follows other characters."""
    return code_point_at(data, at)[0] if kind & JOINER and at < stop else 0


@njit(cache=True, nogil=True)
def _is_kept(code: Any, before: Any, after: Any, flags: Any) -> Any:
    """Whether a character that is not white space stays, given the one before it in the output and the one after it in the input."""
    kind = flags[code]
    if kind & _NOT_SHOWN:
        return False
    if kind & JOINER:
        return _joins(code, before, after, flags)
    if kind & SELECTOR:
        return before != 0 and not flags[before] & (SELECTOR | _WHITE | JOINER)
    if kind & TAG:
        return before == BLACK_FLAG or flags[before] & TAG != 0
    return True


@njit(cache=True, nogil=True)
def _joins(code: Any, before: Any, after: Any, flags: Any) -> Any:
    """ZWNJ and ZWJ say something between or behind letters of joining scripts; ZWJ also between two parts of an emoji."""
    if flags[before] & JOINING:
        return flags[after] & JOINING != 0 or (code == ZWJ and (after == 0 or not flags[after] & (JOINER | _NOT_SHOWN | SELECTOR | TAG)))
    glues = code == ZWJ and flags[after] & EMOJI != 0
    return glues and (flags[before] & (EMOJI | SELECTOR) != 0)
