"""How large records are: key, value and headers, whatever they hold. Blocks are cut by it, and slices and versions planned.

Costs a few additions per record.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.envelope import Headers


def size_of(key: bytes | None, value: bytes | None, headers: Headers | None) -> int:
    """Bytes of one record."""
    in_headers = sum(len(name) + len(data or b"") for name, data in headers) if headers else 0
    return len(key or b"") + len(value or b"") + in_headers


def sizes_of(records: pa.Table) -> pa.ChunkedArray:
    """``size_of`` each row of schemas.arrow.RECORDS: int64, no nulls."""
    keys, values = (pc.binary_length(records[name]).fill_null(0).cast(pa.int64()) for name in ("key", "value"))
    in_headers = pa.chunked_array([_header_sizes(chunk) for chunk in records["headers"].chunks], pa.int64())
    return pc.add(pc.add(keys, values), in_headers)


def _header_sizes(headers: pa.ListArray) -> pa.Array:
    pairs = headers.flatten()
    names, data = (pc.binary_length(pairs.field(field)).fill_null(0).cast(pa.int64()) for field in ("key", "value"))
    owners = pc.list_parent_indices(headers).to_numpy()
    return pa.array(np.bincount(owners, weights=pc.add(names, data).to_numpy(), minlength=len(headers)).astype(np.int64))
