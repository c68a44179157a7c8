"""Arrow string arrays as the flat NumPy buffers that the compiled kernels read: UTF-8 bytes and n + 1 offsets.

Invariant: the views are read-only and 64-bit, whatever the input was, so that each kernel is compiled for one signature only.
Cost: no copy for ``large_string`` without nulls; ``string`` costs new offsets.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Bytes = npt.NDArray[np.uint8]
Offsets = npt.NDArray[np.int64]


class Utf8(NamedTuple):
    """Document i is ``data[offsets[i]:offsets[i + 1]]``; a null is an empty document."""

    data: Bytes
    """All bytes, uint8 [offsets[n]] or more."""
    offsets: Offsets
    """int64 [n + 1], ascending."""


class Source(NamedTuple):
    """What every kernel reads: the bytes, and pipelines.text.characters.character_flags."""

    data: Bytes
    """UTF-8."""
    flags: npt.NDArray[np.uint32]
    """Flags by code point."""


def utf8_views(texts: pa.Array) -> Utf8:
    """Read-only views of a ``string`` or ``large_string`` array; slices and nulls are taken care of."""
    wide = texts.cast(pa.large_string())
    if wide.null_count:
        wide = wide.fill_null("")
    if not len(wide):
        return Utf8(_frozen(None, np.uint8), _frozen(None, np.int64, 1))
    _, offsets, data = wide.buffers()
    return Utf8(_frozen(data, np.uint8), _frozen(offsets, np.int64)[wide.offset : wide.offset + len(wide) + 1])


def large_strings(data: Bytes, offsets: Offsets) -> pa.Array:
    """The ``large_string`` array over these buffers, without a copy. The caller promises valid UTF-8 and ``offsets[0] == 0``."""
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.large_string(), len(offsets) - 1, buffers)


def _frozen(buffer: pa.Buffer | None, dtype: Any, length: int = 0) -> npt.NDArray[Any]:
    view = np.zeros(length, dtype) if buffer is None else np.frombuffer(buffer, dtype, buffer.size // np.dtype(dtype).itemsize)
    view.flags.writeable = False
    return view
