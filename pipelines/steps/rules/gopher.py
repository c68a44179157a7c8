"""Gopher's quality and repetition rules, as datatrove runs them, and their counterparts for unspaced script.

Source: Rae et al. 2021, arXiv 2112.11446, appendix A.1 and table A1. Two letters of unspaced script are a word; such text is not asked for a least
mean word length, a run of ellipsis characters is one ellipsis, and its stop words are single letters (particles, mostly).
Where a rule divides by words or lines and there are none, it does not fire.
"""

import numpy as np
import numpy.typing as npt

from pipelines.steps.rules.columns import (
    GRAM_CHARS,
    IS_UNSPACED,
    NUM_ALL_LINES,
    NUM_ALPHA_HALVES,
    NUM_BULLET_LINES,
    NUM_CHARS,
    NUM_ELLIPSES,
    NUM_ELLIPSIS_LINES,
    NUM_HALVES,
    NUM_HASHES,
    NUM_PARAGRAPHS,
    NUM_PLAIN_CHARS,
    NUM_PLAIN_HALVES,
    NUM_STOP_WORDS,
    NUM_TEXT_LINES,
    REPEATED_LINE_CHARS,
    REPEATED_LINES,
    REPEATED_PARAGRAPH_CHARS,
    REPEATED_PARAGRAPHS,
)
from pipelines.steps.rules.headrace import Counts, ratio
from schemas.settings_quality import GopherQualitySettings, GopherRepetitionSettings

Masks = dict[str, npt.NDArray[np.bool_]]

STOP_WORDS: dict[str, tuple[str, ...]] = {
    "en": ("the", "be", "to", "of", "and", "that", "have", "with"),
    "de": ("der", "die", "das", "und", "in", "zu", "nicht", "mit"),
    "fr": ("le", "la", "de", "et", "les", "des", "que", "est"),
    "es": ("el", "la", "de", "que", "y", "en", "los", "con"),
    "it": ("il", "la", "di", "che", "e", "in", "per", "con"),
    "pt": ("o", "a", "de", "que", "e", "do", "da", "para"),
    "nl": ("de", "het", "een", "en", "van", "in", "is", "met"),
    "sv": ("och", "att", "det", "som", "en", "i", "är", "med"),
    "pl": ("i", "w", "na", "z", "do", "się", "nie", "jest"),
    "cs": ("a", "v", "na", "se", "je", "že", "s", "do"),
    "ru": ("и", "в", "не", "на", "что", "с", "по", "для"),
    "zh": ("的", "是", "在", "了", "和", "不", "有", "一", "这", "這", "人", "我", "为", "為", "以", "中", "之", "也", "而", "其"),
    "ja": ("の", "に", "は", "を", "た", "が", "で", "と", "し", "て", "も"),
    "ko": ("이", "는", "을", "를", "의", "에", "가", "은", "다", "고"),
}
"""By language: words that any prose has. The English ones are Gopher's."""
STOP_LANGUAGES = list(STOP_WORDS)
"""In the order of their numbers, from 1."""


def broken_quality(counts: Counts, has_stop_words: npt.NDArray[np.bool_], settings: GopherQualitySettings) -> Masks:
    """Which documents break which quality rule; ``has_stop_words``: there is a list for its language."""
    column = counts.T
    words, plain = column[NUM_HALVES] / 2, column[NUM_PLAIN_HALVES] / 2
    mean_chars = column[NUM_PLAIN_CHARS] / np.maximum(plain, 0.5)
    spaced = column[IS_UNSPACED] == 0
    return {
        "too_few_words": plain < settings.min_words,
        "too_many_words": plain > settings.max_words,
        "mean_word_too_short": (mean_chars < settings.min_mean_word_chars) & spaced & (plain > 0),
        "mean_word_too_long": mean_chars > settings.max_mean_word_chars,
        "hashes": column[NUM_HASHES] / np.maximum(words, 0.5) > settings.max_symbol_word_ratio,
        "ellipses": column[NUM_ELLIPSES] / np.maximum(words, 0.5) > settings.max_symbol_word_ratio,
        "bullet_lines": ratio(column[NUM_BULLET_LINES], column[NUM_ALL_LINES]) > settings.max_bullet_line_ratio,
        "ellipsis_lines": ratio(column[NUM_ELLIPSIS_LINES], column[NUM_ALL_LINES]) > settings.max_ellipsis_line_ratio,
        "few_alpha_words": (ratio(column[NUM_ALPHA_HALVES], column[NUM_HALVES]) < settings.min_alpha_word_ratio) & (words > 0),
        "few_stop_words": (column[NUM_STOP_WORDS] < settings.min_stop_words) & has_stop_words,
    }


def broken_repetition(counts: Counts, settings: GopherRepetitionSettings) -> Masks:
    """Which documents break which repetition rule."""
    column = counts.T
    chars = column[NUM_CHARS]
    lines, paragraphs = column[NUM_TEXT_LINES], column[NUM_PARAGRAPHS]
    broken = {
        "empty": chars == 0,
        "duplicate_paragraphs": ratio(column[REPEATED_PARAGRAPHS], paragraphs) > settings.max_duplicate_paragraph_ratio,
        "duplicate_paragraph_chars": ratio(column[REPEATED_PARAGRAPH_CHARS], chars) > settings.max_duplicate_paragraph_char_ratio,
        "duplicate_lines": ratio(column[REPEATED_LINES], lines) > settings.max_duplicate_line_ratio,
        "duplicate_line_chars": ratio(column[REPEATED_LINE_CHARS], chars) > settings.max_duplicate_line_char_ratio,
    }
    for i, limit in enumerate(settings.max_top_ngram_char_ratios):
        broken[f"top_{i + 2}_gram"] = ratio(column[GRAM_CHARS + i], chars) > limit
    for i, limit in enumerate(settings.max_duplicate_ngram_char_ratios):
        broken[f"duplicate_{i + 5}_grams"] = ratio(column[GRAM_CHARS + 3 + i], chars) > limit
    return broken
