"""A hash table in one flat array that a file can hold and every process can map: uint64 [slots, 2], (key, value) in one cache line.

Open addressing with linear probing. A region of the array is a table of its own, so that tables of several orders share a file.
Invariant: the same keys in the same order give the same bytes; a lookup ends, because a third of the slots stays empty.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from pipelines.dedup.features import mix

EMPTY = np.uint64(0xFFFFFFFFFFFFFFFF)
"""No key: word ids and slots stay far below 2^32 - 1, and a hash that happens to be this one is never found."""
Table = npt.NDArray[np.uint64]


def num_slots(num_keys: int) -> int:
    """Slots of a region for this many keys."""
    return num_keys + num_keys // 2 + 1


def empty_table(slots: int) -> Table:
    """A table without keys."""
    table = np.zeros((slots, 2), np.uint64)
    table[:, 0] = EMPTY
    return table


@njit(cache=True, nogil=True)
def insert_all(table: Any, region: Any, keys: Any, values: Any, slots: Any) -> None:
    """Enter distinct keys into the region (first slot, number of slots); ``slots`` receives the slot of each."""
    first, size = region
    for index in range(len(keys)):
        slot = _home(keys[index], first, size)
        while table[slot, 0] != EMPTY:
            slot = slot + 1 if slot + 1 < first + size else first
        table[slot, 0] = keys[index]
        table[slot, 1] = values[index]
        slots[index] = slot


@njit(cache=True, nogil=True)
def find(table: Any, region: Any, key: Any) -> Any:
    """The slot of a key in the region (first slot, number of slots), or -1."""
    first, size = region
    slot = _home(key, first, size)
    while table[slot, 0] != key:
        if table[slot, 0] == EMPTY:
            return np.int64(-1)
        slot = slot + 1 if slot + 1 < first + size else first
    return slot


@njit(cache=True, nogil=True, inline="always")
def _home(key: Any, first: Any, size: Any) -> Any:
    """Lemire's multiply-shift: no division, any size below 2^32."""
    return first + np.int64(((mix(key) >> np.uint64(32)) * np.uint64(size)) >> np.uint64(32))
