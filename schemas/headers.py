"""Kafka record headers: Python's form (a list of pairs) <-> Arrow's (schemas.arrow.HEADERS).

A null row, as control rows have, is None. A name that is not UTF-8 has no place in Arrow: it becomes BAD_NAME and its bytes, escaped. A
record that cannot be read at all has the header BROKEN_RECORD, and its bytes as value.
Cost: one Python object per header, no dictionaries, no work per header beyond that.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import pyarrow as pa

from schemas.arrow import HEADERS
from schemas.envelope import Headers

BAD_NAME = "\ufffd"
"""Begins the name of a header that was not UTF-8; a name that really begins with U+FFFD is treated alike."""
BROKEN_RECORD = f"{BAD_NAME}broken record"
"""Marks a record whose bytes do not follow Kafka's record format; the header's value says why, where that is known."""

REPLAY_HEADER = "headrace_replay_of"
"""On a record that was published again from the dead-letter topic: ``topic/partition/offset`` where it stood at first."""


def headers_to_arrow(rows: Sequence[Headers | None]) -> pa.ListArray:
    """One list of ``{key, value}`` per row, in the order they had."""
    pairs = [pair for row in rows if row for pair in row]
    names = pa.array([name for name, _ in pairs], pa.string())
    values = pa.array([value for _, value in pairs], pa.binary())
    offsets = pa.array(accumulate((len(row) if row else 0 for row in rows), initial=0), pa.int32())
    struct = pa.StructArray.from_arrays([names, values], fields=list(HEADERS.value_type))
    mask = pa.array([row is None for row in rows], pa.bool_())
    return pa.ListArray.from_arrays(offsets, struct, type=HEADERS, mask=mask)


def headers_from_arrow(column: pa.ListArray | pa.ChunkedArray) -> list[list[tuple[str, bytes | None]]]:
    """One list of pairs per row; a null row gives an empty list."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    return [row for chunk in chunks for row in _chunk(chunk)]


def _chunk(array: pa.ListArray) -> list[list[tuple[str, bytes | None]]]:
    lengths = array.value_lengths().fill_null(0).to_pylist()
    struct = array.flatten()
    pairs = list(zip(struct.field("key").to_pylist(), struct.field("value").to_pylist(), strict=True))
    return [pairs[start:end] for start, end in pairwise(accumulate(lengths, initial=0))]
