"""Passages of evaluation documents inside longer documents: a question in the middle of a page, which is a duplicate of neither.

The evaluation documents are tokenized with the dataset's tokenizer. Every run of SEED_TOKENS of their tokens is in a hash table; one pass over a
shard's tokens, with a rolling hash, finds where such a run stands, and a match is then followed to both sides as far as it goes. It counts if
it is as long as was asked for, or as the evaluation document is but for a token at each end, which the neighbours may change (a space, a
plural). Evaluation documents of fewer than SEED_TOKENS tokens are not looked for. End-of-text tokens match nothing, so a
passage lies in one document. Cost: 50 to 200 million tokens per second and core. Source: Brown et al. 2020, appendix C (runs of 13 words).
"""

from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.dataset.shards import Tokens

SEED_TOKENS = 13
FREE = -1
_BASE = np.uint64(0x9E3779B97F4A7C15)
_LEAVING = np.uint64(pow(0x9E3779B97F4A7C15, SEED_TOKENS, 2**64))
"""What the oldest token of a run has been multiplied with when it leaves."""
Ids = npt.NDArray[np.int64]


class Passages(NamedTuple):
    """The tokens of d evaluation documents, and where each run of SEED_TOKENS stands first."""

    tokens: npt.NDArray[np.uint32]  # [n]
    starts: Ids  # [d + 1]
    keys: npt.NDArray[np.uint64]  # open addressing, at most half full
    places: Ids  # position in tokens, or FREE
    seen: npt.NDArray[np.uint8]  # a bit for every slot of a table eight times as large: says no to nearly all runs, out of the cache


class Matches(NamedTuple):
    """Passages in a run of tokens: where each begins, of which evaluation document, and which share of that one it is."""

    positions: Ids
    documents: Ids
    shares: npt.NDArray[np.float32]


def open_passages(documents: pa.LargeListArray) -> Passages:
    """Index evaluation documents, given as token ids."""
    tokens = documents.flatten().to_numpy(zero_copy_only=False).astype(np.uint32)
    starts = documents.offsets.to_numpy().astype(np.int64)
    starts -= starts[0]
    num_slots = 1 << max(4, int(2 * len(tokens)).bit_length())
    passages = Passages(tokens, starts, np.zeros(num_slots, np.uint64), np.full(num_slots, FREE, np.int64), np.zeros(num_slots, np.uint8))
    _fill(passages)
    return passages


def find_passages(tokens: Tokens, passages: Passages, min_tokens: int) -> Matches:
    """Passages of at least ``min_tokens`` tokens in a flat run of tokens, from left to right, none inside another."""
    return Matches(*_find_all(tokens, passages, min_tokens))


@numba.njit(cache=True, nogil=True, inline="always")
def _mixed(key: Any) -> Any:
    return (key ^ (key >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9) >> np.uint64(20)


@numba.njit(cache=True, nogil=True, inline="always")
def _slot(keys: Any, places: Any, key: Any) -> Any:
    """Slot of the key, or the free one where it belongs."""
    mask = np.uint64(len(keys) - 1)
    slot = _mixed(key) & mask
    while places[slot] != FREE and keys[slot] != key:
        slot = (slot + np.uint64(1)) & mask
    return slot


@numba.njit(cache=True, nogil=True)
def _fill(passages: Any) -> None:
    for document in range(len(passages.starts) - 1):
        key = np.uint64(0)
        for position in range(passages.starts[document], passages.starts[document + 1]):
            key = key * _BASE + np.uint64(passages.tokens[position]) + np.uint64(1)
            first = position - SEED_TOKENS + 1
            if first > passages.starts[document]:
                key -= (np.uint64(passages.tokens[first - 1]) + np.uint64(1)) * _LEAVING
            if first >= passages.starts[document]:
                slot = _slot(passages.keys, passages.places, key)
                if passages.places[slot] == FREE:
                    passages.keys[slot], passages.places[slot] = key, first
                bit = _mixed(key) & np.uint64(8 * len(passages.seen) - 1)
                passages.seen[bit >> np.uint64(3)] |= np.uint8(1) << np.uint8(bit & np.uint64(7))


@numba.njit(cache=True, nogil=True)
def _find_all(tokens: Any, passages: Any, min_tokens: Any) -> Any:
    positions, documents, shares = [np.int64(0) for _ in range(0)], [np.int64(0) for _ in range(0)], [np.float32(0) for _ in range(0)]
    key, done, bits = np.uint64(0), 0, np.uint64(8 * len(passages.seen) - 1)
    for position in range(len(tokens)):
        key = key * _BASE + np.uint64(tokens[position]) + np.uint64(1)
        first = position - SEED_TOKENS + 1
        if first > 0:
            key -= (np.uint64(tokens[first - 1]) + np.uint64(1)) * _LEAVING
        if first < done:
            continue
        bit = _mixed(key) & bits
        if not passages.seen[bit >> np.uint64(3)] >> np.uint8(bit & np.uint64(7)) & np.uint8(1):
            continue
        place = passages.places[_slot(passages.keys, passages.places, key)]
        if place == FREE:
            continue
        document = np.searchsorted(passages.starts, place, side="right") - 1
        begin, end = _followed(tokens, first, passages, place, document)
        length = passages.starts[document + 1] - passages.starts[document]
        if end - begin >= min(min_tokens, max(SEED_TOKENS, length - 2)):
            positions.append(np.int64(begin))
            documents.append(np.int64(document))
            shares.append(np.float32(end - begin) / np.float32(length))
            done = end
    return np.array(positions, np.int64), np.array(documents, np.int64), np.array(shares, np.float32)


@numba.njit(cache=True, nogil=True)
def _followed(tokens: Any, first: Any, passages: Any, place: Any, document: Any) -> Any:
    """[begin, end) of the longest common run around two positions; empty if the tokens differ there after all."""
    begin, there = first, place
    while begin > 0 and there > passages.starts[document] and tokens[begin - 1] == passages.tokens[there - 1]:
        begin, there = begin - 1, there - 1
    end, there = first, place
    while end < len(tokens) and there < passages.starts[document + 1] and tokens[end] == passages.tokens[there]:
        end, there = end + 1, there + 1
    return (begin, end) if end - first >= SEED_TOKENS else (first, first)
