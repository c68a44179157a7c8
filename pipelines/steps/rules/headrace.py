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

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

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
from pipelines.text.characters import DIGIT, EMOJI, JOINER, LETTER, NEWLINE, REPLACEMENT, SELECTOR, SPACE, SYMBOL, TAG, UNSPACED
from schemas.settings_quality import QualitySettings

Counts = npt.NDArray[np.int64]
_NEUTRAL = EMOJI | SELECTOR | JOINER | TAG
_NOT_VISIBLE = SPACE | NEWLINE | _NEUTRAL
_RARE = SYMBOL | EMOJI | UNSPACED
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
    kinds = scratch.kinds
    for k in range(num_chars):
        kind = kinds[k]
        letters += (kind & LETTER) != 0
        unspaced += (kind & UNSPACED) != 0
    return 2 * unspaced > letters


@njit(cache=True, nogil=True)
def count_characters(scratch: Any, num_chars: Any, counts: Any) -> None:
    """A mark that is repeated counts once: rulers and the frames of tables say nothing about the text between them. A letter of an
    unspaced script counts twice among the visible: it says as much as two or three Latin ones, in the width of two.

    Without branches, so that several characters are counted at once."""
    visible = letters = symbols = 0
    codes, kinds = scratch.codes, scratch.kinds
    for k in range(num_chars):
        code, kind = codes[k], np.int64(kinds[k])
        before = codes[max(k - 1, 0)]
        is_counted = ((kind & (LETTER | DIGIT)) != 0) | (code != before) | (k == 0)
        weight = 1 + ((kind & UNSPACED) != 0)
        letters += weight * ((kind & LETTER) != 0)
        visible += weight * (is_counted & ((kind & _NOT_VISIBLE) == 0))
        symbols += is_counted & ((kind & SYMBOL) != 0)
    counts[NUM_CHARS], counts[NUM_VISIBLE], counts[NUM_LETTERS], counts[NUM_SYMBOLS] = num_chars, visible, letters, symbols
    _count_rare(scratch, num_chars, counts)


@njit(cache=True, nogil=True)
def _count_rare(scratch: Any, num_chars: Any, counts: Any) -> None:
    """What most characters are not. Three dots are one symbol; in unspaced script two ellipsis characters in a row are one ellipsis."""
    num_dots = 0
    before = np.int32(0)
    codes, kinds = scratch.codes, scratch.kinds
    for k in range(num_chars):
        code, kind = codes[k], kinds[k]
        if kind & _RARE or code == _DOT:
            num_dots = (num_dots + 1 if before == _DOT else 1) if code == _DOT else 0
            counts[NUM_SYMBOLS] += num_dots == 3
            counts[NUM_ELLIPSES] += num_dots > 0 and num_dots % 3 == 0
            if kind & _RARE:
                _count_one(code, kind, before, counts)
        before = code


@njit(cache=True, nogil=True)
def _count_one(code: Any, kind: Any, before: Any, counts: Any) -> None:
    counts[NUM_UNSPACED] += (kind & UNSPACED) != 0
    counts[NUM_SIMPLIFIED] += (kind & SIMPLIFIED) != 0
    counts[NUM_TRADITIONAL] += (kind & TRADITIONAL) != 0
    counts[NUM_EMOJI] += (kind & EMOJI) != 0
    counts[NUM_HASHES] += code == _HASH
    counts[NUM_ELLIPSES] += code == _ELLIPSIS and not (counts[IS_UNSPACED] and before == _ELLIPSIS)
    if code == REPLACEMENT:
        counts[NUM_REPLACEMENTS] += 1
        counts[NUM_SYMBOLS] -= before != REPLACEMENT


@njit(cache=True, nogil=True)
def count_own_lines(scratch: Any, num_lines: Any, counts: Any) -> None:
    """Lines are compared without the white space at their ends; a line without a letter or digit is no line."""
    mask = clear_table(scratch, num_lines)
    codes, kinds, keys, slot_counts = scratch.codes, scratch.kinds, scratch.keys, scratch.counts
    tops, ends, lines, masks = scratch.tops, scratch.ends, scratch.lines, scratch.masks
    link_lines = link_bytes = 0
    for line in range(num_lines):
        look = _look_at(codes, kinds, tops[line], ends[line])
        if not look.some & (LETTER | DIGIT):
            continue
        num_bytes = look.num_bytes
        is_new = enter(keys, slot_counts, mask, lines[line])[1]
        counts[NUM_LINES] += 1
        counts[NUM_LINE_BYTES] += num_bytes
        counts[NUM_DUPLICATE_LINES] += not is_new
        counts[NUM_DUPLICATE_LINE_BYTES] += 0 if is_new else num_bytes
        kind = _kind_of(codes, kinds, masks[line], tops[line], ends[line], look)
        counts[BOILERPLATE_BYTES] += num_bytes if kind == _BANNER else 0
        counts[CODE_BYTES] += num_bytes if kind == _CODE else 0
        counts[LOG_BYTES] += num_bytes if kind == _LOG else 0
        link_lines += kind == _LINKS
        link_bytes += num_bytes if kind == _LINKS else 0
    if link_lines <= _MAX_LINK_LINES:
        counts[BOILERPLATE_BYTES] += link_bytes


class _Look(NamedTuple):
    """What a line's visible characters are."""

    num_bytes: int
    some: int
    """All their flags."""
    marks: int
    bars: int
    visible: int


@njit(cache=True, nogil=True)
def _look_at(codes: Any, kinds: Any, start: Any, stop: Any) -> Any:
    some: Any = 0
    highest: Any = 0
    marks = bars = visible = 0
    for k in range(start, stop):
        kind = np.int64(kinds[k])
        some |= kind
        highest |= codes[k]
        marks += (kind & CODE_MARK) != 0
        bars += (kind & BAR) != 0
        visible += (kind & SPACE) == 0
    num_bytes = visible if highest < 0x80 else _visible_bytes(codes, kinds, start, stop)
    return _Look(num_bytes, some, marks, bars, visible)


@njit(cache=True, nogil=True)
def _visible_bytes(codes: Any, kinds: Any, start: Any, stop: Any) -> Any:
    total = 0
    for k in range(start, stop):
        code = codes[k]
        total += ((kinds[k] & SPACE) == 0) * (1 + (code >= 0x80) + (code >= 0x800) + (code >= 0x10000))
    return total


@njit(cache=True, nogil=True)
def _kind_of(codes: Any, kinds: Any, mask: Any, first: Any, last: Any, look: Any) -> Any:
    if mask & BOILERPLATE and look.num_bytes <= _MAX_BANNER_BYTES:
        return _BANNER
    if look.bars >= _MIN_BARS and look.visible <= _MAX_LINK_CHARS * (look.bars + 1) and _are_links(kinds, first, last):
        return _LINKS
    if look.some & DIGIT and _begins_with_time(codes, kinds, first, last):
        return _LOG
    if (look.marks and codes[last - 1] in _LINE_END_OF_CODE) or (look.marks >= 2 and look.marks * _CODE_MARK_SHARE > look.visible):
        return _CODE
    return _PROSE


@njit(cache=True, nogil=True)
def _are_links(kinds: Any, first: Any, stop: Any) -> Any:
    """Whether enough bars stand between spaces, and none before the first link (that would be a table or a quotation)."""
    num = 0
    for k in range(first + 1, stop - 1):
        num += (kinds[k] & BAR) != 0 and (kinds[k - 1] & SPACE) != 0 and (kinds[k + 1] & SPACE) != 0
    return num >= _MIN_BARS and not kinds[first] & BAR


@njit(cache=True, nogil=True)
def _begins_with_time(codes: Any, kinds: Any, first: Any, stop: Any) -> Any:
    """Six digits and two colons in the first characters: ``2024-05-01 10:20:30``, ``[10:20:30.123]``, ``May  1 10:20:30``."""
    digits = colons = 0
    for k in range(first, min(stop, first + _TIME_CHARS)):
        digits += (kinds[k] & DIGIT) != 0
        colons += codes[k] == _COLON
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
    codes, kinds, first, last = scratch.codes, scratch.kinds, scratch.tops[line], scratch.ends[line]
    look = _look_at(codes, kinds, first, last)
    if not look.some & (LETTER | DIGIT):
        return False
    kind = _kind_of(codes, kinds, scratch.masks[line], first, last, look)
    return kind == _BANNER or (with_links and kind == _LINKS)


@njit(cache=True, nogil=True)
def top_gram(scratch: Any, num_words: Any) -> Any:
    """Characters that the most frequent 2-gram covers without overlaps; 0 if none occurs often.

    A 2-gram is a run of words that weighs 4 halves: two spaced words, four letters of an unspaced script, or a mixture.
    """
    mask = clear_table(scratch, num_words)
    keys, covered, behind = scratch.keys, scratch.counts, scratch.firsts
    words, marks, sizes = scratch.words, scratch.word_marks, scratch.word_chars
    top = 0
    for last in range(num_words):
        key = FNV_OFFSET
        halves = length = chars = 0
        while halves < 4 and length < 4 and length <= last:
            key = mixed(key, words[last - length])
            halves += marks[last - length] & HALVES
            chars += sizes[last - length]
            length += 1
        if halves < 4:
            continue
        slot, is_new = enter(keys, covered, mask, key)
        if is_new or last - length >= behind[slot]:
            covered[slot] += chars
            behind[slot] = last
            if covered[slot] >= chars * _MIN_GRAM_COUNT:
                top = max(top, covered[slot])
    return top
