"""A linear classifier of good and bad documents: logistic regression on hashed word and character n-grams.

Features: tokens, pairs of neighbouring tokens, and 4-grams of characters (case kept, digits as 0, white space as one space), hashed into NUM_WEIGHTS.
Each group is averaged over the document, as fastText does (Joulin et al. 2016), so that length does not decide:
    probability = 1 / (1 + exp(-(b + mean_tokens w + mean_pairs w + mean_4grams w)))
Fitted by AdaGrad (Duchi et al. 2011) with L2 on the features that occur, in an order fixed by SEED; the weights are those of all steps
averaged (Polyak and Juditsky 1992). Both classes count the same in total, so 0.5 is the point where a document is as like one as like
the other, however many examples of each were given.

Invariant: the same examples in the same order give the same bytes.
Cost: scoring about 1.5 look-ups per byte in a table of 1 MB.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from pipelines.dedup.features import mix
from pipelines.quality.units import CODE_MASK, KIND_SHIFT, LINE_END, NOTHING, SPACING
from pipelines.text.characters import code_point_at

NUM_WEIGHTS = 1 << 18
NUM_GROUPS = 3
TOKENS, PAIRS, CHARACTERS = range(NUM_GROUPS)
EPOCHS = 8
LEARNING_RATE = 0.5
L2 = 1e-6
SEED = 0
_SLOT_MASK = np.uint64(NUM_WEIGHTS - 1)
_PAIR = np.uint64(0x9E3779B97F4A7C15)
_ZERO, _SPACE = 0x30, 0x20


class Examples(NamedTuple):
    """Features of labelled documents: document i has ``slots[offsets[i, g]:offsets[i, g + 1]]`` in group g."""

    slots: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    """int64 [n, NUM_GROUPS + 1]."""
    is_good: npt.NDArray[np.bool_]


@njit(cache=True, nogil=True)
def features_of(source: Any, start: Any, stop: Any, tokens: Any, slots: Any) -> Any:
    """Write the feature slots of a text, group after group; returns where the groups end. ``slots`` has room for 3 per byte."""
    count = len(tokens.hashes)
    for index in range(count):
        slots[index] = np.int32(tokens.hashes[index] & _SLOT_MASK)
    filled = count
    for index in range(1, count):
        slots[filled] = np.int32(mix(tokens.hashes[index - 1] * _PAIR ^ tokens.hashes[index]) & _SLOT_MASK)
        filled += 1
    return count, filled, filled + _character_features(source, start, stop, slots[filled:])


@njit(cache=True, nogil=True)
def _character_features(source: Any, start: Any, stop: Any, slots: Any) -> Any:
    """The last four characters are the four 16-bit lanes of ``gram``; a code point above the lane folds into it."""
    data, table = source
    gram = np.uint64(0)
    num_chars = filled = 0
    at = start
    last = np.uint64(_SPACE)
    while at < stop:
        code, size = code_point_at(data, at)
        at += size
        entry = table[code]
        kind = entry >> np.uint32(KIND_SHIFT)
        char = np.uint64(code)
        if kind in (SPACING, LINE_END):
            char = np.uint64(_SPACE)
        elif entry & np.uint32(CODE_MASK) == _ZERO:
            char = np.uint64(_ZERO)
        if kind == NOTHING or (char == _SPACE and last == _SPACE):
            continue
        last = char
        gram = gram << np.uint64(16) | ((char ^ char >> np.uint64(16)) & np.uint64(0xFFFF))
        num_chars += 1
        if num_chars >= 4:
            slots[filled] = np.int32(mix(gram) & _SLOT_MASK)
            filled += 1
    return filled


@njit(cache=True, nogil=True)
def logit(slots: Any, ends: Any, weights: Any) -> Any:
    """b + the mean weight of each group; ``weights``: float32 [NUM_WEIGHTS + 1], the last one is b."""
    total = np.float64(weights[NUM_WEIGHTS])
    first = 0
    for end in ends:
        mean = 0.0
        for index in range(first, end):
            mean += weights[slots[index]]
        if end > first:
            total += mean / (end - first)
        first = end
    return total


@njit(cache=True, nogil=True)
def probability(value: Any) -> Any:
    """The logistic function, for any value."""
    if value >= 0:
        return 1.0 / (1.0 + np.exp(-value))
    power = np.exp(value)
    return power / (1.0 + power)


def fit_weights(examples: Examples) -> npt.NDArray[np.float32]:
    """float32 [NUM_WEIGHTS + 1], read-only."""
    rng = np.random.default_rng(SEED)
    count = len(examples.is_good)
    order = np.concatenate([rng.permutation(count) for _ in range(EPOCHS)])
    num_good = int(examples.is_good.sum())
    class_weights = np.array([count / (2 * (count - num_good)), count / (2 * num_good)])
    weights: npt.NDArray[np.float32] = _descend(examples, order, class_weights).astype("<f4")
    weights.flags.writeable = False
    return weights


@njit(cache=True, nogil=True)
def _descend(examples: Any, order: Any, class_weights: Any) -> Any:
    weights = np.zeros(NUM_WEIGHTS + 1)
    squares = np.full(NUM_WEIGHTS + 1, 1e-12)
    drift = np.zeros(NUM_WEIGHTS + 1)  # sum of (step number x change): what the average lags behind the last weights
    for step in range(len(order)):
        row = order[step]
        slots, offsets = examples.slots[examples.offsets[row, 0] :], examples.offsets[row] - examples.offsets[row, 0]
        label = np.int64(examples.is_good[row])
        error = class_weights[label] * (probability(logit(slots, offsets[1:], weights)) - label)
        _update(weights, (squares, drift, step), NUM_WEIGHTS, error)
        for group in range(NUM_GROUPS):
            size = max(offsets[group + 1] - offsets[group], 1)
            for index in range(offsets[group], offsets[group + 1]):
                slot = slots[index]
                _update(weights, (squares, drift, step), slot, error / size + L2 * weights[slot])
    return weights - drift / max(len(order), 1)


@njit(cache=True, nogil=True, inline="always")
def _update(weights: Any, state: Any, slot: Any, gradient: Any) -> None:
    squares, drift, step = state
    squares[slot] += gradient * gradient
    change = -LEARNING_RATE * gradient / np.sqrt(squares[slot])
    weights[slot] += change
    drift[slot] += step * change


class Holdout(NamedTuple):
    """How the classifier does on examples that it was not fitted on, at probability 0.5."""

    num_good: int
    num_bad: int
    accuracy: float
    auc: float
    f1: float


def measure(probabilities: npt.NDArray[np.float64], is_good: npt.NDArray[np.bool_]) -> Holdout:
    """Accuracy, area under the ROC curve (ties count half) and F1 of the good class; 0 where a class is missing."""
    said = probabilities >= 0.5
    right = int((said & is_good).sum())
    accuracy = float((said == is_good).mean()) if len(is_good) else 0.0
    f1 = 2 * right / max(int(said.sum() + is_good.sum()), 1)
    return Holdout(int(is_good.sum()), int((~is_good).sum()), accuracy, auc(probabilities[is_good], probabilities[~is_good]), f1)


def auc(higher: npt.NDArray[np.float64], lower: npt.NDArray[np.float64]) -> float:
    """Probability that a value of ``higher`` is above one of ``lower``; ties count half. 0 if either is empty."""
    if not len(higher) or not len(lower):
        return 0.0
    below = np.searchsorted(np.sort(lower), higher, "left") + np.searchsorted(np.sort(lower), higher, "right")
    return float(below.sum() / (2 * len(higher) * len(lower)))
