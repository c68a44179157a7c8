"""FineWeb's rules, as datatrove runs them, and their counterparts for unspaced script (a letter is as wide as two and half a word).

Source: Penedo et al. 2024, arXiv 2406.17557, section 3.6.
"""

import numpy as np

from pipelines.steps.rules.columns import (
    NUM_ALL_LINES,
    NUM_CHARS,
    NUM_ENDED_LINES,
    NUM_HALVES,
    NUM_SHORT_LINES,
    NUM_TEXT_LINES,
    REPEATED_LINE_CHARS,
)
from pipelines.steps.rules.gopher import Masks
from pipelines.steps.rules.headrace import Counts, ratio
from schemas.settings_quality import FineWebSettings


def broken_fineweb(counts: Counts, settings: FineWebSettings) -> Masks:
    """Which documents break which rule."""
    column = counts.T
    lines, newlines = column[NUM_TEXT_LINES], np.maximum(column[NUM_ALL_LINES] - 1, 0)
    return {
        "empty": lines == 0,
        "line_punctuation": ratio(column[NUM_ENDED_LINES], lines) < settings.min_line_punctuation_ratio,
        "short_lines": ratio(column[NUM_SHORT_LINES], lines) > settings.max_short_line_ratio,
        "duplicate_chars": ratio(column[REPEATED_LINE_CHARS], column[NUM_CHARS] - newlines) > settings.max_duplicate_char_ratio,
        "newlines": 2 * newlines / np.maximum(column[NUM_HALVES], 1) > settings.max_newline_ratio,
    }
