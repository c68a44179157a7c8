"""Whatever bytes a record holds, prepare answers with one row; and token ids give back any text."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.steps.prepare import prepare
from pipelines.tokenizers.tokenizer import BatchTokenizer, load_tokenizer, write_tokenizer
from schemas.arrow import RECORDS, Outcome, prepared
from schemas.settings import Settings
from schemas.settings_data import IngestSettings, TokenizerSettings

SETTINGS = Settings(ingest=IngestSettings(max_document_bytes=1024))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> BatchTokenizer:
    root: Path = tmp_path_factory.mktemp("root")
    return load_tokenizer(root, write_tokenizer(root, ["some words 一些词语 " * 20], TokenizerSettings(vocab_size=300)))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
FIELDS = st.sampled_from(["id", "text", "lang", "title", "url", "meta", "created_at"])
TEXT = st.text(max_size=60) | st.text(st.sampled_from("ab 中文。\n\r\t\u200d\ufe0f👩é\ufffd\x00\x1b#Ã©"), min_size=20, max_size=200)
DOCUMENTS = st.dictionaries(FIELDS, JSON | TEXT) | st.fixed_dictionaries({"text": TEXT}, optional={"id": TEXT, "lang": TEXT})
VALUES = (
    st.none()
    | st.binary()
    | st.binary(min_size=1020, max_size=1030)
    | DOCUMENTS.map(lambda value: json.dumps(value).encode())
    | JSON.map(lambda value: json.dumps(value).encode())
)
HEADER_NAMES = st.sampled_from(["ce_id", "ce_source", "ce_type", "ce_specversion", "ce_time", "content-type", "traceparent"]) | st.text(max_size=5)
HEADER_VALUES = (
    st.none() | st.binary(max_size=8) | st.sampled_from([b"1.0", b"document.received", b"application/json", b"application/cloudevents+json"])
)
HEADERS = st.none() | st.lists(st.fixed_dictionaries({"key": HEADER_NAMES, "value": HEADER_VALUES}), max_size=5)
ROWS = st.fixed_dictionaries(
    {"is_control": st.sampled_from([False] * 9 + [True]), "key": st.none() | st.binary(max_size=8), "value": VALUES, "headers": HEADERS}
)


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(ROWS, max_size=5))
def test_any_record_gets_exactly_one_row_with_one_outcome(rows: list[dict[str, Any]], tokenizer: BatchTokenizer) -> None:
    numbered = [{"topic": "t", "partition": 0, "offset": i} | row for i, row in enumerate(rows)]
    out = prepare(pa.Table.from_pylist(numbered, schema=RECORDS), SETTINGS, tokenizer)
    out.validate(full=True)
    assert out.schema.equals(prepared(tokenizer.vocab_size))
    assert out["offset"].to_pylist() == list(range(len(rows)))
    for before, after in zip(numbered, out.to_pylist(), strict=True):
        outcome = Outcome(after["outcome"])
        assert (outcome is Outcome.CONTROL) == before["is_control"]
        assert (after["reason"] is not None) == (outcome in (Outcome.DEAD, Outcome.REJECTED))
        assert (after["tokens"] is not None) == (outcome is Outcome.KEPT)
        assert (after["doc_id"] is None) == (outcome in (Outcome.DEAD, Outcome.CONTROL))


@settings(max_examples=400, deadline=None)
@given(texts=st.lists(st.text() | TEXT, max_size=4))
def test_decoding_what_was_encoded_gives_the_text_back(texts: list[str], tokenizer: BatchTokenizer) -> None:
    encoded = tokenizer.encode(pa.array(texts, pa.large_string())).to_pylist()
    assert [tokenizer.decode(ids) for ids in encoded] == texts
    assert all(tokenizer.eos_token_id not in ids and tokenizer.pad_token_id not in ids for ids in encoded)
