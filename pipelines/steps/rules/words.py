"""Words, split in one of two ways, and what Gopher counts of them.

``split_unicode``: a run of visible characters with a letter or digit in it; each letter of a script that is (or may be) written without
spaces is a word of its own, and full-width punctuation and emoji end a word. ``split_spaced``: what stands between white space, as ``str.split``.
Invariant: both give a word the same hash, so that n-grams and stop words need not know how words were split.
Cost: 2 to 3 ns per character each.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from pipelines.steps.rules.columns import (
    NUM_ALPHA_HALVES,
    NUM_GRAM_CHARS,
    NUM_HALVES,
    NUM_PLAIN_CHARS,
    NUM_PLAIN_HALVES,
    NUM_STOP_WORDS,
    NUM_WORD_CHARS,
    NUM_WORDS,
)
from pipelines.steps.rules.marks import ALPHA, PUNCTUATION, WHITE
from pipelines.steps.rules.scratch import FNV_OFFSET, FNV_PRIME, mixed
from pipelines.text.characters import DIGIT, EMOJI, LATIN, LETTER, MARK, NEWLINE, SEPARATOR, SPACE, UNSPACED

HALVES = 3
HAS_LETTER = 4
IS_PLAIN = 8
"""Not of punctuation only."""
_BREAK = SPACE | NEWLINE | EMOJI | SEPARATOR
_STOP_SLOTS = 1024


class StopWords(NamedTuple):
    """A small hash table of the stop words of all languages; a word's key holds its language too."""

    keys: npt.NDArray[np.uint64]
    bits: npt.NDArray[np.uint64]
    """One bit for each word of a language."""


def stop_table(lists: Iterable[tuple[str, ...]]) -> StopWords:
    """The table; language i of ``lists`` is number i + 1 (0: no list)."""
    keys, bits = np.zeros((2, _STOP_SLOTS), np.uint64)
    for number, words in enumerate(lists, 1):
        for bit, word in enumerate(dict.fromkeys(words)):
            key = _hash_of(word) ^ _salt(number)
            slot = key % _STOP_SLOTS
            while keys[slot]:
                slot = (slot + 1) % _STOP_SLOTS
            keys[slot] = key
            bits[slot] = 1 << bit
    return StopWords(keys, bits)


def _hash_of(word: str) -> int:
    digest = int(FNV_OFFSET)
    for character in word:
        digest = (digest ^ ord(character)) * int(FNV_PRIME) % 2**64
    return digest


def _salt(number: int) -> int:
    return number * 0x9E3779B97F4A7C15 % 2**64


@njit(cache=True, nogil=True)
def split_spaced(scratch: Any, num_chars: Any) -> Any:
    """Fill the words; their number."""
    digest = FNV_OFFSET
    codes, kinds, words, word_chars, word_marks = scratch.codes, scratch.kinds, scratch.words, scratch.word_chars, scratch.word_marks
    num_words = start = 0
    some = np.uint32(0)
    every = np.uint32(0xFFFFFFFF)
    for k in range(num_chars + 1):
        kind = kinds[k] if k < num_chars else np.uint32(WHITE)
        if not kind & WHITE:
            digest = mixed(digest, codes[k])
            some |= kind
            every &= kind
        else:
            if k > start:
                words[num_words] = digest
                word_chars[num_words] = k - start
                word_marks[num_words] = 2 | (HAS_LETTER if some & ALPHA else 0) | (0 if every & PUNCTUATION else IS_PLAIN)
                num_words += 1
                digest = FNV_OFFSET
                some = np.uint32(0)
                every = np.uint32(0xFFFFFFFF)
            start = k + 1
    return num_words


@njit(cache=True, nogil=True)
def split_unicode(scratch: Any, num_chars: Any, counts: Any) -> Any:
    """Fill the words; their number. Word characters: those below U+0590, in which encoded data and minified code are written; a word of
    another script counts 1."""
    digest = FNV_OFFSET
    codes, kinds, words, word_chars, word_marks = scratch.codes, scratch.kinds, scratch.words, scratch.word_chars, scratch.word_marks
    num_words = length = num_latin = sum_latin = sum_chars = 0
    some = np.uint32(0)
    for k in range(num_chars + 1):
        kind = kinds[k] if k < num_chars else np.uint32(SPACE)
        if not kind & (_BREAK | UNSPACED):
            if length or not kind & MARK:
                digest = mixed(digest, codes[k])
                length += 1
                num_latin += (kind & LATIN) != 0
                some |= kind
            continue
        if some & (LETTER | DIGIT):
            words[num_words], word_chars[num_words] = digest, length
            word_marks[num_words] = 2 | IS_PLAIN | (HAS_LETTER if some & ALPHA else 0)
            num_words += 1
            sum_chars += length
            sum_latin += max(num_latin, 1)
        digest = FNV_OFFSET
        length = num_latin = 0
        some = np.uint32(0)
        if kind & UNSPACED:
            words[num_words], word_chars[num_words] = mixed(digest, codes[k]), 1
            word_marks[num_words] = 1 | IS_PLAIN | (HAS_LETTER if kind & ALPHA else 0)
            num_words += 1
            sum_chars += 1
            sum_latin += 1
    counts[NUM_WORDS], counts[NUM_WORD_CHARS], counts[NUM_GRAM_CHARS] = num_words, sum_latin, sum_chars
    return num_words


@njit(cache=True, nogil=True)
def count_words(scratch: Any, num_words: Any, stops: Any, language: Any, counts: Any) -> None:
    """Gopher's counts of words; ``language`` is the number of the stop words' language."""
    salt = np.uint64(language) * np.uint64(0x9E3779B97F4A7C15)
    words, word_marks, word_chars, keys, bits = scratch.words, scratch.word_marks, scratch.word_chars, stops.keys, stops.bits
    all_halves = plain = plain_chars = alpha = 0
    found = np.uint64(0)
    for k in range(num_words):
        marks = word_marks[k]
        halves = marks & HALVES
        all_halves += halves
        if marks & IS_PLAIN:
            plain += halves
            plain_chars += word_chars[k]
        if marks & HAS_LETTER:
            alpha += halves
        if language:
            found |= _stop_bit(words[k] ^ salt, keys, bits)
    counts[NUM_HALVES], counts[NUM_PLAIN_HALVES], counts[NUM_PLAIN_CHARS], counts[NUM_ALPHA_HALVES] = all_halves, plain, plain_chars, alpha
    counts[NUM_STOP_WORDS] = 0
    while found:
        found &= found - np.uint64(1)
        counts[NUM_STOP_WORDS] += 1


@njit(cache=True, nogil=True)
def _stop_bit(key: Any, keys: Any, bits: Any) -> Any:
    slot = np.int64(key & np.uint64(_STOP_SLOTS - 1))
    while keys[slot] != 0:
        if keys[slot] == key:
            return bits[slot]
        slot = (slot + 1) & (_STOP_SLOTS - 1)
    return np.uint64(0)
