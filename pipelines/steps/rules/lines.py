"""Lines and paragraphs as Gopher's and FineWeb's rules see them.

Lines that repeat are compared exactly; a paragraph is what stands between empty lines. In text of unspaced script a letter is as wide as two,
quotation marks and the ellipsis may end a line, and more signs are bullets.
Source: Rae et al. 2021, arXiv 2112.11446, appendix A.1; Penedo et al. 2024, arXiv 2406.17557. Cost: about 3 ns per character.
"""

from typing import Any

import numpy as np
from numba import njit

from pipelines.steps.characters import UNSPACED
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

_DOT, _ELLIPSIS, _MIDDLE_ELLIPSIS, _HYPHEN, _ROUND_BULLET = 0x2E, 0x2026, 0x22EF, 0x2D, 0x2022


@njit(cache=True, nogil=True)
def count_lines(scratch: Any, num_lines: Any, is_unspaced: Any, short_chars: Any, counts: Any) -> None:
    """Fill the columns of lines; ``short_chars``: a line of no more is short."""
    mask = clear_table(scratch, num_lines)
    counts[NUM_ALL_LINES] = num_lines
    for line in range(num_lines):
        start, stop = scratch.starts[line], scratch.stops[line]
        digest, width = _hash_line(scratch, start, stop)
        scratch.lines[line] = digest
        first, last = trimmed(scratch, start, stop)
        if first == last:
            continue
        is_new = enter(scratch, mask, digest)[1]
        counts[NUM_TEXT_LINES] += 1
        counts[REPEATED_LINES] += not is_new
        counts[REPEATED_LINE_CHARS] += 0 if is_new else stop - start
        counts[NUM_SHORT_LINES] += (width if is_unspaced else stop - start) <= short_chars
        counts[NUM_ENDED_LINES] += (scratch.kinds[stop - 1] & (TERMINAL | CLOSING if is_unspaced else TERMINAL)) != 0
        counts[NUM_BULLET_LINES] += _is_bullet(scratch, first, is_unspaced)
        counts[NUM_ELLIPSIS_LINES] += ends_in_ellipsis(scratch, first, last, is_unspaced)


@njit(cache=True, nogil=True)
def _hash_line(scratch: Any, start: Any, stop: Any) -> Any:
    digest = FNV_OFFSET
    width = stop - start
    for k in range(start, stop):
        digest = mixed(digest, scratch.codes[k])
        width += (scratch.kinds[k] & UNSPACED) != 0
    return digest, width


@njit(cache=True, nogil=True)
def trimmed(scratch: Any, start: Any, stop: Any) -> Any:
    """The range without the white space at its ends."""
    while start < stop and scratch.kinds[start] & WHITE:
        start += 1
    while stop > start and scratch.kinds[stop - 1] & WHITE:
        stop -= 1
    return start, stop


@njit(cache=True, nogil=True)
def _is_bullet(scratch: Any, first: Any, is_unspaced: Any) -> Any:
    code = scratch.codes[first]
    return code in (_HYPHEN, _ROUND_BULLET) or (is_unspaced and (scratch.kinds[first] & BULLET) != 0)


@njit(cache=True, nogil=True)
def ends_in_ellipsis(scratch: Any, first: Any, last: Any, is_unspaced: Any) -> Any:
    """Whether the trimmed line ends with three dots or an ellipsis character."""
    codes = scratch.codes
    if codes[last - 1] == _ELLIPSIS or (is_unspaced and codes[last - 1] == _MIDDLE_ELLIPSIS):
        return True
    return last - first >= 3 and codes[last - 1] == _DOT and codes[last - 2] == _DOT and codes[last - 3] == _DOT


@njit(cache=True, nogil=True)
def count_paragraphs(scratch: Any, num_lines: Any, counts: Any) -> None:
    """Fill the columns of paragraphs; count_lines filled the lines' hashes."""
    mask = clear_table(scratch, num_lines)
    line = 0
    while line < num_lines:
        if scratch.starts[line] == scratch.stops[line]:
            line += 1
            continue
        first = line
        digest = FNV_OFFSET
        while line < num_lines and scratch.starts[line] < scratch.stops[line]:
            digest = mixed(digest, scratch.lines[line])
            line += 1
        is_new = enter(scratch, mask, digest ^ np.uint64(line - first))[1]
        counts[NUM_PARAGRAPHS] += 1
        counts[REPEATED_PARAGRAPHS] += not is_new
        counts[REPEATED_PARAGRAPH_CHARS] += 0 if is_new else scratch.stops[line - 1] - scratch.starts[first]
