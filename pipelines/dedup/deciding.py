"""The loop that decides documents one by one, in commit order, and adds the kept ones to the index (the rule: dedup/resolve.py).

Everything else about a chunk is looked up before it. Costs a microsecond for a document that is kept, most of it for the newest fingerprints.
"""

from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from pipelines.dedup.growing import Growing, find_in_growing, insert
from pipelines.dedup.kept import FREE, Kept, append, find_exact, is_retracted, retract
from pipelines.dedup.opening import MAX_SAME_FINGERPRINT
from pipelines.dedup.sketch import sketch_similarity
from pipelines.dedup.tables import Found

KEPT, EXACT, NEAR, RETRACTION = 0, 1, 2, 3
Rows = npt.NDArray[np.int64]


class Verdicts(NamedTuple):
    """One verdict per row of a chunk."""

    row: npt.NDArray[np.int64]  # kept row that this one duplicates; undefined for KEPT
    reason: npt.NDArray[np.uint8]  # KEPT, EXACT, NEAR or RETRACTION
    similarity: npt.NDArray[np.float32]


class Limits(NamedTuple):
    """The settings, as the kernel takes them."""

    near: bool
    max_hamming: int
    min_similarity: np.float32


class State(NamedTuple):
    """What a chunk is decided against, and what it adds to."""

    kept: Kept
    growing: Growing
    limits: Limits


class Known(NamedTuple):
    """What was looked up for some rows before the first of them is decided."""

    exact: Rows  # latest row of the base with the same content hash, or FREE
    can_be_near: npt.NDArray[np.bool_]  # whether near rows were looked for
    near: Found  # rows within the distance: of the base, or of the immutable tiers too


class Retractions(NamedTuple):
    """The retractions of a chunk of q rows with c distinct ids. Without retractions all arrays are empty."""

    is_retraction: npt.NDArray[np.bool_]  # [q]
    codes: npt.NDArray[np.int64]  # [q] which id
    earlier: Found  # by code: the rows kept before the chunk that have a retracted id
    heads: npt.NDArray[np.int64]  # [c] position of the latest row of the chunk that was kept with this id, or FREE
    links: npt.NDArray[np.int64]  # [q] the one before it
    kept_rows: npt.NDArray[np.int64]  # [q] row number of each kept position


def no_retractions() -> Retractions:
    """Of a chunk that has none."""
    nothing = np.empty(0, np.int64)
    return Retractions(np.empty(0, np.bool_), nothing, Found(nothing, nothing), nothing, nothing, nothing)


def empty_verdicts(num_rows: int) -> Verdicts:
    """For ``resolve_rows`` to fill in."""
    return Verdicts(np.zeros(num_rows, np.int64), np.zeros(num_rows, np.uint8), np.zeros(num_rows, np.float32))


@numba.njit(cache=True, nogil=True)
def resolve_rows(rows, state, known, retractions, verdicts):  # type: ignore[no-untyped-def]
    """Fill in the verdicts; returns the rows that retractions took out of the index."""
    kept, growing, limits = state.kept, state.growing, state.limits
    found = np.empty(64, np.int64)
    retracted = np.empty(16, np.int64)
    num_retracted = 0
    has_retractions = len(retractions.is_retraction) > 0
    for index in range(len(rows.fingerprint)):
        if has_retractions and retractions.is_retraction[index]:
            verdicts.reason[index] = RETRACTION
            num_retracted, retracted = _retract_id(kept, retractions, retractions.codes[index], retracted, num_retracted)
            continue
        row = _exact(kept, known.exact[index], rows.content_hash[index, 0], rows.content_hash[index, 1])
        if row != FREE:
            verdicts.row[index], verdicts.reason[index], verdicts.similarity[index] = row, EXACT, np.float32(1)
            continue
        can_be_near = limits.near and rows.sketch[index].any()
        num_same = 0
        if can_be_near:
            count, found = _copy_found(known.near, index, found)
            count, found = find_in_growing(growing, limits.max_hamming, rows.fingerprint[index], found, count)
            best, similarity, num_same = _best_of(found[:count], rows.fingerprint[index], rows.sketch[index], kept)
            if best != FREE and similarity >= limits.min_similarity:
                verdicts.row[index], verdicts.reason[index], verdicts.similarity[index] = best, NEAR, similarity
                continue
        row = append(kept, rows, index)
        if has_retractions:
            _link(retractions, index, row)
        if can_be_near and num_same < MAX_SAME_FINGERPRINT:
            insert(growing, rows.fingerprint[index], row)
    return retracted[:num_retracted]


@numba.njit(cache=True, nogil=True)
def _exact(kept, in_base, high, low):  # type: ignore[no-untyped-def]
    """The row in force with this content hash, or FREE."""
    position = kept.slots[find_exact(kept.slots, kept.columns.content_hash, high, low)]
    if position != FREE and not kept.retracted[position]:
        return len(kept.base_retracted) + np.int64(position)
    if in_base != FREE and not kept.base_retracted[in_base]:
        return in_base
    return np.int64(FREE)


@numba.njit(cache=True, nogil=True)
def _copy_found(near, index, found):  # type: ignore[no-untyped-def]
    """(how many, the array, a longer one if need be) of the rows that were looked up."""
    start, end = near.starts[index], near.starts[index + 1]
    if end - start > len(found):
        found = np.empty(2 * (end - start), np.int64)
    found[: end - start] = near.rows[start:end]
    return end - start, found


@numba.njit(cache=True, nogil=True)
def _best_of(candidates, fingerprint, sketch, kept):  # type: ignore[no-untyped-def]
    """(row, similarity, number with the very same fingerprint): the most similar candidate in force, of equals the earliest; FREE if none is."""
    best = np.int64(FREE)
    best_similarity = np.float32(-1)
    num_same = 0
    num_base = len(kept.base_retracted)
    for row in candidates:
        in_base, place = row < num_base, row - num_base  # not one variable for both: arrays of the base are read-only, another type to Numba
        num_same += (kept.base.fingerprint[row] if in_base else kept.columns.fingerprint[place]) == fingerprint
        if is_retracted(kept, row):
            continue
        similarity = sketch_similarity(sketch, kept.base.sketch[row]) if in_base else sketch_similarity(sketch, kept.columns.sketch[place])
        if similarity > best_similarity or (similarity == best_similarity and row < best):
            best, best_similarity = row, similarity
    return best, best_similarity, num_same


@numba.njit(cache=True, nogil=True)
def _link(retractions, index, row):  # type: ignore[no-untyped-def]
    """Remember that this row of the chunk was kept."""
    code = retractions.codes[index]
    retractions.kept_rows[index] = row
    retractions.links[index] = retractions.heads[code]
    retractions.heads[code] = index


@numba.njit(cache=True, nogil=True)
def _retract_id(kept, retractions, code, retracted, count):  # type: ignore[no-untyped-def]
    """Take all rows with the id out of the index: earlier ones, then those of this chunk; appends the rows to ``retracted``."""
    for position in range(retractions.earlier.starts[code], retractions.earlier.starts[code + 1]):
        count, retracted = _retract_row(kept, retractions.earlier.rows[position], retracted, count)
    position = retractions.heads[code]
    while position != FREE:
        count, retracted = _retract_row(kept, retractions.kept_rows[position], retracted, count)
        position = retractions.links[position]
    retractions.heads[code] = FREE
    return count, retracted


@numba.njit(cache=True, nogil=True)
def _retract_row(kept, row, retracted, count):  # type: ignore[no-untyped-def]
    if not retract(kept, row):
        return count, retracted
    if count == len(retracted):
        retracted = np.concatenate((retracted, np.empty(len(retracted), np.int64)))
    retracted[count] = row
    return count + 1, retracted
