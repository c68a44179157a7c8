"""Short runs of bytes as whole machine words, so that kernels compare and hash eight bytes at a time.

Invariant: never reads outside the array, whatever the alignment. Bytes behind a run's end are zero, so runs of different lengths may have
equal words: compare their lengths too.
"""

import sys
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.extending import intrinsic

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def _generate_load(_context: Any, data: Any, at: Any) -> Any:
    """Numba intrinsic: the eight bytes that begin at ``data[at]``, little end first."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        word = ir.IntType(64)
        pointer = builder.bitcast(builder.gep(array.data, [arguments[1]]), word.as_pointer())
        loaded = builder.load(pointer, align=1)
        return loaded if sys.byteorder == "little" else builder.bswap(loaded)

    return types.uint64(data, at), codegen


_load: Any = intrinsic(_generate_load)


@njit(cache=True, nogil=True, inline="always")
def packed(data: Any, at: Any, length: Any) -> Any:
    """Up to eight bytes from ``data[at]`` on; uint8 ``data`` without gaps, int64 ``at``, ``length`` 1 or more."""
    if at + 8 <= len(data):
        value = _load(data, np.int64(at))
        return value & (np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(64 - 8 * length)) if length < 8 else value
    value = np.uint64(0)
    for index in range(min(length, 8)):
        value |= np.uint64(data[at + index]) << np.uint64(8 * index)
    return value


@njit(cache=True, nogil=True, inline="always")
def stirred(digest: Any, word: Any) -> Any:
    """One step of a hash over words; the upper bits are the best ones."""
    digest = (digest ^ word) * MULTIPLIER
    return digest ^ digest >> np.uint64(29)
