"""Everything that takes memory counts: headers, and documents outside their records. Blocks are cut by it."""

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.ingest.portions import in_portions
from pipelines.kafka.sizes import size_of, sizes_of
from pipelines.steps import decode as decode_module
from pipelines.steps.decode import decode
from schemas.arrow import RECORDS
from schemas.envelope import Headers
from schemas.errors import BlockTooLarge
from schemas.headers import headers_to_arrow
from schemas.settings import Settings

Sent = tuple[bytes | None, bytes | None, Headers | None]


def records(sent: list[Sent]) -> pa.Table:
    columns = [
        pa.repeat(pa.scalar("t"), len(sent)),
        pa.repeat(pa.scalar(0, pa.int32()), len(sent)),
        pa.array(range(len(sent)), pa.int64()),
        pa.nulls(len(sent), pa.int64()),
        pa.array([headers is None for _, _, headers in sent]),
        pa.array([key for key, _, _ in sent], pa.large_binary()),
        pa.array([value for _, value, _ in sent], pa.large_binary()),
        headers_to_arrow([headers for _, _, headers in sent]),
    ]
    return pa.Table.from_arrays(columns, schema=RECORDS)


def test_keys_values_and_headers_count_also_of_slices_and_of_several_chunks() -> None:
    sent: list[Sent] = [(b"k", b"value", [("name", b"12"), ("x", None)]), (None, None, []), (None, None, None), (b"", b"v", [("水", b"\x00")])]
    expected = [1 + 5 + 6 + 1, 0, 0, 1 + 3 + 1]
    table = records(sent)
    assert [size_of(key, value, [(name.encode().decode(), data) for name, data in headers or []]) for key, value, headers in sent[:3]] == expected[:3]
    assert sizes_of(table).to_pylist() == expected
    assert sizes_of(table.slice(1)).to_pylist() == expected[1:]
    assert sizes_of(pa.concat_tables([table.slice(3), table.slice(0, 2)])).to_pylist() == [expected[3], *expected[:2]]
    assert sizes_of(RECORDS.empty_table()).to_pylist() == []


def books(root: Path, number: int, size_bytes: int) -> pa.Table:
    """Events of a few bytes that name books; the last book is ten times as large, and one event has no book."""
    sent: list[Sent] = []
    for index in range(number):
        text = f"book {index} ".encode() * (size_bytes // 7 * (10 if index == number - 1 else 1))
        sha256 = hashlib.sha256(text).hexdigest()
        (root / "blobs").mkdir(parents=True, exist_ok=True)
        (root / "blobs" / sha256).write_bytes(text)
        named = {"dataref": f"blobs/{sha256 if index != 3 else '0' * 64}"}  # nobody says how large it is
        sent.append((None, json.dumps(named).encode(), []))
    return records(sent)


def test_a_block_that_refers_to_more_than_fits_is_split_and_its_rows_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(root=str(tmp_path))
    table = books(tmp_path, 40, 3_000)
    whole = decode(table, settings)
    limit = 20_000
    monkeypatch.setattr(decode_module, "MAX_OUTSIDE_BYTES", limit)
    portions = list(in_portions(lambda part: decode(part, settings), table))
    assert pa.concat_tables(portions).combine_chunks() == whole.combine_chunks()
    assert all(sum(part["outside_bytes"].drop_null().to_pylist()) <= limit for part in portions if len(part) > 1)
    assert 8 < len(portions) < 20
    assert len(portions[-1]) == 1, "one that is too large by itself is alone"


def test_a_single_record_is_never_too_large_for_its_block(tmp_path: Path) -> None:
    def step(table: pa.Table) -> pa.Table:
        if len(table) > 1:
            raise BlockTooLarge("split")
        return table

    table = records([(None, b"%d" % index, []) for index in range(5)])
    assert [len(part) for part in in_portions(step, table)] == [1] * 5
