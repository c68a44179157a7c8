"""Boilerplate across documents: lines (the paragraphs of a normalized text) that stood in many documents of earlier versions.

A line is known by a 64-bit hash of its letters and digits in lower case: spaces, punctuation, case and decoration do not count; digits do.
Lines with fewer than ``boilerplate_min_chars`` letters and digits (a Han or kana character counts as two) are never looked at.

How versions make use of it, in this order: (1) read the counts of the parent version (dataset/boilerplate.py); (2) ``take_out_known`` takes the
lines that are ``known`` out of every document; (3) the distinct hashes of all its lines, the known ones too, go along with it; (4) the lists of the
kept documents (duplicates would make every reposted article boilerplate) become a ``ParagraphCounts``, which is saved with the new version. So what
is taken out of a version depends on committed files alone, and a replayed batch loses the same lines.

Memory is bounded by ``pruned``: 12 bytes an entry. Pruning forgets all entries with the smallest counts (lossy counting, Manku and Motwani 2002,
by size instead of by bucket): a line is counted too low by at most the sum of the thresholds at which it was forgotten, never too high.
Cost: 250 MB/s on one core for hashing.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numba import njit

from pipelines.dedup.features import SINGLE_BIT, TABLE_SIZE, code_point_table, mix
from pipelines.storage.durable import durable_file
from pipelines.text.buffers import large_strings, utf8_views
from pipelines.text.characters import code_point_at
from schemas.errors import ManifestCorrupt

COUNTS = pa.schema([pa.field("hash", pa.uint64(), nullable=False), pa.field("num_documents", pa.uint32(), nullable=False)])
"""The file of a version's counts: one row for each line, ascending by hash."""

_LINE_FEED = 0x0A
_SEED = np.uint64(0x9E3779B97F4A7C15)
_PRIME = np.uint64(0x100000001B3)


class ParagraphHashes(NamedTuple):
    """The lines of n texts that are long enough, m in all."""

    hashes: npt.NDArray[np.uint64]
    """uint64 [m]."""
    offsets: npt.NDArray[np.int64]
    """int64 [n + 1]: text i has ``hashes[offsets[i]:offsets[i + 1]]``."""
    spans: npt.NDArray[np.int64]
    """int64 [m, 2]: first byte and the one behind the last, without the line feed, counted from the start of the text."""


def paragraph_hashes(texts: pa.Array, min_chars: int) -> ParagraphHashes:
    """The hash of each line with ``min_chars`` letters and digits or more; a null has none."""
    data, offsets = utf8_views(texts)
    num_lines = np.zeros(len(offsets), np.int64)
    most = int(np.count_nonzero(data[offsets[0] : offsets[-1]] == _LINE_FEED)) + len(offsets)
    hashes, spans = np.empty(most, np.uint64), np.empty((most, 2), np.int64)
    _hash_lines(data, offsets, (code_point_table(), np.int64(min_chars)), num_lines, (hashes, spans))
    return ParagraphHashes(hashes[: num_lines[-1]], num_lines, spans[: num_lines[-1]])


def distinct_paragraphs(texts: pa.Array, min_chars: int) -> pa.LargeListArray:
    """The distinct hashes of each text's lines, ascending: large_list<uint64> [n]."""
    return _distinct(paragraph_hashes(texts, min_chars))


def _distinct(found: ParagraphHashes) -> pa.LargeListArray:
    num_texts = len(found.offsets) - 1
    rows = np.repeat(np.arange(num_texts), np.diff(found.offsets))
    order = np.lexsort((found.hashes, rows))
    rows, hashes = rows[order], found.hashes[order]
    first = np.ones(len(rows), bool)
    first[1:] = (rows[1:] != rows[:-1]) | (hashes[1:] != hashes[:-1])
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows[first], minlength=num_texts))]).astype(np.int64)
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(hashes[first]))


def remove_paragraphs(texts: pa.Array, known: npt.NDArray[np.uint64], min_chars: int) -> tuple[pa.Array, npt.NDArray[np.int64]]:
    """The texts without the lines whose hash is in ``known`` (ascending), and how many each lost (int64 [n]).

    No blank line at either end and no two in a row are left behind. The very array comes back if nothing was removed.
    """
    return _without_known(texts, paragraph_hashes(texts, min_chars), known)


def take_out_known(texts: pa.Array, known: npt.NDArray[np.uint64], min_chars: int) -> tuple[pa.Array, pa.LargeListArray]:
    """What ``remove_paragraphs`` leaves, and what ``distinct_paragraphs`` finds in the texts as they come, with each line hashed once."""
    found = paragraph_hashes(texts, min_chars)
    return _without_known(texts, found, known)[0], _distinct(found)


def _without_known(texts: pa.Array, found: ParagraphHashes, known: npt.NDArray[np.uint64]) -> tuple[pa.Array, npt.NDArray[np.int64]]:
    at = np.searchsorted(known, found.hashes)
    is_known = np.zeros(len(found.hashes), bool)
    inside = at < len(known)
    is_known[inside] = known[at[inside]] == found.hashes[inside]
    before = np.concatenate([[0], np.cumsum(is_known)])
    num_removed = np.diff(before[found.offsets])
    if not is_known.any():
        return texts, num_removed
    data, offsets = utf8_views(texts)
    out, out_offsets = _without_lines(data, offsets, found.spans[is_known], before[found.offsets])
    return large_strings(out, out_offsets), num_removed


@dataclass(frozen=True)
class ParagraphCounts:
    """In how many documents each line stood."""

    hashes: npt.NDArray[np.uint64]
    """uint64 [m], ascending, each once."""
    num_documents: npt.NDArray[np.uint32]
    """uint32 [m], at least 1."""

    @classmethod
    def of(cls, paragraphs: pa.Array) -> "ParagraphCounts":
        """Counts over documents, each a list of its distinct hashes (``distinct_paragraphs``); a null has none."""
        hashes, counts = np.unique(np.asarray(paragraphs.drop_null().flatten(), np.uint64), return_counts=True)
        return cls(hashes, counts.astype(np.uint32))

    def merge(self, other: "ParagraphCounts") -> "ParagraphCounts":
        """The sums; they stop at 2**32 - 1. Costs a copy of the larger one and a look-up for each line of the smaller one."""
        large, small = (self, other) if len(self.hashes) >= len(other.hashes) else (other, self)
        at = np.searchsorted(large.hashes, small.hashes)
        is_old = np.zeros(len(at), bool)
        inside = at < len(large.hashes)
        is_old[inside] = large.hashes[at[inside]] == small.hashes[inside]
        counts = large.num_documents.copy()
        sums = counts[at[is_old]].astype(np.uint64) + small.num_documents[is_old]
        counts[at[is_old]] = np.minimum(sums, 2**32 - 1)
        hashes = np.insert(large.hashes, at[~is_old], small.hashes[~is_old])
        return ParagraphCounts(hashes, np.insert(counts, at[~is_old], small.num_documents[~is_old]))

    def pruned(self, max_entries: int) -> "ParagraphCounts":
        """At most ``max_entries``: without all entries that have the smallest counts. Which go does not depend on any order."""
        if len(self.hashes) <= max_entries:
            return self
        descending = np.sort(self.num_documents)[::-1]
        keep = self.num_documents > descending[max_entries]
        return ParagraphCounts(self.hashes[keep], self.num_documents[keep])

    def known(self, min_documents: int) -> npt.NDArray[np.uint64]:
        """Hashes of the lines that stood in so many documents or more, ascending."""
        return self.hashes[self.num_documents >= min_documents]

    def save(self, path: Path) -> None:
        """Write an Arrow IPC file, durably."""
        table = pa.table([self.hashes, self.num_documents], schema=COUNTS)
        with durable_file(path) as file, pa.ipc.new_file(file, COUNTS) as writer:
            writer.write_table(table)

    @classmethod
    def load(cls, path: Path) -> "ParagraphCounts":
        """Read what ``save`` wrote. Raises ManifestCorrupt for anything else."""
        try:
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        except (OSError, pa.ArrowInvalid) as error:
            raise ManifestCorrupt(f"{path} holds no paragraph counts: {error}; restore it from a backup, or verify the dataset") from error
        if table.schema != COUNTS:
            raise ManifestCorrupt(f"{path} has the columns {table.schema.names}, not {COUNTS.names}; it holds no paragraph counts")
        return cls(table["hash"].to_numpy(), table["num_documents"].to_numpy())


EMPTY = ParagraphCounts(np.zeros(0, np.uint64), np.zeros(0, np.uint32))
"""Before the first version."""


@njit(cache=True, nogil=True)
def _hash_lines(data: Any, offsets: Any, rule: Any, num_lines: Any, out: Any) -> None:
    table, min_chars = rule
    hashes, spans = out
    count = 0
    for row in range(len(offsets) - 1):
        at = offsets[row]
        while at < offsets[row + 1]:
            end, digest, weight = _hash_line(data, at, offsets[row + 1], table)
            if weight >= min_chars:
                hashes[count] = digest
                spans[count, 0], spans[count, 1] = at - offsets[row], end - offsets[row]
                count += 1
            at = end + 1
        num_lines[row + 1] = count


@njit(cache=True, nogil=True)
def _hash_line(data: Any, at: Any, stop: Any, table: Any) -> Any:
    """Where the line that begins at ``at`` ends, the hash of its letters and digits, and how many these are."""
    digest = _SEED
    weight = 0
    while at < stop and data[at] != _LINE_FEED:
        code, size = code_point_at(data, at)
        entry = table[code] if code < TABLE_SIZE else np.uint32(code) | SINGLE_BIT
        if entry:
            digest = (digest ^ np.uint64(entry)) * _PRIME
            digest ^= digest >> np.uint64(29)
            weight += 2 if entry & SINGLE_BIT else 1
        at += size
    return at, mix(digest), weight


@njit(cache=True, nogil=True)
def _without_lines(data: Any, offsets: Any, spans: Any, first_span: Any) -> Any:
    """Copy all texts, without the spans ``first_span[row]`` to ``first_span[row + 1]`` of each and the blank lines that these leave behind."""
    out = np.empty(offsets[-1] - offsets[0], np.uint8)
    out_offsets = np.zeros(len(offsets), np.int64)
    end = 0
    for row in range(len(offsets) - 1):
        begin, at = end, offsets[row]
        for span in range(first_span[row], first_span[row + 1]):
            end = _copy(data, at, offsets[row] + spans[span, 0], out, end)
            at = offsets[row] + spans[span, 1]
            at, end = _close(data, (at, offsets[row + 1]), out, (begin, end))
        end = _copy(data, at, offsets[row + 1], out, end)
        while first_span[row + 1] > first_span[row] and end > begin and out[end - 1] == _LINE_FEED:
            end -= 1
        out_offsets[row + 1] = end
    return out[:end], out_offsets


@njit(cache=True, nogil=True)
def _close(data: Any, rest: Any, out: Any, written: Any) -> Any:
    """Join what was written to what follows a removed line: as many line feeds as before or behind it, two at most, none at the start."""
    at, stop = rest
    begin, end = written
    before = behind = 0
    while end > begin and out[end - 1] == _LINE_FEED:
        end -= 1
        before += 1
    while at < stop and data[at] == _LINE_FEED:
        at += 1
        behind += 1
    for _ in range(min(max(before, behind), 2) if end > begin else 0):
        out[end] = _LINE_FEED
        end += 1
    return at, end


@njit(cache=True, nogil=True)
def _copy(data: Any, at: Any, stop: Any, out: Any, end: Any) -> Any:
    for source in range(at, stop):
        out[end] = data[source]
        end += 1
    return end
