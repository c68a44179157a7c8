"""What a producer declares of a document reaches the audit trail: bounded, without personal data, whatever it is."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.cli.trace import sentence
from pipelines.dataset.audit import audit_blocks
from pipelines.dataset.dataset import Dataset
from pipelines.lineage.lineage import trace
from pipelines.steps.declared import MAX_LICENSE_CHARS, MAX_META_BYTES, MAX_TITLE_CHARS, NAMES
from pipelines.steps.prepare import clean
from schemas.settings import Settings
from tests.factories import commit_records, records_table
from tests.ingest_harness import CHINESE, ENGLISH
from tests.unit.test_dataset_audit import DEADLETTER

ALL = {"title": "Die Mühle", "license": "cc-by-4.0", "created_at": "2026-01-31T12:00:00Z", "meta": {"page": 7, "tags": ["水"], "ok": True}}


def cleaned(*documents: dict[str, Any], **pii: str) -> list[dict[str, Any]]:
    values: list[tuple[bytes | None, bytes | None]] = [
        (None, json.dumps({"text": f"{ENGLISH} {CHINESE}", **document}).encode()) for document in documents
    ]
    rows: list[dict[str, Any]] = clean(records_table(values), Settings.model_validate({"pii": pii})).to_pylist()
    return rows


def test_all_four_are_kept_as_they_came() -> None:
    said, silent = cleaned(ALL, {})
    assert {name: said[name] for name in NAMES if name != "meta"} == {name: ALL[name] for name in NAMES if name != "meta"}
    assert json.loads(said["meta"]) == ALL["meta"]
    assert [silent[name] for name in NAMES] == [None] * 4


def test_a_rejected_document_leaves_nothing_of_them() -> None:
    (row,) = cleaned({**ALL, "text": "short"})
    assert row["outcome"] == "rejected" and [row[name] for name in NAMES] == [None] * 4


def test_values_are_bounded_and_an_object_that_is_too_large_says_so() -> None:
    deep: Any = "x"
    for _ in range(300):
        deep = [deep]
    long, nested = cleaned({"title": "水" * 9_999, "license": "x" * 9_999, "meta": {"a": "x" * MAX_META_BYTES}}, {"meta": {"a": deep}})
    assert (len(long["title"]), len(long["license"])) == (MAX_TITLE_CHARS, MAX_LICENSE_CHARS)
    assert json.loads(long["meta"]) == {"headrace_omitted": "4,104 bytes"}
    assert json.loads(nested["meta"]) == {"headrace_omitted": "nested too deeply"}


def test_personal_data_in_them_is_redacted_as_in_texts_and_drops_no_document() -> None:
    meta = {"mail": "zhang@qq.com", "phones": [13800138000, "x"], "a@example.com": None, "page": 7}
    row, other = cleaned({"title": "Write to zhang@qq.com", "license": "ask zhang@qq.com", "meta": meta}, ALL, email="drop")
    assert row["outcome"] == "kept"
    assert (row["title"], row["license"]) == ("Write to <EMAIL>", "ask <EMAIL>")
    assert json.loads(row["meta"]) == {"mail": "<EMAIL>", "phones": ["<PHONE>", "x"], "<EMAIL>": None, "page": 7}
    assert json.loads(other["meta"]) == ALL["meta"]
    (left,) = cleaned({"title": "Write to zhang@qq.com"}, email="off")
    assert left["title"] == "Write to zhang@qq.com"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(), JSON, max_size=4), st.text())
def test_no_object_and_no_title_raises(meta: dict[str, Any], title: str) -> None:
    document = json.dumps({"text": ENGLISH, "title": title, "meta": {**meta, "mail": "a@example.com"}}).encode()
    (row,) = clean(records_table([(None, document)]), Settings()).to_pylist()
    assert row["outcome"] == "dead" or json.loads(row["meta"])["mail"] == "<EMAIL>" or "headrace_omitted" in row["meta"]


def test_the_audit_trail_and_trace_tell_the_licence(tmp_path: Path) -> None:
    documents = [{"id": f"doc-{number}", "text": f"{ENGLISH} {number} {CHINESE[number:]}", **(ALL if number else {})} for number in range(2)]
    commit_records(tmp_path, [(None, json.dumps(document).encode()) for document in documents])
    (block,) = audit_blocks(tmp_path, Dataset(tmp_path).manifest)
    assert block["license"].to_pylist() == [None, "cc-by-4.0"]
    (fate,) = trace(tmp_path, "doc-1", deadletter_topic=DEADLETTER)
    assert (fate.license, fate.title, fate.created_at) == ("cc-by-4.0", "Die Mühle", "2026-01-31T12:00:00Z")
    assert "under licence cc-by-4.0" in sentence(fate)


@pytest.mark.parametrize("name", NAMES)
def test_a_value_that_is_no_string_is_a_dead_letter(name: str) -> None:
    (row,) = cleaned({name: 5})
    assert (row["outcome"], row["reason"]) == ("dead", "wrong_type")
