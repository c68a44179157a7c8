"""Repeated n-grams of n = 2 .. 10 words, by refinement: an n-gram can only repeat where both (n - 1)-grams in it do.

Position i is a candidate for n words if its n - 1 words and those of position i + 1 occur elsewhere too. Each level looks its candidates up
in a hash table and hands those that repeat to the next, so that a text without repetition costs little more than its 2-grams.
In text of unspaced script n words are 2n letters; a spaced word between them counts as one.
What is counted is datatrove's (Gopher, table A1): the top n-gram's occurrences, overlapping ones too; repeated n-grams from left to right
without overlaps. One difference: there n-grams longer than 4 are compared without the spaces between their words ("a bc" is "ab c").
Source: Rae et al. 2021, arXiv 2112.11446, appendix A.1. Cost: about 12 ns per word of ordinary prose.
"""

from typing import Any

from numba import njit

from pipelines.steps.rules.columns import GRAM_CHARS
from pipelines.steps.rules.scratch import FNV_OFFSET, clear_table, enter, mixed

_SEEN = -1
"""In ``firsts``: an occurrence of this n-gram was already met."""


@njit(cache=True, nogil=True)
def count_grams(scratch: Any, num_words: Any, step: Any, counts: Any) -> None:
    """Fill the columns from GRAM_CHARS; ``step`` is the number of words of the scratch that make one: 1, or 2 in unspaced script."""
    counts[GRAM_CHARS : GRAM_CHARS + 9] = 0
    if step == 1:
        _first_grams(scratch, num_words, counts)
    num_candidates = max(num_words - 1, 0)
    for k in range(num_candidates):
        scratch.positions[k] = k
        scratch.grams[k] = mixed(mixed(FNV_OFFSET, scratch.words[k]), scratch.words[k + 1])
    length = 2
    while num_candidates > 1 and length <= 10 * step:
        _look_up(scratch, num_candidates)
        if length % step == 0 and length // step >= 2:
            n = length // step
            column = GRAM_CHARS + n - 2
            chars = _top_chars(scratch, num_candidates, length, step) if n <= 4 else _repeated_chars(scratch, num_candidates, length)
            if chars:
                counts[column] = chars
        num_candidates = _refine(scratch, num_candidates, num_words, length)
        length += 1


@njit(cache=True, nogil=True)
def _first_grams(scratch: Any, num_words: Any, counts: Any) -> None:
    """Where no n-gram repeats, the top one is the first."""
    chars = -1
    for k in range(min(4, num_words)):
        chars += 1 + scratch.word_chars[k]
        if k:
            counts[GRAM_CHARS + k - 1] = chars


@njit(cache=True, nogil=True)
def _look_up(scratch: Any, num_candidates: Any) -> None:
    mask = clear_table(scratch, num_candidates)
    keys, counts, firsts, slots, grams = scratch.keys, scratch.counts, scratch.firsts, scratch.slots, scratch.grams
    for k in range(num_candidates):
        slot, is_new = enter(keys, counts, mask, grams[k])
        if is_new:
            firsts[slot] = k
        counts[slot] += 1
        slots[k] = slot


@njit(cache=True, nogil=True)
def _top_chars(scratch: Any, num_candidates: Any, length: Any, step: Any) -> Any:
    """Characters of all occurrences of the most frequent n-gram (the first of several), with the spaces in it; 0 if none repeats."""
    most, best = 1, -1
    slots, firsts, counts = scratch.slots, scratch.firsts, scratch.counts
    for k in range(num_candidates):
        slot = slots[k]
        if firsts[slot] == k and counts[slot] > most:
            most, best = counts[slot], k
    if best < 0:
        return 0
    return most * (_chars(scratch, scratch.positions[best], length) + (length - 1 if step == 1 else 0))


@njit(cache=True, nogil=True)
def _repeated_chars(scratch: Any, num_candidates: Any, length: Any) -> Any:
    behind = total = 0
    for k in range(num_candidates):
        slot = scratch.slots[k]
        if scratch.counts[slot] > 1 and scratch.positions[k] >= behind:
            if scratch.firsts[slot] == _SEEN:
                total += _chars(scratch, scratch.positions[k], length)
                behind = scratch.positions[k] + length
            scratch.firsts[slot] = _SEEN
    return total


@njit(cache=True, nogil=True)
def _chars(scratch: Any, position: Any, length: Any) -> Any:
    total = 0
    for k in range(position, position + length):
        total += scratch.word_chars[k]
    return total


@njit(cache=True, nogil=True)
def _refine(scratch: Any, num_candidates: Any, num_words: Any, length: Any) -> Any:
    """Keep the candidates whose n-gram may go on by one word; their number."""
    positions, slots, counts, grams, words = scratch.positions, scratch.slots, scratch.counts, scratch.grams, scratch.words
    num_kept = 0
    for k in range(num_candidates - 1):
        position = positions[k]
        follows = positions[k + 1] == position + 1
        if follows and position + length < num_words and counts[slots[k]] > 1 and counts[slots[k + 1]] > 1:
            positions[num_kept] = position
            grams[num_kept] = mixed(grams[k], words[position + length])
            num_kept += 1
    return num_kept
