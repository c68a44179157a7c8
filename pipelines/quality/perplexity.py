"""Perplexity of documents under an n-gram model: the tables that a file holds, and the compiled scorer over them.

    perplexity = 10 ^ (-log10 p(document) / (tokens + paragraphs))
as kenlm's ``Model.perplexity`` has it, but a word that is spelled counts as one token however many letters it takes.

An n-gram is found under (slot of its first n - 1 units, last unit), so keys are exact, and the slots that were found for one unit are the
contexts of the next: at most one lookup per order and unit. Its log10 probability and backoff are the two float32 of the slot's value.
Checked against ``kenlm`` reading the same model as an ARPA file (arpa.py): the log10 probabilities agree within 1e-4.
"""

import itertools
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from pipelines.quality.estimate import Grams
from pipelines.quality.table import EMPTY, Table, empty_table, find, insert_all, num_slots
from pipelines.quality.vocabulary import BEGIN, END

MAX_ORDER = 6
MAX_PERPLEXITY = 1e9
"""Anything above is this: nothing can be told apart there, and float32 has an end."""


class LanguageModel(NamedTuple):
    """What the scorer reads, all read-only."""

    vocabulary: Table
    unigrams: npt.NDArray[np.float32]
    """log10 probability and backoff by id, float32 [ids, 2]."""
    grams: Table
    """The n-grams of order 2 and above, each order in its own region."""
    floats: npt.NDArray[np.float32]
    """The same memory as float32 [slots, 4]: columns 2 and 3 are log10 probability and backoff."""
    bounds: npt.NDArray[np.int64]
    """First slot of each region, and the end of the last one; int64 [order]."""


def language_model(vocabulary: Table, unigrams: npt.NDArray[np.float32], grams: Table, bounds: npt.NDArray[np.int64]) -> LanguageModel:
    """The parts as the scorer wants them."""
    floats = grams.view(np.float32)
    for part in (vocabulary, unigrams, grams, floats, bounds):
        part.flags.writeable = False
    return LanguageModel(vocabulary, unigrams, grams, floats, bounds)


def build_model(vocabulary: Table, grams: list[Grams]) -> LanguageModel:
    """The estimated n-grams as tables. Same input, same bytes."""
    sizes = [num_slots(len(gram.word)) for gram in grams[1:]]
    bounds = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    table = empty_table(int(bounds[-1]))
    slots = np.arange(len(grams[0].word))
    for gram, first, size in zip(grams[1:], bounds, sizes, strict=False):
        keys = slots[gram.context].astype(np.uint64) << np.uint64(32) | gram.word.astype(np.uint64)
        slots = np.zeros(len(keys), np.int64)
        insert_all(table, (int(first), size), keys, _packed(gram).view(np.uint64)[:, 0], slots)
    return language_model(vocabulary, _packed(grams[0]), table, bounds)


def _packed(gram: Grams) -> npt.NDArray[np.float32]:
    return np.stack([gram.log_probability, gram.log_backoff], axis=1).astype("<f4")


def stored_grams(model: LanguageModel) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
    """By order: ids of the units, int64 [n, order], and log10 probability and backoff, float32 [n, 2]. For export."""
    found = [(np.arange(len(model.unigrams))[:, None], model.unigrams)]
    units = found[0][0]
    before = 0
    for first, end in itertools.pairwise(model.bounds.tolist()):
        keys = model.grams[first:end, 0]
        used = np.flatnonzero(keys != EMPTY)
        context = (keys[used] >> np.uint64(32)).astype(np.int64) - before
        word = (keys[used] & np.uint64(0xFFFFFFFF)).astype(np.int64)
        by_slot = np.zeros((end - first, units.shape[1] + 1), np.int64)
        by_slot[used] = np.concatenate([units[context], word[:, None]], axis=1)
        found.append((by_slot[used], model.floats[first:end][used, 2:]))
        units, before = by_slot, int(first)
    return found


@njit(cache=True, nogil=True)
def log_probability(ids: Any, count: Any, model: Any) -> Any:
    """log10 probability of ids that may hold </s> between paragraphs and end without one; and the number of paragraphs."""
    order = len(model.bounds)
    context = np.zeros(MAX_ORDER, np.int64)
    found = np.zeros(MAX_ORDER, np.int64)
    context[0] = BEGIN
    length = num_paragraphs = 1
    total = 0.0
    for index in range(count + 1):
        word = np.int64(ids[index]) if index < count else np.int64(END)
        score = np.float64(model.unigrams[word, 0])
        found[0] = word
        matched = 1
        while matched <= length and matched < order:
            first = model.bounds[matched - 1]
            key = np.uint64(context[matched - 1]) << np.uint64(32) | np.uint64(word)
            slot = find(model.grams, (first, model.bounds[matched] - first), key)
            if slot < 0:
                break
            score = np.float64(model.floats[slot, 2])
            found[matched] = slot
            matched += 1
        total += score
        for used in range(matched, length + 1):
            total += model.unigrams[context[0], 1] if used == 1 else model.floats[context[used - 1], 3]
        if word == END:
            num_paragraphs += index < count
            found[0] = BEGIN
            matched = 1
        length = min(matched, order - 1)
        for used in range(length):
            context[used] = found[used]
    return total, num_paragraphs


@njit(cache=True, nogil=True)
def perplexity(total: Any, num_units: Any) -> Any:
    """Of a log10 probability over so many units."""
    exponent = -total / num_units
    return 10.0**exponent if exponent < np.log10(MAX_PERPLEXITY) else MAX_PERPLEXITY
