"""C4's cleaning: lines go, and a document with too little left, or with a curly bracket or filler text in it, goes.

A line stays if it ends in terminal punctuation (not in an ellipsis), has enough words, no absurdly long one, and mentions neither JavaScript nor a
policy; citations such as ``[3]`` are cut out of it. In the order of datatrove and TensorFlow Datasets. Not in it: the list of bad words.
Unspaced script: two letters make a word, only what stands between such letters can be a long word, full-width sentence ends, closing
quotation marks and the ellipsis are terminal. A sentence ends at terminal punctuation (and closing marks) before white space or the line's
end, at a full-width form anywhere; a line has at least one.
Source: Raffel et al. 2020, arXiv 1910.10683, section 2.2. Cost: about 6 ns per character.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from pipelines.steps.rules.lines import ends_in_ellipsis, trimmed
from pipelines.steps.rules.marks import CLOSING, TERMINAL, WHITE, WIDE_TERMINAL
from pipelines.steps.rules.phrases import CITATION, CURLY_BRACKET, JAVASCRIPT, LOREM_IPSUM, POLICY
from pipelines.text.characters import DIGIT, LETTER, NEWLINE, UNSPACED
from schemas.settings_quality import C4Settings

ACCEPTED, LOREM_IPSUM_FOUND, CURLY_BRACKET_FOUND, TOO_FEW_SENTENCES = range(4)
RULES = (None, "c4/lorem_ipsum", "c4/curly_bracket", "c4/too_few_sentences")
"""Rule by verdict."""
_EDIT = np.array([ord(letter) for letter in "edit]"], np.int32)
_NEEDED = np.array([ord(letter) for letter in "citation needed]"], np.int32)
_LINE_FEED, _BRACKET, _CLOSE, _QUOTE, _APOSTROPHE, _ROUND = 0x0A, 0x5B, 0x5D, 0x22, 0x27, 0x29
_STAYS, _GOES = ACCEPTED, -1
_ENDS = (0x2E, 0x3F, 0x21, _QUOTE, _APOSTROPHE)


class C4Options(NamedTuple):
    """C4Settings as the kernels take them."""

    terminal: bool
    citations: bool
    num_sentences: int
    halves: int
    """Fewest half words of a line."""
    word_chars: int
    drop_mask: int
    """Phrases whose lines go."""
    reject_mask: int
    """Phrases whose documents go."""


def c4_options(settings: C4Settings) -> C4Options:
    """The settings as the kernels take them."""
    drop = (JAVASCRIPT if settings.remove_javascript_lines else 0) | (POLICY if settings.remove_policy_lines else 0)
    reject = (LOREM_IPSUM if settings.reject_lorem_ipsum else 0) | (CURLY_BRACKET if settings.reject_curly_bracket else 0)
    return C4Options(
        settings.require_terminal_punctuation,
        settings.remove_citations,
        settings.min_sentences,
        2 * settings.min_words_per_line,
        settings.max_word_chars,
        drop,
        reject,
    )


@njit(cache=True, nogil=True)
def clean_lines(scratch: Any, num_lines: Any, is_unspaced: Any, options: Any) -> Any:
    """Move the lines that stay, and their masks, to the front; the number of characters, and the verdict."""
    codes, kinds, masks = scratch.codes, scratch.kinds, scratch.masks
    num_chars = num_sentences = num_kept = 0
    for line in range(num_lines):
        first, last = trimmed(kinds, scratch.starts[line], scratch.stops[line])
        halves, longest = _line_words(kinds, first, last, is_unspaced)
        if longest > options.word_chars:
            continue
        start = num_chars + (num_chars > 0)
        has_bracket = options.citations and (masks[line] & CITATION) != 0
        if has_bracket:
            last = _move(codes, kinds, first, last, start)
            first = start
        verdict = _judge_line(codes, kinds, first, last, halves, is_unspaced, masks[line], options)
        if verdict > ACCEPTED:
            return num_chars, verdict
        if verdict == _STAYS:
            stop = start + last - first
            if start < first:
                for k in range(last - first):
                    codes[start + k], kinds[start + k] = codes[first + k], kinds[first + k]
            stop = trimmed(kinds, start, stop)[1]
            if stop > start:
                num_sentences += count_sentences(codes, kinds, start, stop)
                if start:
                    codes[num_chars] = _LINE_FEED
                    kinds[num_chars] = NEWLINE | WHITE
                num_chars = stop
                masks[num_kept] = masks[line]
                num_kept += 1
    return num_chars, TOO_FEW_SENTENCES if num_sentences < options.num_sentences else ACCEPTED


@njit(cache=True, nogil=True)
def _judge_line(codes: Any, kinds: Any, start: Any, stop: Any, halves: Any, is_unspaced: Any, mask: Any, options: Any) -> Any:
    if options.terminal and not _is_ended(codes, kinds, start, stop, is_unspaced):
        return _GOES
    if halves < options.halves:
        return _GOES
    if mask & options.reject_mask & LOREM_IPSUM:
        return LOREM_IPSUM_FOUND
    if mask & options.drop_mask & JAVASCRIPT:
        return _GOES
    if mask & options.reject_mask & CURLY_BRACKET:
        return CURLY_BRACKET_FOUND
    return _GOES if mask & options.drop_mask & POLICY else _STAYS


@njit(cache=True, nogil=True)
def _line_words(kinds: Any, first: Any, last: Any, is_unspaced: Any) -> Any:
    """Half words of a line, and the characters of its longest word."""
    return _unspaced_words(kinds, first, last) if is_unspaced else _spaced_words(kinds, first, last)


@njit(cache=True, nogil=True)
def _spaced_words(kinds: Any, first: Any, last: Any) -> Any:
    """Without branches: where a word ends cannot be foreseen."""
    halves: Any = 0
    length: Any = 0
    longest = 0
    for k in range(first, last):
        is_black = np.int64((kinds[k] & WHITE) == 0)
        halves += 2 * (is_black & (length == 0))
        length = (length + 1) * is_black
        longest = max(longest, length)
    return halves, longest


@njit(cache=True, nogil=True)
def _unspaced_words(kinds: Any, first: Any, last: Any) -> Any:
    halves = longest = length = 0
    for k in range(first, last):
        kind = kinds[k]
        single = kind & UNSPACED
        if kind & WHITE or single:
            longest = max(longest, length)
            length = 0
            halves += 1 if single else 0
            continue
        if length or kind & (LETTER | DIGIT):
            halves += 2 if length == 0 else 0
            length += 1
    return halves, max(longest, length)


@njit(cache=True, nogil=True)
def _is_ended(codes: Any, kinds: Any, start: Any, stop: Any, is_unspaced: Any) -> Any:
    if start == stop:
        return False
    code, kind = codes[stop - 1], kinds[stop - 1]
    if is_unspaced and kind & (TERMINAL | CLOSING):
        return True
    if kind & WIDE_TERMINAL:
        return True
    return code in _ENDS and not ends_in_ellipsis(codes, start, stop, is_unspaced)


@njit(cache=True, nogil=True)
def _move(codes: Any, kinds: Any, first: Any, last: Any, to: Any) -> Any:
    """Copy the characters to the front, without citations and the space behind one at the beginning; where the copy ends."""
    begin = to
    while first < last:
        if codes[first] == _BRACKET:
            length = _citation_length(codes, first, last)
            if length:
                first += length
                continue
        if to == begin and kinds[first] & WHITE:
            first += 1
            continue
        codes[to], kinds[to] = codes[first], kinds[first]
        first += 1
        to += 1
    return to


@njit(cache=True, nogil=True)
def _citation_length(codes: Any, first: Any, last: Any) -> Any:
    """Length of ``[12]``, ``[]``, ``[edit]`` or ``[citation needed]`` at ``first``; 0 if there is none."""
    at = first + 1
    while at < last and 0x30 <= codes[at] <= 0x39:
        at += 1
    if at < last and codes[at] == _CLOSE:
        return at + 1 - first
    for name in (_EDIT, _NEEDED):
        if last - first > len(name) and np.all(codes[first + 1 : first + 1 + len(name)] == name):
            return len(name) + 1
    return 0


@njit(cache=True, nogil=True)
def count_sentences(codes: Any, kinds: Any, start: Any, stop: Any) -> Any:
    """Sentences of a line that is not empty."""
    num = 0
    begun = False
    k = start
    while k < stop:
        some = np.uint32(WHITE)
        while k < stop and not kinds[k] & TERMINAL:
            some &= kinds[k]
            k += 1
        begun = begun or not some
        if k == stop:
            break
        kind = kinds[k]
        k += 1
        is_wide = kind & WIDE_TERMINAL
        while k < stop and _goes_on(codes[k], kinds[k]):
            is_wide |= kinds[k] & WIDE_TERMINAL
            k += 1
        if is_wide or k == stop or kinds[k] & WHITE:
            num += 1
            begun = False
        else:
            begun = True
    return num + begun


@njit(cache=True, nogil=True)
def _goes_on(code: Any, kind: Any) -> Any:
    return kind & (TERMINAL | CLOSING) or code in (_QUOTE, _APOSTROPHE, _ROUND, _CLOSE)
