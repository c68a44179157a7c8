"""Interpolated modified Kneser-Ney estimation of an n-gram model, as kenlm's ``lmplz`` does it, in NumPy.

    p(w | h) = (a(hw) - D(a(hw))) / sum_x a(hx) + b(h) p(w | h')        h' = h without its first unit
a: how often the n-gram occurs at the highest order and after <s>, else the number of different units before it. D: one discount for each of
a = 1, 2, 3 and more, from the counts of counts. b: what the discounts (and pruned n-grams) leave. The unigrams are interpolated with the
uniform distribution over all units but <s>; that share is all that <unk> gets.
Sources: Chen and Goodman 1998; Heafield et al. 2013 (ACL), section 3.

Invariant: the probabilities after every context add up to 1 over the vocabulary.
Cost: a sort of the references' units per order: some 10 s and 1 GB for 10 million units at order 4.
"""

import itertools
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipelines.quality.vocabulary import BEGIN, END, UNKNOWN

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)
"""lmplz's for references that are too small to have n-grams of each count."""
PRUNED_FROM = 3


class Grams(NamedTuple):
    """The n-grams of one order, sorted; those of order n name their first n - 1 units by position among the n-grams of order n - 1."""

    context: Ints
    word: Ints
    log_probability: Floats
    """log10."""
    log_backoff: Floats
    """log10; 0 where nothing follows."""


class _Counts(NamedTuple):
    context: Ints
    word: Ints
    suffix: Ints
    """Position of the n-gram without its first unit among those of the order below."""
    raw: Ints
    begins: npt.NDArray[np.bool_]
    """Whether the first unit is <s>."""


def estimate(stream: Ints, vocabulary_size: int, order: int, prune: int) -> list[Grams]:
    """The model, by order. ``stream``: ids of all units, each paragraph between <s> and </s>.

    n-grams of order 3 and above that occur ``prune`` times or less are left out; their mass goes to the backoff.
    """
    counts = _count(stream, vocabulary_size, order)
    adjusted = [*(_continuations(low, high) for low, high in itertools.pairwise(counts)), counts[-1].raw]
    adjusted[0][BEGIN] = 0
    probabilities = [np.zeros(0)]
    backoffs: list[Floats] = []
    kept: list[npt.NDArray[np.bool_]] = []
    below = np.full(1, 1.0 / (vocabulary_size - 1))
    for number, (count, number_of) in enumerate(zip(counts, adjusted, strict=True), start=1):
        keep = count.raw > prune if number >= PRUNED_FROM else np.ones(len(count.raw), bool)
        num_contexts = len(counts[number - 2].raw) if number > 1 else 1
        share, backoff = _interpolate(count, number_of, keep, num_contexts)
        below = share + backoff[count.context] * below[count.suffix]
        probabilities.append(below)
        backoffs.append(backoff)
        kept.append(keep)
    backoffs.append(np.ones(len(counts[-1].raw)))
    return _kept_grams(counts, probabilities[1:], backoffs[1:], kept)


def _count(stream: Ints, vocabulary_size: int, order: int) -> list[_Counts]:
    """Distinct n-grams of each order that lie within one paragraph. ``ranks`` names for each position the n-gram that begins there."""
    ids = np.arange(vocabulary_size)
    nothing = np.zeros(vocabulary_size, np.int64)
    counts = [_Counts(nothing, ids, nothing, np.bincount(stream, minlength=vocabulary_size), ids == BEGIN)]
    ranks = stream
    at = np.arange(len(stream))
    for length in range(2, order + 1):
        at = at[(stream[at + length - 2] != END) & (at + length <= len(stream))]
        keys = ranks[at] * vocabulary_size + stream[at + length - 1]
        distinct, first, inverse, raw = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
        context, word = np.divmod(distinct, vocabulary_size)
        counts.append(_Counts(context, word, ranks[at[first] + 1], raw, counts[-1].begins[context]))
        ranks = np.full(len(stream), -1)
        ranks[at] = inverse
    return counts


def _continuations(low: _Counts, high: _Counts) -> Ints:
    """In how many different ways an n-gram is preceded; nothing precedes <s>."""
    return np.where(low.begins, low.raw, np.bincount(high.suffix, minlength=len(low.raw)))


def _interpolate(count: _Counts, adjusted: Ints, keep: npt.NDArray[np.bool_], num_contexts: int) -> tuple[Floats, Floats]:
    """The discounted share of each n-gram, and the backoff weight of each context (1 where nothing follows)."""
    discounts = np.concatenate([[0.0], _discounts(adjusted)])[np.minimum(adjusted, 3)]
    total = np.bincount(count.context, adjusted, num_contexts)
    left = np.bincount(count.context, np.where(keep, discounts, adjusted), num_contexts)
    follows = total > 0
    backoff = np.divide(left, total, out=np.ones(num_contexts), where=follows)
    return (adjusted - discounts) / np.maximum(total, 1)[count.context], backoff


def _discounts(adjusted: Ints) -> Floats:
    """D(1), D(2), D(3+) from the counts of counts."""
    once, twice, thrice, four = (int(np.count_nonzero(adjusted == number)) for number in (1, 2, 3, 4))
    if not (once and twice and thrice):
        return np.array(FALLBACK_DISCOUNTS)
    y = once / (once + 2 * twice)
    found = np.array([1 - 2 * y * twice / once, 2 - 3 * y * thrice / twice, 3 - 4 * y * four / thrice])
    valid = (found >= 0).all() and found[0] <= 1 and found[1] <= 2
    return found if valid else np.array(FALLBACK_DISCOUNTS)


def _kept_grams(counts: list[_Counts], probabilities: list[Floats], backoffs: list[Floats], kept: list[npt.NDArray[np.bool_]]) -> list[Grams]:
    """Contexts and suffixes of what is kept are kept: they occur at least as often."""
    grams = []
    moved = np.zeros(1, np.int64)
    for count, probability, backoff, keep in zip(counts, probabilities, backoffs, kept, strict=True):
        log_probability = np.log10(np.maximum(probability, 1e-99))
        grams.append(Grams(moved[count.context[keep]], count.word[keep], log_probability[keep], np.log10(np.maximum(backoff, 1e-99))[keep]))
        moved = np.cumsum(keep) - 1
    grams[0].log_probability[BEGIN] = -99.0
    grams[0].log_backoff[UNKNOWN] = 0.0
    return grams
