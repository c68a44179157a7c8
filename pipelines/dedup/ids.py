"""Hashes of document ids, over the Arrow buffers: to find the rows of an id without comparing strings with all of them.

Equal ids have equal hashes on every machine (they stand in files); unequal ones may, so whoever finds a row compares the ids themselves.
"""

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.dedup.features import mix


def utf8(ids: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Offsets int64[n + 1] into the bytes, and the bytes, of a string or large_string array without nulls."""
    if not pa.types.is_large_string(ids.type):
        ids = ids.cast(pa.large_string())
    _, offsets, data = ids.buffers()
    if not len(ids):
        return np.zeros(1, np.int64), np.empty(0, np.uint8)
    return np.frombuffer(offsets, np.int64, len(ids) + 1, ids.offset * 8), np.frombuffer(data, np.uint8) if data else np.empty(0, np.uint8)


def hash_ids(ids: pa.Array) -> npt.NDArray[np.uint64]:
    """One hash per id."""
    offsets, data = utf8(ids)
    hashes = np.empty(len(ids), np.uint64)
    _hash_all(offsets, data, hashes)
    return hashes


def short_hashes(ids: pa.Array) -> npt.NDArray[np.uint32]:
    """The first 32 bits of each hash."""
    return (hash_ids(ids) >> np.uint64(32)).astype(np.uint32)


@numba.njit(cache=True, nogil=True)
def _hash_all(offsets, data, hashes):  # type: ignore[no-untyped-def]
    for row in range(len(hashes)):
        state = np.uint64(offsets[row + 1] - offsets[row])
        word = np.uint64(0)
        for position in range(offsets[row], offsets[row + 1]):
            word = word << np.uint64(8) | np.uint64(data[position])
            if (position - offsets[row]) % 8 == 7:
                state = mix(state ^ word) * np.uint64(0x9E3779B97F4A7C15)
                word = np.uint64(0)
        hashes[row] = mix(state ^ word)
