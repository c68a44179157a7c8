"""Lines and paragraphs as Gopher's and FineWeb's rules see them.

Lines that repeat are compared exactly; a paragraph is what stands between empty lines. In text of unspaced script a letter is as wide as two,
quotation marks and the ellipsis may end a line, and more signs are bullets.
Source: Rae et al. 2021, arXiv 2112.11446, appendix A.1; Penedo et al. 2024, arXiv 2406.17557. Cost: about 3 ns per character.
"""

from typing import Any

import numpy as np
from numba import njit

from pipelines.steps.rules.columns import (
    NUM_ALL_LINES,
    NUM_BULLET_LINES,
    NUM_ELLIPSIS_LINES,
    NUM_ENDED_LINES,
    NUM_PARAGRAPHS,
    NUM_SHORT_LINES,
    NUM_TEXT_LINES,
    REPEATED_LINE_CHARS,
    REPEATED_LINES,
    REPEATED_PARAGRAPH_CHARS,
    REPEATED_PARAGRAPHS,
)
from pipelines.steps.rules.marks import BULLET, CLOSING, TERMINAL, WHITE
from pipelines.steps.rules.scratch import FNV_OFFSET, clear_table, enter, mixed
from pipelines.text.characters import UNSPACED

_DOT, _ELLIPSIS, _MIDDLE_ELLIPSIS, _HYPHEN, _ROUND_BULLET = 0x2E, 0x2026, 0x22EF, 0x2D, 0x2022


@njit(cache=True, nogil=True)
def count_lines(scratch: Any, num_lines: Any, is_unspaced: Any, short_chars: Any, counts: Any) -> None:
    """Fill the columns of lines, after hash_lines; ``short_chars``: a line of no more is short."""
    mask = clear_table(scratch, num_lines)
    codes, kinds, keys, slot_counts = scratch.codes, scratch.kinds, scratch.keys, scratch.counts
    starts, stops, tops, ends, lines = scratch.starts, scratch.stops, scratch.tops, scratch.ends, scratch.lines
    counts[NUM_ALL_LINES] = num_lines
    endings = TERMINAL | CLOSING if is_unspaced else TERMINAL
    for line in range(num_lines):
        start, stop, first, last = starts[line], stops[line], tops[line], ends[line]
        if first == last:
            continue
        is_new = enter(keys, slot_counts, mask, mixed(lines[line], first - start))[1]
        counts[NUM_TEXT_LINES] += 1
        counts[REPEATED_LINES] += not is_new
        counts[REPEATED_LINE_CHARS] += 0 if is_new else stop - start
        counts[NUM_SHORT_LINES] += (_width(kinds, start, stop) if is_unspaced else stop - start) <= short_chars
        counts[NUM_ENDED_LINES] += (kinds[last - 1] & endings) != 0
        counts[NUM_BULLET_LINES] += _is_bullet(codes[first], kinds[first], is_unspaced)
        counts[NUM_ELLIPSIS_LINES] += ends_in_ellipsis(codes, first, last, is_unspaced)


@njit(cache=True, nogil=True)
def hash_lines(scratch: Any, num_lines: Any) -> None:
    """Fill ``lines``, ``tops`` and ``ends``: a line's hash and its range without the white space at its ends.

    Four hashes side by side: one alone would wait for its own multiplications."""
    codes, kinds, lines = scratch.codes, scratch.kinds, scratch.lines
    starts, stops, tops, ends = scratch.starts, scratch.stops, scratch.tops, scratch.ends
    for line in range(num_lines):
        first, last = trimmed(kinds, starts[line], stops[line])
        tops[line], ends[line] = first, last
        a, b, c, d = FNV_OFFSET, FNV_OFFSET, FNV_OFFSET, np.uint64(last - first)
        while first + 4 <= last:
            a, b = mixed(a, codes[first]), mixed(b, codes[first + 1])
            c, d = mixed(c, codes[first + 2]), mixed(d, codes[first + 3])
            first += 4
        while first < last:
            a = mixed(a, codes[first])
            first += 1
        lines[line] = mixed(mixed(mixed(a, b), c ^ c >> np.uint64(31)), d ^ d >> np.uint64(33))


@njit(cache=True, nogil=True)
def _width(kinds: Any, start: Any, stop: Any) -> Any:
    width = stop - start
    for k in range(start, stop):
        width += (kinds[k] & UNSPACED) != 0
    return width


@njit(cache=True, nogil=True)
def trimmed(kinds: Any, start: Any, stop: Any) -> Any:
    """The range without the white space at its ends."""
    while start < stop and kinds[start] & WHITE:
        start += 1
    while stop > start and kinds[stop - 1] & WHITE:
        stop -= 1
    return start, stop


@njit(cache=True, nogil=True)
def _is_bullet(code: Any, kind: Any, is_unspaced: Any) -> Any:
    return code == _HYPHEN or code == _ROUND_BULLET or (is_unspaced and (kind & BULLET) != 0)  # noqa: PLR1714 (Numba: a tuple is slower)


@njit(cache=True, nogil=True)
def ends_in_ellipsis(codes: Any, first: Any, last: Any, is_unspaced: Any) -> Any:
    """Whether the trimmed line ends with three dots or an ellipsis character."""
    if codes[last - 1] == _ELLIPSIS or (is_unspaced and codes[last - 1] == _MIDDLE_ELLIPSIS):
        return True
    return last - first >= 3 and codes[last - 1] == _DOT and codes[last - 2] == _DOT and codes[last - 3] == _DOT


@njit(cache=True, nogil=True)
def count_paragraphs(scratch: Any, num_lines: Any, counts: Any) -> None:
    """Fill the columns of paragraphs; hash_lines filled the lines' hashes."""
    mask = clear_table(scratch, num_lines)
    line = 0
    while line < num_lines:
        if scratch.starts[line] == scratch.stops[line]:
            line += 1
            continue
        first = line
        digest = FNV_OFFSET
        while line < num_lines and scratch.starts[line] < scratch.stops[line]:
            digest = mixed(mixed(digest, scratch.lines[line]), scratch.tops[line] - scratch.starts[line])
            line += 1
        is_new = enter(scratch.keys, scratch.counts, mask, digest ^ np.uint64(line - first))[1]
        counts[NUM_PARAGRAPHS] += 1
        counts[REPEATED_PARAGRAPHS] += not is_new
        counts[REPEATED_PARAGRAPH_CHARS] += 0 if is_new else scratch.stops[line - 1] - scratch.starts[first]
