"""The vocabulary of a language model: tokens that the references use at least twice, and letters to spell every other word with.

An open vocabulary is what makes perplexity fair: with a plain ``<unk>`` a rare but real word costs as much as keyboard mash. Here a word
outside the vocabulary is spelled by its letters (``^k ~e ~n ~l ~m``), learned from the words that the references use once, and the document's
log probability is divided by its words, not by the letters. Subwords of the dataset's tokenizer would tie the quality of a
document to the tokenizer's version, and split Chinese text by frequency where characters do as well.

Ids: 0 <unk>, 1 <s>, 2 </s>, then units from the most frequent one (the hot part of every table stays in the cache).
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from pipelines.dedup.features import extend_hash, mix
from pipelines.quality.table import Table, empty_table, find, insert_all, num_slots
from pipelines.quality.units import BREAK, CODE_MASK, KIND_SHIFT, MAX_WORD_CHARS, NOTHING, WORD, Tokens, fold
from pipelines.text.buffers import Source
from pipelines.text.characters import code_point_at

UNKNOWN, BEGIN, END = range(3)
SPECIAL = ("<unk>", "<s>", "</s>")
FIRST_LETTER, OTHER_LETTER = np.uint64(0xA5A5), np.uint64(0x5A5A)
"""Hash states from which letters of spelled words start, so that none of them is a word."""
MIN_COUNT = 2


class Vocabulary(NamedTuple):
    """Units and their ids."""

    table: Table
    """Hash of the unit -> id."""
    units: list[str]
    """By id: as an ARPA file names them."""


class Spelled(NamedTuple):
    """Letters of the words that are spelled, one after another."""

    hashes: npt.NDArray[np.uint64]
    names: list[str]


def fit_vocabulary(source: Source, tokens: Tokens) -> Vocabulary:
    """The vocabulary of all tokens of the references (without breaks)."""
    hashes, first, inverse, counts = np.unique(tokens.hashes, return_index=True, return_inverse=True, return_counts=True)
    kinds = tokens.kinds[first]
    listed = (kinds != BREAK) & ((kinds != WORD) | (counts >= MIN_COUNT))
    rare = np.flatnonzero(~listed[inverse] & (tokens.kinds == WORD))
    letters = _letters(source, tokens.starts[rare])
    letter_hashes, letter_first, letter_counts = np.unique(letters.hashes, return_index=True, return_counts=True)
    names = [_name(source, start, kind) for start, kind in zip(tokens.starts[first[listed]], kinds[listed], strict=True)]
    names += [letters.names[index] for index in letter_first]
    return _numbered(np.concatenate([hashes[listed], letter_hashes]), np.concatenate([counts[listed], letter_counts]), names)


def _numbered(hashes: npt.NDArray[np.uint64], counts: npt.NDArray[np.int64], names: list[str]) -> Vocabulary:
    order = np.lexsort((hashes, -counts))
    table = empty_table(num_slots(len(order)))
    ids = np.arange(len(SPECIAL), len(SPECIAL) + len(order), dtype=np.uint64)
    insert_all(table, (0, len(table)), hashes[order], ids, np.zeros(len(order), np.int64))
    table.flags.writeable = False
    return Vocabulary(table, [*SPECIAL, *(names[index] for index in order)])


def _name(source: Source, start: int, kind: int) -> str:
    # MAX_WORD_CHARS characters and what is passed over between them; a character cut in two at the end is dropped.
    text = source.data[start : start + 8 * MAX_WORD_CHARS].tobytes().decode("utf-8", "ignore")
    table = source.flags
    length = 0
    while length < len(text) and (length == 0 or (kind == WORD and table[ord(text[length])] >> KIND_SHIFT in (WORD, NOTHING))):
        length += 1
    return fold(text[:length])[:MAX_WORD_CHARS]


def _letters(source: Source, starts: npt.NDArray[np.int64]) -> Spelled:
    hashes = np.zeros((len(starts), MAX_WORD_CHARS), np.uint64)
    codes = np.zeros((len(starts), MAX_WORD_CHARS), np.uint32)
    _spell_all(source, starts, hashes, codes)
    filled = codes != 0
    is_first = np.zeros_like(filled)
    is_first[:, 0] = True
    marks = np.where(is_first, "^", "~")[filled].tolist()
    return Spelled(hashes[filled], [mark + chr(code) for mark, code in zip(marks, codes[filled].tolist(), strict=True)])


@njit(cache=True, nogil=True)
def _spell_all(source: Any, starts: Any, hashes: Any, codes: Any) -> None:
    data, table = source
    for row in range(len(starts)):
        at = starts[row]
        num_chars = 0
        while at < len(data) and num_chars < MAX_WORD_CHARS:
            code, size = code_point_at(data, at)
            kind = table[code] >> np.uint32(KIND_SHIFT)
            if kind == WORD:
                value = table[code] & np.uint32(CODE_MASK)
                hashes[row, num_chars] = _letter_hash(value, num_chars == 0)
                codes[row, num_chars] = value
                num_chars += 1
            elif kind != NOTHING:
                break
            at += size


@njit(cache=True, nogil=True)
def _letter_hash(value: Any, is_first: Any) -> Any:
    return mix(extend_hash(FIRST_LETTER if is_first else OTHER_LETTER, value))


@njit(cache=True, nogil=True)
def encode(source: Any, stop: Any, tokens: Any, vocabulary: Any, ids: Any) -> Any:
    """Ids of the tokens of a text that ends at byte ``stop``; a break is </s>. Returns how many ids there are.

    ``ids`` has room for one id per byte of the text. The lookups do not wait for one another, so the memory answers many at once.
    """
    filled = 0
    region = (0, len(vocabulary))
    for index in range(len(tokens.hashes)):
        if tokens.kinds[index] == BREAK:
            ids[filled] = END
            filled += 1
            continue
        slot = find(vocabulary, region, tokens.hashes[index])
        if slot >= 0:
            ids[filled] = np.int64(vocabulary[slot, 1])
            filled += 1
        elif tokens.kinds[index] == WORD:
            filled += _spell(source, tokens.starts[index], stop, vocabulary, ids[filled:])
        else:
            ids[filled] = UNKNOWN
            filled += 1
    return filled


@njit(cache=True, nogil=True)
def _spell(source: Any, at: Any, stop: Any, vocabulary: Any, ids: Any) -> Any:
    data, table = source
    region = (0, len(vocabulary))
    num_chars = 0
    while at < stop and num_chars < MAX_WORD_CHARS:
        code, size = code_point_at(data, at)
        kind = table[code] >> np.uint32(KIND_SHIFT)
        if kind == WORD:
            slot = find(vocabulary, region, _letter_hash(table[code] & np.uint32(CODE_MASK), num_chars == 0))
            ids[num_chars] = np.int64(vocabulary[slot, 1]) if slot >= 0 else UNKNOWN
            num_chars += 1
        elif kind != NOTHING:
            break
        at += size
    return num_chars
