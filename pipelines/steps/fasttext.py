"""A quantized fastText classifier (``.ftz``), read from its file and run over Arrow buffers: many lines at a time, no Python per line.

What a line scores is what fastText gives (Joulin et al. 2016, 2017): the mean of the vectors of its words and of their character n-grams, down
a Huffman tree of sigmoids. The vectors are unpacked once: a product-quantized row costs more to decode than to read.
Words end at ASCII white space. Lines are UTF-8 without a line end in them.

Cost: about 25 ns per n-gram of a word that is not remembered, so 5 to 10 us for a line of 600 characters; 12 MB for the model of 176 languages.
Source: the file format is that of fastText 0.9.2 (MIT licence), version 12.
"""

import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from pipelines.text.packed import MULTIPLIER, packed, stirred

MAGIC, VERSION = 793712314, 12
_HIERARCHICAL_SOFTMAX = 1
_WORD = 0
_LABEL = b"__label__"
_FNV_OFFSET, _FNV_PRIME = np.uint32(2166136261), np.uint32(16777619)
_NONE = -1
_MARGIN = np.float32(1e-3)
_PLACES = 1 << 15
_PLACE_SHIFT = np.uint64(64 - 15)
_MAX_KNOWN_BYTES = 24
_DIM = 16
"""Dimensions of a vector: known at compile time, so that adding one is a single instruction."""


class Tree(NamedTuple):
    """Huffman tree of the labels: leaf i is label i; children come before their parents, the root is last."""

    left: npt.NDArray[np.int32]
    right: npt.NDArray[np.int32]
    vectors: npt.NDArray[np.float32]
    """Of the inner nodes, float32 [labels - 1 or more, dimensions]."""


class Classifier(NamedTuple):
    """A model for the kernel."""

    vectors: npt.NDArray[np.float32]
    """Of words, then of n-grams, float32 [rows, dimensions]."""
    word_hashes: npt.NDArray[np.uint64]
    """Hash table of the words; 0 is free."""
    word_rows: npt.NDArray[np.int32]
    gram_rows: npt.NDArray[np.int32]
    """Row of each n-gram's bucket, -1 for those that were pruned."""
    tree: Tree
    min_chars: int
    """Of an n-gram."""
    max_chars: int
    end_row: int
    """Row of the end of a line; -1 for none."""


class Memory(NamedTuple):
    """What words have added up to, by a hash of the word, the newest of those that share a place. For one model, one thread."""

    words: npt.NDArray[np.uint64]
    """Three words of bytes, then the length and the number of vectors: uint64 [places, 4]."""
    sums: npt.NDArray[np.float32]
    """float32 [places, dimensions]."""


def new_memory() -> Memory:
    """An empty memory, 3 MB."""
    return Memory(np.zeros((_PLACES, 4), np.uint64), np.zeros((_PLACES, _DIM), np.float32))


class _Reader:
    """Little-endian values, one after the other."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + layout, self._data, self._at)
        self._at += struct.calcsize("<" + layout)
        return values

    def array(self, dtype: str, count: int) -> npt.NDArray[Any]:
        values = np.frombuffer(self._data, dtype, count, self._at)
        self._at += values.nbytes
        return values

    def word(self) -> bytes:
        end = self._data.index(b"\0", self._at)
        word, self._at = self._data[self._at : end], end + 1
        return word


def load_classifier(path: Path) -> tuple[Classifier, list[str]]:
    """The model and its labels, by number. Raises ValueError for a file that is no quantized classifier with a Huffman tree."""
    reader = _Reader(path.read_bytes())
    header = reader.take("2i12id")
    dim, loss, bucket, min_chars, max_chars = header[2], header[8], header[10], header[11], header[12]
    if header[:2] != (MAGIC, VERSION) or loss != _HIERARCHICAL_SOFTMAX or dim != _DIM:
        raise ValueError(f"{path} is not a fastText classifier of version {VERSION} with hierarchical softmax and {_DIM} dimensions")
    num_entries, num_words, num_labels, _, num_kept = reader.take("3i2q")
    entries = [(reader.word(), *reader.take("qb")) for _ in range(num_entries)]
    kept = reader.array("<i4", 2 * num_kept).reshape(-1, 2)
    words = [word for word, _, kind in entries if kind == _WORD]
    labels = [(word, count) for word, count, kind in entries if kind != _WORD]
    assert (len(words), len(labels)) == (num_words, num_labels)
    gram_rows = np.full(bucket, _NONE, np.int32)
    gram_rows[kept[:, 0]] = num_words + kept[:, 1]
    if not reader.take("?")[0]:
        raise ValueError(f"{path} is not quantized")
    vectors = _quantized_matrix(reader)
    assert vectors.shape[1] == dim
    if reader.take("?")[0]:
        output = _quantized_matrix(reader)
    else:
        rows, columns = reader.take("2q")
        output = reader.array("<f4", rows * columns).reshape(rows, columns)
    left, right = _huffman([count for _, count in labels])
    hashes, rows_of = _word_table(words)
    end_row = words.index(b"</s>") if b"</s>" in words else _NONE
    tree = Tree(left, right, np.ascontiguousarray(output, np.float32))
    names = [word.removeprefix(_LABEL).decode() for word, _ in labels]
    return Classifier(vectors, hashes, rows_of, gram_rows, tree, min_chars, max_chars, end_row), names


def _quantized_matrix(reader: _Reader) -> npt.NDArray[np.float32]:
    """Product-quantized rows, unpacked, with the norms that may be quantized apart."""
    has_norms, num_rows, num_columns, num_codes = reader.take("?2qi")
    codes = reader.array("u1", num_codes).reshape(num_rows, -1)
    matrix = _unpacked(codes, *_quantizer(reader))[:, :num_columns]
    if has_norms:
        norms = reader.array("u1", num_rows)
        matrix = matrix * _unpacked(norms.reshape(-1, 1), *_quantizer(reader))
    return np.ascontiguousarray(matrix, np.float32)


def _quantizer(reader: _Reader) -> tuple[npt.NDArray[np.float32], int, int]:
    dim, _, part_dim, last_dim = reader.take("4i")
    return reader.array("<f4", dim * 256), part_dim, last_dim


def _unpacked(codes: npt.NDArray[np.uint8], centroids: npt.NDArray[np.float32], part_dim: int, last_dim: int) -> npt.NDArray[np.float32]:
    num_parts = codes.shape[1]
    parts = []
    for part in range(num_parts):
        width = last_dim if part == num_parts - 1 else part_dim
        table = centroids[part * 256 * part_dim :][: 256 * width].reshape(256, width)
        parts.append(table[codes[:, part]])
    return np.concatenate(parts, axis=1)


def _huffman(counts: list[int]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Children of each node, -1 for the leaves. Labels are sorted by falling count, as fastText keeps them."""
    number = len(counts)
    weights = [*counts, *[10**15] * (number - 1)]
    left, right = np.full((2, 2 * number - 1), _NONE, np.int32)
    leaf, node = number - 1, number
    for parent in range(number, 2 * number - 1):
        children = []
        for _ in range(2):
            if leaf >= 0 and weights[leaf] < weights[node]:
                children.append(leaf)
                leaf -= 1
            else:
                children.append(node)
                node += 1
        left[parent], right[parent] = children
        weights[parent] = weights[children[0]] + weights[children[1]]
    return left, right


def _word_table(words: list[bytes]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int32]]:
    size = 1 << (4 * len(words)).bit_length()
    hashes, rows = np.zeros(size, np.uint64), np.full(size, _NONE, np.int32)
    for row, word in enumerate(words):
        key = _hash_word(np.frombuffer(word, np.uint8), 0, len(word))
        slot = int(key) & (size - 1)
        while hashes[slot]:
            slot = (slot + 1) & (size - 1)
        hashes[slot], rows[slot] = key, row
    return hashes, rows


def predict(model: Classifier, data: Any, offsets: Any, memory: Memory | None = None) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """The best label (number) of each line ``data[offsets[i]:offsets[i + 1]]``, and its probability; -1 for a line without any known word.

    The same with and without a memory of earlier lines.
    """
    labels = np.empty(len(offsets) - 1, np.int32)
    probabilities = np.empty(len(offsets) - 1, np.float32)
    _predict_all(model, memory or new_memory(), data, offsets, labels, probabilities)
    return labels, probabilities


@njit(cache=True, nogil=True)
def _predict_all(model: Any, memory: Any, data: Any, offsets: Any, labels: Any, probabilities: Any) -> None:
    left, right, outputs = model.tree
    vectors, end_row = model.vectors, model.end_row
    total = np.zeros(_DIM, np.float32)
    stack, scores = np.zeros(len(left), np.int32), np.zeros(len(left), np.float32)
    for number in range(len(labels)):
        total[:] = 0
        count = 0
        if end_row >= 0:
            total += vectors[end_row]
            count += 1
        count += _add_line(model, memory, data, offsets[number], offsets[number + 1], total)
        labels[number], probabilities[number] = _descend(total, count, left, right, outputs, stack, scores)


@njit(cache=True, nogil=True)
def _add_line(model: Any, memory: Any, data: Any, at: Any, stop: Any, total: Any) -> Any:
    """Add what the words of a line add up to; returns how many vectors that were.

    A word that is remembered and one that is not take the same sums in the same order."""
    words, sums = memory
    part = np.zeros(_DIM, np.float32)
    count: Any = 0
    while at < stop:
        end = at
        while end < stop and not (data[end] == 0x20 or 0x09 <= data[end] <= 0x0D or data[end] == 0):
            end += 1
        length = end - at
        if 0 < length <= _MAX_KNOWN_BYTES:
            first = packed(data, at, length)
            second = packed(data, at + 8, length - 8) if length > 8 else np.uint64(0)
            third = packed(data, at + 16, length - 16) if length > 16 else np.uint64(0)
            place = (stirred(stirred(stirred(np.uint64(length), first), second), third) * MULTIPLIER) >> _PLACE_SHIFT
            about = words[place, 3]
            is_known = words[place, 0] == first and words[place, 1] == second and words[place, 2] == third
            if not is_known or about & np.uint64(0xFF) != np.uint64(length):
                sums[place] = 0
                about = np.uint64(length) | np.uint64(_add_word(model, data, at, end, sums[place])) << np.uint64(8)
                words[place, 0], words[place, 1], words[place, 2], words[place, 3] = first, second, third, about
            count += np.int64(about >> np.uint64(8))
            for k in range(_DIM):
                total[k] += sums[place, k]
        elif length:
            part[:] = 0
            count += _add_word(model, data, at, end, part)
            total += part
        at = end + 1
    return count


@njit(cache=True, nogil=True)
def _add_word(model: Any, data: Any, at: Any, end: Any, total: Any) -> Any:
    """Add the vectors of a word and of its n-grams; returns how many there were."""
    row = _row_of_word(data, at, end, model.word_hashes, model.word_rows)
    if row >= 0:
        total += model.vectors[row]
    return (row >= 0) + _add_grams(data, at, end, model.vectors, model.gram_rows, model.min_chars, model.max_chars, total)


@njit(cache=True, nogil=True)
def _hash_word(data: Any, at: Any, end: Any) -> Any:
    """64-bit FNV-1a, never 0."""
    digest = np.uint64(0xCBF29CE484222325)
    for index in range(at, end):
        digest = (digest ^ np.uint64(data[index])) * np.uint64(0x100000001B3)
    return digest | np.uint64(1) << np.uint64(63)


@njit(cache=True, nogil=True)
def _row_of_word(data: Any, at: Any, end: Any, word_hashes: Any, word_rows: Any) -> Any:
    key = _hash_word(data, at, end)
    mask = np.uint64(len(word_hashes) - 1)
    slot = key & mask
    while word_hashes[slot] != 0:
        if word_hashes[slot] == key:
            return word_rows[slot]
        slot = (slot + np.uint64(1)) & mask
    return _NONE


@njit(cache=True, nogil=True, inline="always")
def _byte_of(data: Any, at: Any, end: Any, index: Any) -> Any:
    """Byte of ``<word>``, sign-extended, as fastText hashes it."""
    byte = 0x3C if index < at else 0x3E if index >= end else np.int64(data[index])
    return np.uint32(byte - 256 if byte >= 0x80 else byte)


@njit(cache=True, nogil=True)
def _add_grams(data: Any, at: Any, end: Any, vectors: Any, gram_rows: Any, min_chars: Any, max_chars: Any, total: Any) -> Any:
    """Add the vectors of the n-grams of ``<word>``; returns how many there were."""
    num_buckets = np.uint32(len(gram_rows))
    count = 0
    for start in range(at - 1, end + 1):
        if at <= start < end and data[start] & 0xC0 == 0x80:
            continue
        digest = _FNV_OFFSET
        index = start
        for num_chars in range(1, max_chars + 1):
            if index > end:
                break
            digest = np.uint32((digest ^ _byte_of(data, at, end, index)) * _FNV_PRIME)
            index += 1
            while at <= index < end and data[index] & 0xC0 == 0x80:
                digest = np.uint32((digest ^ _byte_of(data, at, end, index)) * _FNV_PRIME)
                index += 1
            if num_chars >= min_chars:
                row = gram_rows[digest % num_buckets]
                if row >= 0:
                    count += 1
                    for k in range(_DIM):
                        total[k] += vectors[row, k]
    return count


@njit(cache=True, nogil=True)
def _descend(total: Any, count: Any, left: Any, right: Any, outputs: Any, stack: Any, scores: Any) -> Any:
    """(label, probability) of the leaf with the largest product of sigmoids; of equals the first.

    The likelier child goes first, so that most of the tree is never looked at: a score hardly grows on the way down (by 1e-5 a step)."""
    if count == 0:
        return np.int32(_NONE), np.float32(0)
    num_labels = (len(left) + 1) // 2
    best, best_score = np.int32(_NONE), np.float32(-np.inf)
    stack[0], scores[0] = len(left) - 1, 0
    depth = 1
    while depth:
        depth -= 1
        node, score = stack[depth], scores[depth]
        if node < num_labels:
            if score > best_score or (score == best_score and node < best):
                best, best_score = node, score
            continue
        if score < best_score - _MARGIN:
            continue
        logit = np.float32(0)
        for k in range(_DIM):
            logit += outputs[node - num_labels, k] * total[k]
        chance = 1 / (1 + np.exp(-logit / np.float32(count)))
        first = logit < 0  # which of the two is pushed last, and so looked at next
        stack[depth + (not first)], scores[depth + (not first)] = right[node], score + np.log(chance + 1e-5)
        stack[depth + first], scores[depth + first] = left[node], score + np.log(1 - chance + 1e-5)
        depth += 2
    return best, np.float32(np.exp(best_score))
