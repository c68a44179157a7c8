"""How informative a document is: the mean TF-IDF of its terms, in nats.

    score = sum over distinct terms t of (1 + ln tf(t)) * idf(t)  /  number of terms
    idf(t) = ln((1 + D) / (1 + df(t))), and 0 for a term that fewer than MIN_DOCUMENTS of the D reference documents use
A term is a word, or two neighbouring single characters of an unspaced script; punctuation is none. Repeated terms and those that are in every
document bring the score down; terms that the references do not know add nothing, or keyboard mash would tell the most. Longer
documents repeat more, so each window of WINDOW_TERMS terms is scored by itself and the document gets the mean over its terms.
Sources: Spärck Jones 1972 (idf); Salton and Buckley 1988 (logarithmic tf).

Cost: two look-ups per term, one in a table of 4 MB. Document frequencies are counted by hash in NUM_SLOTS slots; in English about one term in
ten shares its slot.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from pipelines.dedup.features import extend_hash, mix
from pipelines.quality.units import SINGLE, WORD

NUM_SLOTS = 1 << 20
WINDOW_TERMS = 256
MIN_DOCUMENTS = 2
_WINDOW_SLOTS = 1024
_LOGS = np.log(np.arange(1, WINDOW_TERMS + 2))


@njit(cache=True, nogil=True)
def terms_of(tokens: Any, terms: Any) -> Any:
    """Write the hashes of the terms of these tokens; returns how many: never more than tokens. A lone single character is a term."""
    count = 0
    for index in range(len(tokens.hashes)):
        kind = tokens.kinds[index]
        if kind == WORD:
            terms[count] = tokens.hashes[index]
            count += 1
        elif kind == SINGLE:
            after = index + 1 < len(tokens.hashes) and tokens.kinds[index + 1] == SINGLE
            before = index > 0 and tokens.kinds[index - 1] == SINGLE
            if after:
                terms[count] = mix(extend_hash(tokens.hashes[index], tokens.hashes[index + 1]))
                count += 1
            elif not before:
                terms[count] = tokens.hashes[index]
                count += 1
    return count


@njit(cache=True, nogil=True)
def count_documents(terms: Any, document: Any, last: Any, frequencies: Any) -> None:
    """Count the document in the frequency of each of its terms. ``last``: per slot the last document that was counted, -1 at first."""
    for term in terms:
        slot = np.int64(term & np.uint64(NUM_SLOTS - 1))
        if last[slot] != document:
            last[slot] = document
            frequencies[slot] += 1


def weights(frequencies: npt.NDArray[np.int64], num_documents: int) -> npt.NDArray[np.float32]:
    """idf by slot, float32 [NUM_SLOTS], read-only."""
    known = frequencies >= MIN_DOCUMENTS
    idf = np.where(known, np.log((1 + num_documents) / (1 + frequencies)), 0).astype("<f4")
    idf.flags.writeable = False
    return idf


@njit(cache=True, nogil=True)
def informativeness(terms: Any, idf: Any) -> Any:
    """The score of a document with at least one term."""
    keys = np.zeros(_WINDOW_SLOTS, np.uint64)
    counts = np.zeros(_WINDOW_SLOTS, np.int64)
    total = 0.0
    for first in range(0, len(terms), WINDOW_TERMS):
        counts[:] = 0
        for index in range(first, min(first + WINDOW_TERMS, len(terms))):
            term = terms[index]
            slot = np.int64(term >> np.uint64(40)) & (_WINDOW_SLOTS - 1)
            while counts[slot] and keys[slot] != term:
                slot = (slot + 1) & (_WINDOW_SLOTS - 1)
            keys[slot] = term
            gain = _LOGS[counts[slot]] - _LOGS[counts[slot] - 1] if counts[slot] else 1.0
            counts[slot] += 1
            total += gain * idf[np.int64(term & np.uint64(NUM_SLOTS - 1))]
    return total / len(terms)
