"""Length, character and repetition rules. A rejected document carries the name of the first rule that it breaks.

| rule | rejects | source |
|---|---|---|
| ``too_long`` | more characters than ``max_chars`` | |
| ``replacement_chars`` | U+FFFD and control characters: decoded wrongly upstream | FineWeb |
| ``too_short`` | fewer words than ``min_words`` | Gopher, table A1 |
| ``mean_word_length`` | base64, minified code | Gopher (10 characters; ours is for documents with code and links in them) |
| ``few_letters`` | few letters (any script) among the visible characters | Gopher (share of alphabetic words) |
| ``symbols`` | ``#``, ellipses, box drawing, private use … | Gopher (symbol-to-word ratio) |
| ``duplicate_lines``, ``duplicate_line_chars`` | repeated lines, by number and by characters | Gopher, table A1 |
| ``top_ngram`` | one word 2-gram covers much of the text | Gopher, table A1 |
| ``language_not_kept`` | not in ``languages`` | |
Gopher: Rae et al. 2021, arXiv 2112.11446; FineWeb: Penedo et al. 2024, arXiv 2406.17557.

What a word is: a run of visible characters with a letter or digit in it; each letter of a script that is (or may be) written without
spaces (Chinese, Japanese, Korean, Thai, Khmer …) is a word of its own, and full-width punctuation ends a word. Two such letters weigh
as much as one spaced word in a 2-gram, because most of their words have two. Emoji are neutral: no word, no letter, no symbol.
Lines without a letter or digit (``}``, ``---``) do not count as repeated.

Cost: four passes over the bytes, together about 50 MB/s on one core; scratch of 40 to 80 bytes per character of the longest document in the batch.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numba import njit

from pipelines.steps.buffers import Source, utf8_views
from pipelines.steps.characters import (
    DIGIT,
    EMOJI,
    JOINER,
    LATIN,
    LETTER,
    MARK,
    NEWLINE,
    REPLACEMENT,
    SELECTOR,
    SEPARATOR,
    SPACE,
    SYMBOL,
    TAG,
    UNSPACED,
    character_flags,
    code_point_at,
)
from schemas.settings_quality import QualitySettings

NUM_CHARS, NUM_VISIBLE, NUM_LETTERS, NUM_SYMBOLS, NUM_REPLACEMENTS, NUM_WORDS, NUM_WORD_CHARS = range(7)
"""Columns of the counts of characters and words; visible: without white space and emoji; word characters: see mean_word_length."""
NUM_LINES, NUM_DUPLICATE_LINES, NUM_LINE_BYTES, NUM_DUPLICATE_LINE_BYTES, NUM_GRAM_CHARS, TOP_GRAM_CHARS = range(7, 13)
"""Columns of the repetition counts; gram characters: those in words, and those of them that the most frequent 2-gram covers."""
_NUM_COLUMNS = 13

_BREAK = SPACE | NEWLINE | EMOJI | SEPARATOR
_NEUTRAL = EMOJI | SELECTOR | JOINER | TAG
_FNV_OFFSET = np.uint64(0xCBF29CE484222325)
_FNV_PRIME = np.uint64(0x100000001B3)
_MIN_GRAM_COUNT = 6
"""A 2-gram that occurs less often is no repetition, however short the text: poems and dialog titles repeat a phrase four or five times."""


def reject(texts: pa.Array, languages: pa.Array, num_controls: npt.NDArray[np.int64], settings: QualitySettings) -> tuple[pa.Array, pa.Array]:
    """The name of the first broken rule of each normalized text (null: accepted), and its number of characters (int64).

    ``languages`` has a code for each text; ``num_controls`` counts the control characters that normalization removed from it.
    """
    counts = measure(texts, settings.max_chars)
    broken = {
        "too_long": counts[:, NUM_CHARS] > settings.max_chars,
        "replacement_chars": _ratio(counts[:, NUM_REPLACEMENTS] + num_controls, counts[:, NUM_CHARS] + num_controls) > settings.max_replacement_ratio,
        "too_short": counts[:, NUM_WORDS] < settings.min_words,
        "mean_word_length": _ratio(counts[:, NUM_WORD_CHARS], counts[:, NUM_WORDS]) > settings.max_mean_word_chars,
        "few_letters": _ratio(counts[:, NUM_LETTERS], counts[:, NUM_VISIBLE]) < settings.min_letter_ratio,
        "symbols": _ratio(counts[:, NUM_SYMBOLS], counts[:, NUM_VISIBLE]) > settings.max_symbol_ratio,
        "duplicate_lines": _ratio(counts[:, NUM_DUPLICATE_LINES], counts[:, NUM_LINES]) > settings.max_duplicate_line_ratio,
        "duplicate_line_chars": _ratio(counts[:, NUM_DUPLICATE_LINE_BYTES], counts[:, NUM_LINE_BYTES]) > settings.max_duplicate_line_char_ratio,
        "top_ngram": _ratio(counts[:, TOP_GRAM_CHARS], counts[:, NUM_GRAM_CHARS]) > settings.max_top_ngram_char_ratio,
        "language_not_kept": _not_kept(languages, settings.languages),
    }
    names = np.array([*broken, None], object)
    first = np.argmax(np.stack([*broken.values(), np.ones(len(counts), bool)]), axis=0)
    return pa.array(names[first], pa.string()), pa.array(counts[:, NUM_CHARS])


def measure(texts: pa.Array, max_chars: int) -> npt.NDArray[np.int64]:
    """The counts that the rules look at, int64 [n, 13]; repetition is not counted in texts of more than ``max_chars`` characters."""
    data, offsets = utf8_views(texts)
    source = Source(data, character_flags())
    counts = np.zeros((len(texts), _NUM_COLUMNS), np.int64)
    _count_all(source, offsets, counts)
    counted = counts[:, NUM_CHARS] <= max_chars
    longest = int(np.max(counts[counted, NUM_CHARS], initial=1))
    _count_repeats(source, offsets, counted, _empty_table(longest), counts)
    return counts


def _ratio(part: npt.NDArray[np.int64], whole: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    return part / np.maximum(whole, 1)


def _not_kept(languages: pa.Array, kept: tuple[str, ...]) -> npt.NDArray[np.bool_]:
    return ~np.isin(np.asarray(languages, dtype=object).astype(str), kept) if kept else np.zeros(len(languages), bool)


@njit(cache=True, nogil=True)
def _count_all(source: Any, offsets: Any, counts: Any) -> None:
    for i in range(len(offsets) - 1):
        _count_characters(source, offsets[i], offsets[i + 1], counts[i])
        _count_words(source, offsets[i], offsets[i + 1], counts[i])


@njit(cache=True, nogil=True)
def _count_characters(source: Any, at: Any, stop: Any, counts: Any) -> None:
    """A mark that is repeated counts once: rulers and the frames of tables say nothing about the text between them. A letter of an
    unspaced script counts twice among the visible: it says as much as two or three Latin ones, in the width of two."""
    data, flags = source
    before = num_dots = 0
    while at < stop:
        code, size = code_point_at(data, at)
        kind = flags[code]
        counts[NUM_CHARS] += 1
        counts[NUM_REPLACEMENTS] += code == REPLACEMENT
        weight = 2 if kind & UNSPACED else 1
        counts[NUM_LETTERS] += weight if kind & LETTER else 0
        num_dots = num_dots + 1 if code == 0x2E else 0
        if code != before or kind & (LETTER | DIGIT):
            counts[NUM_VISIBLE] += 0 if kind & (SPACE | NEWLINE | _NEUTRAL) else weight
            counts[NUM_SYMBOLS] += (kind & SYMBOL) != 0 and code != REPLACEMENT
        counts[NUM_SYMBOLS] += num_dots == 3  # an ellipsis
        before = code
        at += size


@njit(cache=True, nogil=True)
def _count_words(source: Any, at: Any, stop: Any, counts: Any) -> None:
    """Word characters: those below U+0590, in which encoded data and minified code are written; a word of another script counts 1."""
    while at < stop:
        at, weight, _, num_chars, num_latin = _next_word(source, at, stop)
        if weight:
            counts[NUM_WORDS] += 1
            counts[NUM_WORD_CHARS] += max(num_latin, 1)
            counts[NUM_GRAM_CHARS] += num_chars


@njit(cache=True, nogil=True)
def _next_word(source: Any, at: Any, stop: Any) -> Any:
    """Byte behind the next word at or after ``at``, its weight (0: there was none), hash, characters, and characters below U+0590."""
    data, flags = source
    digest = _FNV_OFFSET
    num_chars = num_latin = weight = 0
    while at < stop:
        code, size = code_point_at(data, at)
        kind = flags[code]
        if kind & (_BREAK | UNSPACED):
            if weight:
                return at, weight, digest, num_chars, num_latin
            num_chars = num_latin = 0
            digest = _FNV_OFFSET
        if kind & UNSPACED:
            return at + size, 1, _mixed(digest, code), 1, 0
        if not kind & _BREAK and (num_chars or not kind & MARK):
            num_chars += 1
            digest = _mixed(digest, code)
            num_latin += (kind & LATIN) != 0
            if kind & (LETTER | DIGIT):
                weight = 2
        at += size
    return at, weight, digest, num_chars, num_latin


@njit(cache=True, nogil=True, inline="always")
def _mixed(digest: Any, value: Any) -> Any:
    return (digest ^ np.uint64(value)) * _FNV_PRIME


class _Table(NamedTuple):
    """A hash table that serves all documents in turn: a slot is taken iff it belongs to ``owner``."""

    keys: npt.NDArray[np.uint64]
    owners: npt.NDArray[np.int32]
    covered: npt.NDArray[np.int32]
    behind: npt.NDArray[np.int32]
    owner: int
    mask: int


def _empty_table(num_entries: int) -> _Table:
    """Room for twice as many entries: no text has more lines or words than characters, so a free slot is always near."""
    num_slots = 1 << (2 * num_entries).bit_length()
    keys = np.zeros(num_slots, np.uint64)
    owners, covered, behind = np.full((3, num_slots), -1, np.int32)
    return _Table(keys, owners, covered, behind, -1, num_slots - 1)


@njit(cache=True, nogil=True)
def _count_repeats(source: Any, offsets: Any, counted: Any, table: Any, counts: Any) -> None:
    for i in range(len(counted)):
        if counted[i]:
            mask = 1  # a short document uses the first slots only, which stay in the cache
            while mask < 2 * counts[i, NUM_CHARS]:
                mask = 2 * mask + 1
            lines = _Table(table.keys, table.owners, table.covered, table.behind, 2 * i, mask)
            _count_lines(source, offsets[i], offsets[i + 1], lines, counts[i])
            grams = _Table(table.keys, table.owners, table.covered, table.behind, 2 * i + 1, mask)
            counts[i, TOP_GRAM_CHARS] = _top_gram(source, offsets[i], offsets[i + 1], grams)


@njit(cache=True, nogil=True)
def _slot_of(key: Any, table: Any) -> Any:
    """The slot that holds ``key``, or the free one where it belongs (linear probing)."""
    slot = np.int64(key ^ key >> np.uint64(32)) & table.mask
    while table.owners[slot] == table.owner and table.keys[slot] != key:
        slot = (slot + 1) & table.mask
    return slot


@njit(cache=True, nogil=True)
def _take(slot: Any, key: Any, table: Any) -> Any:
    """Enter ``key`` in its slot; whether it was new."""
    if table.owners[slot] == table.owner:
        return False
    table.owners[slot] = table.owner
    table.keys[slot] = key
    table.covered[slot] = table.behind[slot] = 0
    return True


@njit(cache=True, nogil=True)
def _count_lines(source: Any, at: Any, stop: Any, table: Any, counts: Any) -> None:
    """Lines are compared without white space; a line without a letter or digit is no line."""
    data, flags = source
    digest = _FNV_OFFSET
    num_bytes = worded = 0
    while at <= stop:
        code, size = code_point_at(data, at) if at < stop else (0x0A, 1)
        if code == 0x0A:
            if worded:
                is_new = _take(_slot_of(digest, table), digest, table)
                counts[NUM_LINES] += 1
                counts[NUM_LINE_BYTES] += num_bytes
                counts[NUM_DUPLICATE_LINES] += not is_new
                counts[NUM_DUPLICATE_LINE_BYTES] += 0 if is_new else num_bytes
            digest = _FNV_OFFSET
            num_bytes = worded = 0
        elif not flags[code] & SPACE:
            digest = _mixed(digest, code)
            num_bytes += size
            worded |= (flags[code] & (LETTER | DIGIT)) != 0
        at += size


@njit(cache=True, nogil=True)
def _top_gram(source: Any, at: Any, stop: Any, table: Any) -> Any:
    """Characters that the most frequent 2-gram covers without overlaps; 0 if none occurs often.

    A 2-gram is a run of words that weighs 4: two spaced words, four letters of an unspaced script, or a mixture. ``behind`` is
    the number of words up to the end of a gram's last counted occurrence.
    """
    hashes = np.zeros(4, np.uint64)  # of the last four words, as a ring
    sizes = np.zeros((4, 2), np.int64)  # their weights and characters
    num_words = top = 0
    while at < stop:
        at, weight, digest, num_chars, _ = _next_word(source, at, stop)
        if not weight:
            break
        hashes[num_words & 3] = digest
        sizes[num_words & 3, 0] = weight
        sizes[num_words & 3, 1] = num_chars
        num_words += 1
        key, length, gram_chars = _gram_ending_at(hashes, sizes, num_words)
        if length:
            slot = _slot_of(key, table)
            _take(slot, key, table)
            if num_words - length >= table.behind[slot]:
                table.covered[slot] += gram_chars
                table.behind[slot] = num_words
                if table.covered[slot] >= gram_chars * _MIN_GRAM_COUNT:
                    top = max(top, table.covered[slot])
    return top


@njit(cache=True, nogil=True)
def _gram_ending_at(hashes: Any, sizes: Any, num_words: Any) -> Any:
    """Hash, number of words and characters of the shortest run of the last words that weighs 4 or more; no words if there is none."""
    key = _FNV_OFFSET
    weight = length = num_chars = 0
    while weight < 4:
        if length == min(4, num_words):
            return key, 0, 0
        length += 1
        last = (num_words - length) & 3
        key = _mixed(key, hashes[last])
        weight += sizes[last, 0]
        num_chars += sizes[last, 1]
    return key, length, num_chars
