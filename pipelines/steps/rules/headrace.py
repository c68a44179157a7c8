"""Headrace's own rules: length, characters, repetition, boilerplate, code and logs. Made to reject no good prose of any script.

A text is judged by the first rule that it breaks; their names have no set before them.

| rule | rejects | source |
|---|---|---|
| ``replacement_chars`` | U+FFFD and control characters: decoded wrongly upstream | FineWeb |
| ``too_short`` | fewer words than ``min_words`` | Gopher, table A1 |
| ``mean_word_length`` | base64, minified code | Gopher (10 characters; ours is for documents with code and links in them) |
| ``few_letters`` | few letters (any script) among the visible characters | Gopher (share of alphabetic words) |
| ``symbols`` | ``#``, ellipses, box drawing, private use … | Gopher (symbol-to-word ratio) |
| ``emoji`` | hardly anything but emoji | |
| ``duplicate_lines``, ``duplicate_line_chars`` | repeated lines, by number and by characters | Gopher, table A1 |
| ``top_ngram`` | one word 2-gram covers much of the text | Gopher, table A1 |
| ``boilerplate`` | cookie banners, JavaScript notices, navigation lists, filler text | C4's line rules, for whole documents |
| ``code``, ``log`` | source code, minified code; lines that begin with a time (both only if the settings say so) | |
Gopher: Rae et al. 2021, arXiv 2112.11446; FineWeb: Penedo et al. 2024, arXiv 2406.17557.

Words are Unicode words (words.py). Two letters of an unspaced script weigh as much as one spaced word in a 2-gram. Emoji are neutral: no word,
no letter, no symbol. Lines without a letter or digit (``}``, ``---``) do not count as repeated. Boilerplate are short lines with one of
phrases.BOILERPLATE in them, and up to three lines of links parted by bars; more are a table.
Cost: about 9 ns per character.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from pipelines.steps.characters import DIGIT, EMOJI, JOINER, LETTER, NEWLINE, REPLACEMENT, SELECTOR, SPACE, SYMBOL, TAG, UNSPACED
from pipelines.steps.rules.columns import (
    BOILERPLATE_BYTES,
    CODE_BYTES,
    IS_UNSPACED,
    LOG_BYTES,
    NUM_CHARS,
    NUM_DUPLICATE_LINE_BYTES,
    NUM_DUPLICATE_LINES,
    NUM_ELLIPSES,
    NUM_EMOJI,
    NUM_GRAM_CHARS,
    NUM_HASHES,
    NUM_LETTERS,
    NUM_LINE_BYTES,
    NUM_LINES,
    NUM_REPLACEMENTS,
    NUM_SIMPLIFIED,
    NUM_SYMBOLS,
    NUM_TRADITIONAL,
    NUM_UNSPACED,
    NUM_VISIBLE,
    NUM_WORD_CHARS,
    NUM_WORDS,
    TOP_GRAM_CHARS,
)
from pipelines.steps.rules.marks import BAR, CODE_MARK, SIMPLIFIED, TRADITIONAL
from pipelines.steps.rules.phrases import BOILERPLATE
from pipelines.steps.rules.scratch import FNV_OFFSET, clear_table, enter, mixed
from pipelines.steps.rules.words import HALVES
from schemas.settings_quality import QualitySettings

Counts = npt.NDArray[np.int64]
_NEUTRAL = EMOJI | SELECTOR | JOINER | TAG
_NOT_VISIBLE = SPACE | NEWLINE | _NEUTRAL
_MIN_GRAM_COUNT = 6
"""A 2-gram that occurs less often is no repetition, however short the text: poems and dialog titles repeat a phrase four or five times."""
_MAX_BANNER_BYTES = 160
_MAX_LINK_CHARS = 20
_MIN_BARS = 3
_MAX_LINK_LINES = 3
_CODE_MARK_SHARE = 7
"""A line is code if more than one in so many of its visible characters is a code mark."""
_TIME_CHARS = 24
_PROSE, _BANNER, _LINKS, _CODE, _LOG = range(5)
_DOT, _ELLIPSIS, _HASH, _COLON = 0x2E, 0x2026, 0x23, 0x3A
_LINE_END_OF_CODE = (0x7B, 0x7D, 0x3B)  # { } ;


def broken_rules(counts: Counts, num_controls: Counts, settings: QualitySettings) -> dict[str, npt.NDArray[np.bool_]]:
    """Which documents break which rule, in the order in which they name a verdict."""
    column = counts.T
    return {
        "replacement_chars": ratio(column[NUM_REPLACEMENTS] + num_controls, column[NUM_CHARS] + num_controls) > settings.max_replacement_ratio,
        "too_short": column[NUM_WORDS] < settings.min_words,
        "mean_word_length": ratio(column[NUM_WORD_CHARS], column[NUM_WORDS]) > settings.max_mean_word_chars,
        "few_letters": ratio(column[NUM_LETTERS], column[NUM_VISIBLE]) < settings.min_letter_ratio,
        "symbols": ratio(column[NUM_SYMBOLS], column[NUM_VISIBLE]) > settings.max_symbol_ratio,
        "emoji": ratio(column[NUM_EMOJI], column[NUM_EMOJI] + column[NUM_VISIBLE]) > settings.max_emoji_ratio,
        "duplicate_lines": ratio(column[NUM_DUPLICATE_LINES], column[NUM_LINES]) > settings.max_duplicate_line_ratio,
        "duplicate_line_chars": ratio(column[NUM_DUPLICATE_LINE_BYTES], column[NUM_LINE_BYTES]) > settings.max_duplicate_line_char_ratio,
        "top_ngram": ratio(column[TOP_GRAM_CHARS], column[NUM_GRAM_CHARS]) > settings.max_top_ngram_char_ratio,
        "boilerplate": ratio(column[BOILERPLATE_BYTES], column[NUM_LINE_BYTES]) > settings.max_boilerplate_ratio,
        "code": (ratio(column[CODE_BYTES], column[NUM_LINE_BYTES]) > 0.5) & (settings.code == "reject"),
        "log": (ratio(column[LOG_BYTES], column[NUM_LINE_BYTES]) > 0.5) & (settings.logs == "reject"),
    }


def ratio(part: Counts, whole: Counts) -> npt.NDArray[np.float64]:
    """``part / whole``; 0 / 0 is 0."""
    return part / np.maximum(whole, 1)


@njit(cache=True, nogil=True)
def is_unspaced(scratch: Any, num_chars: Any) -> Any:
    """Whether more than half of the letters are of scripts written without spaces."""
    letters = unspaced = 0
    for k in range(num_chars):
        kind = scratch.kinds[k]
        letters += (kind & LETTER) != 0
        unspaced += (kind & UNSPACED) != 0
    return 2 * unspaced > letters


@njit(cache=True, nogil=True)
def count_characters(scratch: Any, num_chars: Any, counts: Any) -> None:
    """A mark that is repeated counts once: rulers and the frames of tables say nothing about the text between them. A letter of an
    unspaced script counts twice among the visible: it says as much as two or three Latin ones, in the width of two."""
    before = num_dots = visible = letters = symbols = dots = 0
    for k in range(num_chars):
        code, kind = scratch.codes[k], scratch.kinds[k]
        weight = 2 if kind & UNSPACED else 1
        letters += weight if kind & LETTER else 0
        if kind & (LETTER | DIGIT):
            visible += 0 if kind & _NOT_VISIBLE else weight
            num_dots = 0
        else:
            num_dots = num_dots + 1 if code == _DOT else 0
            symbols += num_dots == 3
            dots += num_dots > 0 and num_dots % 3 == 0
            if code != before:
                visible += 0 if kind & _NOT_VISIBLE else weight
        if kind & SYMBOL and (code != before or kind & (LETTER | DIGIT)):
            symbols += code != REPLACEMENT
        before = code
    counts[NUM_CHARS], counts[NUM_VISIBLE], counts[NUM_LETTERS], counts[NUM_SYMBOLS], counts[NUM_ELLIPSES] = (
        num_chars,
        visible,
        letters,
        symbols,
        dots,
    )
    _count_rare(scratch, num_chars, counts)


@njit(cache=True, nogil=True)
def _count_rare(scratch: Any, num_chars: Any, counts: Any) -> None:
    """Characters of one kind each. In unspaced script two ellipsis characters in a row are one ellipsis."""
    replacements = hashes = ellipses = runs = emoji = unspaced = simplified = traditional = 0
    before = 0
    for k in range(num_chars):
        code, kind = scratch.codes[k], scratch.kinds[k]
        replacements += code == REPLACEMENT
        hashes += code == _HASH
        ellipses += code == _ELLIPSIS
        runs += code == _ELLIPSIS and before != _ELLIPSIS
        emoji += (kind & EMOJI) != 0
        unspaced += (kind & UNSPACED) != 0
        simplified += (kind & SIMPLIFIED) != 0
        traditional += (kind & TRADITIONAL) != 0
        before = code
    counts[NUM_REPLACEMENTS], counts[NUM_HASHES], counts[NUM_EMOJI], counts[NUM_UNSPACED] = replacements, hashes, emoji, unspaced
    counts[NUM_SIMPLIFIED], counts[NUM_TRADITIONAL] = simplified, traditional
    counts[NUM_ELLIPSES] += runs if counts[IS_UNSPACED] else ellipses


@njit(cache=True, nogil=True)
def count_own_lines(scratch: Any, num_lines: Any, counts: Any) -> None:
    """Lines are compared without white space; a line without a letter or digit is no line."""
    mask = clear_table(scratch, num_lines)
    link_lines = link_bytes = 0
    for line in range(num_lines):
        digest, num_bytes, some, marks, bars, visible = _look_at(scratch, line)
        if not some & (LETTER | DIGIT):
            continue
        is_new = enter(scratch, mask, digest)[1]
        counts[NUM_LINES] += 1
        counts[NUM_LINE_BYTES] += num_bytes
        counts[NUM_DUPLICATE_LINES] += not is_new
        counts[NUM_DUPLICATE_LINE_BYTES] += 0 if is_new else num_bytes
        kind = _kind_of(scratch, line, num_bytes, marks, bars, visible)
        counts[BOILERPLATE_BYTES] += num_bytes if kind == _BANNER else 0
        counts[CODE_BYTES] += num_bytes if kind == _CODE else 0
        counts[LOG_BYTES] += num_bytes if kind == _LOG else 0
        link_lines += kind == _LINKS
        link_bytes += num_bytes if kind == _LINKS else 0
    if link_lines <= _MAX_LINK_LINES:
        counts[BOILERPLATE_BYTES] += link_bytes


@njit(cache=True, nogil=True)
def _look_at(scratch: Any, line: Any) -> Any:
    """Of a line's visible characters: hash, bytes, all flags, code marks, bars and number."""
    digest = FNV_OFFSET
    num_bytes = marks = bars = visible = 0
    some = np.uint32(0)
    for k in range(scratch.starts[line], scratch.stops[line]):
        kind = scratch.kinds[k]
        if not kind & SPACE:
            code = scratch.codes[k]
            digest = mixed(digest, code)
            num_bytes += 1 + (code >= 0x80) + (code >= 0x800) + (code >= 0x10000)
            some |= kind
            marks += (kind & CODE_MARK) != 0
            bars += (kind & BAR) != 0
            visible += 1
    return digest, num_bytes, some, marks, bars, visible


@njit(cache=True, nogil=True)
def _kind_of(scratch: Any, line: Any, num_bytes: Any, marks: Any, bars: Any, visible: Any) -> Any:
    if scratch.masks[line] & BOILERPLATE and num_bytes <= _MAX_BANNER_BYTES:
        return _BANNER
    first = scratch.starts[line]
    while scratch.kinds[first] & SPACE:
        first += 1
    if bars >= _MIN_BARS and visible <= _MAX_LINK_CHARS * (bars + 1) and not scratch.kinds[first] & BAR:
        return _LINKS
    if _begins_with_time(scratch, first, scratch.stops[line]):
        return _LOG
    if scratch.codes[scratch.stops[line] - 1] in _LINE_END_OF_CODE or (marks >= 2 and marks * _CODE_MARK_SHARE > visible):
        return _CODE
    return _PROSE


@njit(cache=True, nogil=True)
def _begins_with_time(scratch: Any, first: Any, stop: Any) -> Any:
    """Six digits and two colons in the first characters: ``2024-05-01 10:20:30``, ``[10:20:30.123]``, ``May  1 10:20:30``."""
    digits = colons = 0
    for k in range(first, min(stop, first + _TIME_CHARS)):
        digits += (scratch.kinds[k] & DIGIT) != 0
        colons += scratch.codes[k] == _COLON
    return digits >= 6 and colons >= 2


@njit(cache=True, nogil=True)
def drop_boilerplate(scratch: Any, num_lines: Any) -> Any:
    """Move the lines that are no boilerplate, and their masks, to the front; the number of characters."""
    num_links = 0
    for line in range(num_lines):
        num_links += _is_dropped(scratch, line, True) and not _is_dropped(scratch, line, False)
    num_chars = num_kept = 0
    for line in range(num_lines):
        if _is_dropped(scratch, line, num_links <= _MAX_LINK_LINES):
            continue
        start, stop = scratch.starts[line], min(scratch.stops[line] + 1, scratch.stops[num_lines - 1])
        for k in range(start, stop):
            scratch.codes[num_chars], scratch.kinds[num_chars] = scratch.codes[k], scratch.kinds[k]
            num_chars += 1
        scratch.masks[num_kept] = scratch.masks[line]
        num_kept += 1
    while num_chars and scratch.kinds[num_chars - 1] & NEWLINE:
        num_chars -= 1
    return num_chars


@njit(cache=True, nogil=True)
def _is_dropped(scratch: Any, line: Any, with_links: Any) -> Any:
    _, num_bytes, some, marks, bars, visible = _look_at(scratch, line)
    if not some & (LETTER | DIGIT):
        return False
    kind = _kind_of(scratch, line, num_bytes, marks, bars, visible)
    return kind == _BANNER or (with_links and kind == _LINKS)


@njit(cache=True, nogil=True)
def top_gram(scratch: Any, num_words: Any) -> Any:
    """Characters that the most frequent 2-gram covers without overlaps; 0 if none occurs often.

    A 2-gram is a run of words that weighs 4 halves: two spaced words, four letters of an unspaced script, or a mixture.
    """
    mask = clear_table(scratch, num_words)
    top = 0
    for last in range(num_words):
        key = FNV_OFFSET
        halves = length = chars = 0
        while halves < 4 and length < 4 and length <= last:
            key = mixed(key, scratch.words[last - length])
            halves += scratch.word_marks[last - length] & HALVES
            chars += scratch.word_chars[last - length]
            length += 1
        if halves < 4:
            continue
        slot, is_new = enter(scratch, mask, key)
        if is_new or last - length >= scratch.firsts[slot]:
            scratch.counts[slot] += chars
            scratch.firsts[slot] = last
            if scratch.counts[slot] >= chars * _MIN_GRAM_COUNT:
                top = max(top, scratch.counts[slot])
    return top
