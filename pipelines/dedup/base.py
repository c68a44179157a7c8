"""The base of the duplicate index: all kept documents up to some version, in one immutable file that is memory-mapped.

It is mapped read-only and shared, so a base may be larger than memory: opening it reads one page, queries page in what they touch, and the
kernel takes pages back as it needs them. Opening takes 0.01 s and compares only its size and
its header; reading it for its hash would take a second per gigabyte. `headrace datasets verify` compares the rest.
It holds the kept rows' columns (fingerprint, content hash, sketch,
id), the fingerprint tables (tables.py), and two more tables of the same form that find a row by its content hash or by its id's hash.
Everything is in row order or bucket order, so the same rows give the same bytes.

File: MAGIC, the header's length (uint64), the header (JSON: counts, the layout, and of every array its type, shape and place), and the
arrays, each at a multiple of ALIGNMENT. Integers are little-endian. Bytes per document: 80 + 8 m + the id's own, and some
4 (m + 2) to 8 (m + 2) for where the buckets start in large ones, with m fingerprint tables.

Building is sequential writes and one counting sort per table, straight in the mapped file; memory beyond that is 12 bytes per document
while a table is sorted, and its cursors.
"""

import json
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.dedup.ids import hash_ids, utf8
from pipelines.dedup.kept import Columns
from pipelines.dedup.layout import FINGERPRINT_BITS, MAX_KEY_BITS, MIN_KEY_BITS, Layout, choose_layout
from pipelines.dedup.tables import Tables, fill_table, find_within, num_starts, read_only, tables_over, tags_of
from pipelines.storage.store import local
from schemas.arrow import SKETCH_BYTES
from schemas.errors import ShardCorrupt

MAGIC = b"HEADRACE-DEDUP-2"
OLDER_MAGIC = b"HEADRACE-DEDUP-1"
"""Its tables hold whole values where tags are now: read until the next compaction, with the tags in memory."""
ALIGNMENT = 4096
ROWS_AT_ONCE = 1 << 20
_DTYPES = {"<u8", "<u4", "<i8", "|u1"}
_Array = npt.NDArray[Any]


class Part(NamedTuple):
    """Kept documents, in order: an older base or a segment."""

    columns: Columns
    doc_ids: pa.Array
    not_compared: npt.NDArray[np.int64]
    """Ascending positions of rows that no near duplicate is looked for among: without features, or beyond MAX_SAME_FINGERPRINT."""


@dataclass(frozen=True)
class Base:
    """An opened base of n documents."""

    path: Path
    max_hamming: int
    """Distance up to which ``near`` finds everything."""
    columns: Columns
    doc_ids: pa.LargeStringArray
    not_compared: npt.NDArray[np.int64]
    near: Tables
    exact: Tables
    """Keyed by the second word of the content hash."""
    ids: Tables
    """Keyed by ``hash_ids``."""

    @property
    def num_rows(self) -> int:
        """Documents in it."""
        return len(self.doc_ids)

    def as_part(self) -> Part:
        """For building a larger base from it."""
        return Part(self.columns, self.doc_ids, self.not_compared)

    def rows_by_content(self, content_hash: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """Latest row with each content hash [q, 2], -1 where there is none."""
        queries, rows = _pairs(self.exact, np.ascontiguousarray(content_hash[:, 1]))
        is_equal = (self.columns.content_hash[rows] == content_hash[queries]).all(axis=1)
        latest = np.full(len(content_hash), -1, np.int64)
        np.maximum.at(latest, queries[is_equal], rows[is_equal])
        return latest

    def rows_by_id(self, ids: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Pairs (position in ``ids``, row) of all rows with one of these ids."""
        queries, rows = _pairs(self.ids, hash_ids(ids))
        is_equal = np.array(self.doc_ids.take(pa.array(rows)).to_pylist(), object) == np.array(ids.take(pa.array(queries)).to_pylist(), object)
        return queries[is_equal], rows[is_equal]


def _pairs(tables: Tables, values: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(positions, rows) that agree in the key and the tag, so nearly always in all 64 bits."""
    found = find_within(tables, 0, values, np.ones(len(values), bool))
    return np.repeat(np.arange(len(values)), np.diff(found.starts)), found.rows


def equal_layout(num_rows: int) -> Layout:
    """One table that finds equal 64-bit values."""
    bits = min(max(num_rows.bit_length(), MIN_KEY_BITS), MAX_KEY_BITS + 2)
    return Layout((0,), (FINGERPRINT_BITS,), (bits,), (0,))


def open_base(path: Path) -> Base:
    """Map a base. Raises ShardCorrupt if it is not one."""
    with local(path).open("rb") as file:
        mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    try:
        header = _read_header(mapped)
        arrays = {name: _array(mapped, place) for name, place in header["arrays"].items()}
        return _opened(path, header, arrays)
    except (ValueError, KeyError, TypeError) as error:
        raise ShardCorrupt(f"{path} is not a duplicate index ({error}); run `headrace datasets verify` and restore the file from a copy") from error


def write_base(file: IO[bytes], parts: Sequence[Part], max_hamming: int) -> int:
    """Write a base over the documents of all parts, in order, to an empty file open for reading and writing; returns its rows."""
    header = _plan(parts, max_hamming)
    encoded = json.dumps(header).encode()
    file.write(MAGIC + len(encoded).to_bytes(8, "little") + encoded)
    file.truncate(_aligned(max(place["offset"] + _size(place) for place in header["arrays"].values())))
    file.flush()
    _fill(mmap.mmap(file.fileno(), 0), header, parts)
    return int(header["num_rows"])


def _plan(parts: Sequence[Part], max_hamming: int) -> dict[str, Any]:
    """The header: everything about the file but the contents of its arrays."""
    num_rows = sum(len(part.doc_ids) for part in parts)
    num_skipped = sum(len(part.not_compared) for part in parts)
    near, equal = choose_layout(num_rows - num_skipped, max_hamming), equal_layout(num_rows)
    id_bytes = sum(int(offsets[-1] - offsets[0]) for offsets, _ in (utf8(part.doc_ids) for part in parts))
    shapes: dict[str, tuple[str, list[int]]] = {
        "fingerprint": ("<u8", [num_rows]),
        "content_hash": ("<u8", [num_rows, 2]),
        "sketch": ("|u1", [num_rows, SKETCH_BYTES]),
        "id_offsets": ("<i8", [num_rows + 1]),
        "id_bytes": ("|u1", [id_bytes]),
        "not_compared": ("<i8", [num_skipped]),
        **_table_shapes("near", near, num_rows - num_skipped),
        **_table_shapes("exact", equal, num_rows),
        **_table_shapes("ids", equal, num_rows),
    }
    arrays: dict[str, Any] = {}
    offset = 2 * ALIGNMENT  # the header fits into the first two pages
    for name, (dtype, shape) in shapes.items():
        arrays[name] = {"dtype": dtype, "shape": shape, "offset": offset}
        offset = _aligned(offset + _size(arrays[name]))
    layouts = {"near": near._asdict(), "equal": equal._asdict()}
    return {"num_rows": num_rows, "max_hamming": max_hamming, **layouts, "arrays": arrays}


def _table_shapes(name: str, layout: Layout, num_rows: int) -> dict[str, tuple[str, list[int]]]:
    num_entries = num_rows * len(layout.shifts)
    return {f"{name}.starts": ("<u4", [num_starts(layout)]), f"{name}.tags": ("<u4", [num_entries]), f"{name}.rows": ("<u4", [num_entries])}


def _fill(mapping: mmap.mmap, header: dict[str, Any], parts: Sequence[Part]) -> None:
    arrays = {name: _array(memoryview(mapping), place) for name, place in header["arrays"].items()}
    _copy_columns(arrays, parts)
    _drop_pages(mapping)
    layout, equal = _layout_of(header["near"]), _layout_of(header["equal"])
    near = _tables(arrays, "near", layout)
    rows = np.arange(header["num_rows"], dtype=np.uint32)
    compared = np.delete(rows, arrays["not_compared"])
    fingerprints = arrays["fingerprint"] if len(compared) == len(rows) else arrays["fingerprint"][compared]
    for table in range(len(layout.shifts)):
        fill_table(near, table, fingerprints, compared)
        _drop_pages(mapping)
    del fingerprints, compared
    fill_table(_tables(arrays, "exact", equal), 0, np.ascontiguousarray(arrays["content_hash"][:, 1]), rows)
    _drop_pages(mapping)
    fill_table(_tables(arrays, "ids", equal), 0, hash_ids(_doc_ids(arrays)), rows)
    _drop_pages(mapping)


def _copy_columns(arrays: dict[str, _Array], parts: Sequence[Part]) -> None:
    row = num_bytes = num_skipped = 0
    for part in parts:
        end, offsets_and_bytes = row + len(part.doc_ids), utf8(part.doc_ids)
        for name, column in part.columns._asdict().items():
            for first in range(0, len(column), ROWS_AT_ONCE):
                arrays[name][row + first : row + first + ROWS_AT_ONCE][: len(column) - first] = column[first : first + ROWS_AT_ONCE]
        offsets, data = offsets_and_bytes
        np.add(offsets, num_bytes - offsets[0], out=arrays["id_offsets"][row : end + 1])
        arrays["id_bytes"][num_bytes : num_bytes + int(offsets[-1] - offsets[0])] = data[offsets[0] : offsets[-1]]
        arrays["not_compared"][num_skipped : num_skipped + len(part.not_compared)] = part.not_compared + row
        row, num_bytes, num_skipped = end, num_bytes + int(offsets[-1] - offsets[0]), num_skipped + len(part.not_compared)


def _drop_pages(mapping: mmap.mmap) -> None:
    """Write out what was written so far and give its memory back."""
    mapping.flush()
    if hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)


def _opened(path: Path, header: dict[str, Any], arrays: dict[str, _Array]) -> Base:
    equal = _layout_of(header["equal"])
    return Base(
        path=path,
        max_hamming=int(header["max_hamming"]),
        columns=Columns(arrays["fingerprint"], arrays["content_hash"], arrays["sketch"]),
        doc_ids=_doc_ids(arrays),
        not_compared=arrays["not_compared"],
        near=_tables(arrays, "near", _layout_of(header["near"])),
        exact=_tables(arrays, "exact", equal),
        ids=_tables(arrays, "ids", equal),
    )


def _tables(arrays: dict[str, _Array], name: str, layout: Layout) -> Tables:
    fingerprints = arrays["fingerprint"] if name == "near" else arrays["fingerprint"][:0]  # the others' answers are compared by who asks
    tags = arrays[f"{name}.tags"] if f"{name}.tags" in arrays else read_only(tags_of(layout, arrays[f"{name}.values"]))
    return tables_over(layout, arrays[f"{name}.starts"], (tags, arrays[f"{name}.rows"]), fingerprints)


def _layout_of(fields: dict[str, Sequence[int]]) -> Layout:
    return Layout(*(tuple(int(value) for value in fields[name]) for name in Layout._fields))


def _doc_ids(arrays: dict[str, _Array]) -> pa.LargeStringArray:
    offsets, data = pa.py_buffer(arrays["id_offsets"]), pa.py_buffer(arrays["id_bytes"])
    return pa.LargeStringArray.from_buffers(len(arrays["id_offsets"]) - 1, offsets, data)


def _read_header(mapped: memoryview) -> dict[str, Any]:
    if bytes(mapped[: len(MAGIC)]) not in {MAGIC, OLDER_MAGIC}:
        raise ValueError("its first bytes are not those of one")
    length = int.from_bytes(mapped[len(MAGIC) : len(MAGIC) + 8], "little")
    header = json.loads(bytes(mapped[len(MAGIC) + 8 : len(MAGIC) + 8 + min(length, 2 * ALIGNMENT)]))
    if not isinstance(header, dict):
        raise TypeError("its header is not an object")
    return header


def _array(mapped: memoryview, place: dict[str, Any]) -> _Array:
    """One array, without a copy. Raises ValueError if it does not lie within the file."""
    if place["dtype"] not in _DTYPES or place["offset"] < 0 or min(place["shape"]) < 0:
        raise ValueError(f"an array of type {place['dtype']}, shape {place['shape']} at {place['offset']}")
    count = int(np.prod(place["shape"], dtype=np.int64))
    return np.frombuffer(mapped, np.dtype(place["dtype"]), count, place["offset"]).reshape(place["shape"])


def _size(place: dict[str, Any]) -> int:
    return int(np.dtype(place["dtype"]).itemsize * np.prod(place["shape"], dtype=np.int64))


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT
