"""One record on which a step fails is found and dead-lettered; what is not a record's fault is raised."""

import json
from collections.abc import Sequence

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.ingest.isolation.poison import MAX_ERROR_CHARS, MAX_POISON, POISON, isolated
from schemas.arrow import RECORDS, prepared
from schemas.errors import BlobsUnavailable, BrokerUnavailable, HookFailed, QualityModelCorrupt, SettingsError, StepFailed, TokenizerMismatch

SCHEMA = prepared(300)


def records(values: Sequence[bytes | None]) -> pa.Table:
    rows: list[dict[str, object]] = [
        {"topic": "t", "partition": 0, "offset": offset, "timestamp_ms": 5, "is_control": value is None, "key": b"k", "value": value, "headers": []}
        for offset, value in enumerate(values)
    ]
    return pa.Table.from_pylist(rows, schema=RECORDS)


def failing_on(bad: bytes, error: BaseException, calls: list[int] | None = None):  # type: ignore[no-untyped-def]
    def step(table: pa.Table) -> pa.Table:
        if calls is not None:
            calls.append(len(table))
        if bad in table["value"].to_pylist():
            raise error
        kept = {"outcome": pa.repeat("kept", len(table)), **{name: table[name] for name in ("topic", "partition", "offset", "timestamp_ms")}}
        columns = [kept.get(field.name, pa.nulls(len(table), field.type)) for field in SCHEMA]
        return pa.table(columns, schema=SCHEMA)

    return step


@given(st.lists(st.booleans(), min_size=1, max_size=MAX_POISON), st.integers(0, 60), st.sampled_from([2, 16]))
def test_exactly_the_offending_records_are_dead_and_all_others_as_they_were(is_bad: list[bool], num_more: int, ways: int) -> None:
    is_bad = [*is_bad, *[False] * num_more]
    table = records([b"bad" if bad else b"good" for bad in [*is_bad, False]])
    rows = isolated(failing_on(b"bad", RuntimeError("a bug\nits second line")), table, ways).to_pylist()
    assert [row["offset"] for row in rows] == list(range(len(table)))
    assert [row["outcome"] == "dead" for row in rows] == [*is_bad, False]
    for row in rows:
        if row["outcome"] == "dead":
            assert (row["reason"], row["error"], row["key"], row["value"]) == (POISON, "RuntimeError: a bug", b"k", b"bad")


@pytest.mark.parametrize(("num_bad", "num_good", "ok"), [(16, 10, True), (17, 10, False), (50, 1_000, True), (53, 1_000, False)])
def test_what_fails_on_many_records_is_not_their_fault(num_bad: int, num_good: int, ok: bool) -> None:
    table = records([b"bad"] * num_bad + [b"good"] * num_good)
    if ok:
        assert isolated(failing_on(b"bad", RuntimeError("a bug")), table)["outcome"].to_pylist().count("dead") == num_bad
    else:
        with pytest.raises(StepFailed, match="RuntimeError: a bug"):
            isolated(failing_on(b"bad", RuntimeError("a bug")), table)


def test_one_among_thousands_costs_a_few_calls() -> None:
    calls: list[int] = []
    isolated(failing_on(b"bad", MemoryError(), calls), records([b"good"] * 1_500 + [b"bad"] + [b"good"] * 999))
    assert len(calls) < 30


@pytest.mark.parametrize(
    "error",
    [
        *(
            kind("no fault of theirs")
            for kind in (HookFailed, SettingsError, QualityModelCorrupt, TokenizerMismatch, BlobsUnavailable, BrokerUnavailable)
        ),
        OSError("disk"),
        ImportError("gone"),
        KeyboardInterrupt(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_is_not_a_records_fault_is_raised_at_once(error: BaseException) -> None:
    calls: list[int] = []
    with pytest.raises(type(error)):
        isolated(failing_on(b"bad", error, calls), records([b"good", b"bad", b"good"]))
    assert calls == [3]


class Panic(BaseException):
    """What pyo3 raises for a panic in Rust."""


def test_panics_are_isolated_and_texts_are_bounded() -> None:
    (_, row) = isolated(failing_on(b"bad", Panic("x" * 10_000)), records([b"good", b"bad"])).to_pylist()
    assert row["error"].startswith("Panic: x")
    assert len(row["error"]) == MAX_ERROR_CHARS


@pytest.mark.parametrize("number", [1, 2, MAX_POISON])
def test_a_block_of_nothing_but_poison_is_dead_and_stops_nothing(number: int) -> None:
    rows = isolated(failing_on(b"bad", RuntimeError("a bug")), records([b"bad"] * number)).to_pylist()
    assert [(row["outcome"], row["reason"]) for row in rows] == [("dead", POISON)] * number


@pytest.mark.parametrize("number", [1, 2, 8])
def test_an_error_that_any_document_meets_is_the_steps_and_dead_letters_nothing(number: int) -> None:
    def broken(table: pa.Table) -> pa.Table:
        if len(table):
            raise RuntimeError("broken")
        return SCHEMA.empty_table()

    with pytest.raises(StepFailed, match=r"RuntimeError: broken.*test_ingest_poison.py"):
        isolated(broken, records([b"bad"] * number))


def test_an_error_without_any_record_is_the_steps() -> None:
    def broken(table: pa.Table) -> pa.Table:
        raise RuntimeError(json.dumps(len(table)))

    with pytest.raises(StepFailed, match="RuntimeError: 0"):
        isolated(broken, records([b"bad"]))
