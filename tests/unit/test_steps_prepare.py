"""From Kafka records to prepared rows: one row out per row in, whatever the row holds."""

import json
import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.steps.prepare import CLEANED, clean, prepare, splits
from pipelines.tokenizers.tokenizer import BatchTokenizer, load_tokenizer, write_tokenizer
from schemas.arrow import MAX_URL_CHARS, RECORDS, Outcome, prepared
from schemas.settings import Settings
from schemas.settings_data import IngestSettings, TokenizerSettings
from schemas.urls import public_url

REPOSITORY = Path(__file__).parents[2]
CORPUS = REPOSITORY.parent / "shared" / "corpus" / "documents.jsonl.zst"
CHINESE = "这座老磨坊立在河边。它的水轮已经一百年没有转动了，但水渠里依然有水流过。"
ENGLISH = "The old mill stands by the river. Its wheel has not turned for a hundred years, but the channel still carries water."


def records(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """A RECORDS table; what a row does not say is null, and offsets count up."""
    base = {"topic": "t", "partition": 1, "timestamp_ms": 0, "is_control": False}
    return pa.Table.from_pylist([base | {"offset": 10 + i} | dict(row) for i, row in enumerate(rows)], schema=RECORDS)


def document(text: str, **fields: Any) -> dict[str, Any]:
    return {"value": json.dumps({"text": text} | fields).encode()}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> BatchTokenizer:
    root = tmp_path_factory.mktemp("root")
    return load_tokenizer(root, write_tokenizer(root, [ENGLISH, CHINESE] * 5, TokenizerSettings(vocab_size=400)))


@pytest.fixture(scope="module")
def mixed() -> pa.Table:
    return records(
        [
            document(ENGLISH, id="kept"),
            {"is_control": True},
            document("too short", id="rejected"),
            {"key": b"gone", "value": None},
            {"key": b"k", "value": b"\xff{", "headers": [{"key": "h", "value": b"1"}, {"key": "h", "value": None}]},
            {"value": None},
            document("x" * 2000, id="large"),
            document(CHINESE + "\ufeff", lang="zh"),
        ]
    )


SMALL = Settings(ingest=IngestSettings(max_document_bytes=1024))


def test_every_row_has_one_outcome_in_the_order_it_came(mixed: pa.Table, tokenizer: BatchTokenizer) -> None:
    rows = prepare(mixed, SMALL, tokenizer)
    assert rows.schema.equals(prepared(tokenizer.vocab_size))
    assert rows["offset"].to_pylist() == mixed["offset"].to_pylist()
    assert rows["outcome"].to_pylist() == ["kept", "control", "rejected", "retracted", "dead", "dead", "dead", "kept"]
    assert rows["reason"].to_pylist() == [None, None, "too_short", None, "not_utf8", "null_without_key", "too_large", None]
    assert rows["doc_id"].to_pylist() == ["kept", None, "rejected", "gone", None, None, None, "t/1/17"]
    assert rows["language"].to_pylist() == ["en", None, "en", None, None, None, None, "zh"]


def test_only_dead_rows_carry_their_bytes_and_a_sentence(mixed: pa.Table, tokenizer: BatchTokenizer) -> None:
    rows = prepare(mixed, SMALL, tokenizer).to_pylist()
    dead = [row for row in rows if row["outcome"] == "dead"]
    assert [(row["key"], row["value"]) for row in dead] == [(b"k", b"\xff{"), (None, None), (None, mixed["value"][6].as_py())]
    assert dead[0]["headers"] == [{"key": "h", "value": b"1"}, {"key": "h", "value": None}]
    assert all(row["error"] for row in dead)
    assert all(row[name] is None for row in rows if row["outcome"] != "dead" for name in ("key", "value", "headers", "error"))


def test_only_kept_rows_have_fingerprints_and_tokens(mixed: pa.Table, tokenizer: BatchTokenizer) -> None:
    names = ("fingerprint", "content_hash", "sketch", "split", "tokens")
    for row in prepare(mixed, SMALL, tokenizer).to_pylist():
        assert [row[name] is not None for name in names] == [row["outcome"] == "kept"] * len(names)
    assert tokenizer.decode(row["tokens"]) == CHINESE
    assert row["num_chars"] == len(CHINESE)


def test_a_row_comes_out_the_same_from_any_batch(mixed: pa.Table, tokenizer: BatchTokenizer) -> None:
    together = prepare(mixed, SMALL, tokenizer)
    alone = pa.concat_tables([prepare(mixed.slice(i, 1), SMALL, tokenizer) for i in range(len(mixed))])
    chunked = prepare(pa.concat_tables([mixed.slice(0, 3), mixed.slice(3)]), SMALL, tokenizer)
    assert together.to_pylist() == alone.to_pylist() == chunked.to_pylist()


def test_an_empty_batch_gives_an_empty_table(tokenizer: BatchTokenizer) -> None:
    assert prepare(RECORDS.empty_table(), Settings(), tokenizer).schema.equals(prepared(tokenizer.vocab_size))
    assert clean(RECORDS.empty_table(), Settings()).schema.equals(CLEANED)


def test_clean_hands_out_the_normalized_text_of_kept_documents_only(mixed: pa.Table) -> None:
    cleaned = clean(mixed, SMALL)
    assert cleaned.schema.equals(CLEANED)
    assert cleaned["text"].to_pylist() == [ENGLISH, *[None] * 6, CHINESE]


def test_a_url_is_told_without_credentials_and_cannot_steer_a_terminal() -> None:
    told = {
        "https://me:secret@example.org:8080/a?mail=a@b.org": "https://example.org:8080/a?mail=a@b.org",
        "//me@example.org/@a": "//example.org/@a",
        f"https://{'x' * 3000}:secret@example.org/": "https://example.org/",
        "http://example.org/\x1b[2J磨坊": "http://example.org/%1B[2J磨坊",
        "mailto:a@b.org": "mailto:a@b.org",
    }
    rows = clean(records([document(ENGLISH, url=url) for url in told]), Settings())
    assert rows["url"].to_pylist() == list(told.values())
    assert [public_url(url) for url in told.values()] == list(told.values()), "so that what was told is found again"


def test_a_replay_is_one_whatever_its_header_says() -> None:
    values = [b"t/0/1", None, b"\x1b[2J", "t/0/\u202e".encode(), b"\xff" * 1000]
    rows = clean(records([document(ENGLISH) | {"headers": [{"key": "Headrace_Replay_Of", "value": value}]} for value in values]), Settings())
    assert rows["replay_of"].to_pylist() == ["t/0/1", "", "", "", "\N{REPLACEMENT CHARACTER}" * 300]


def test_a_row_keeps_the_url_that_its_event_names_and_no_more_than_the_trail_has_room_for() -> None:
    far = f"https://example.org/{'x' * 3000}"
    pages = [
        document(ENGLISH, url="https://example.org/a"),
        document("No.", url=far),
        document("<script></script>", format="html", url="u"),
        document("x"),
    ]
    rows = clean(records(pages), Settings())
    assert rows["outcome"].to_pylist() == ["kept", "rejected", "rejected", "rejected"]
    assert rows["url"].to_pylist() == ["https://example.org/a", far[:MAX_URL_CHARS], "u", None]


def test_the_declared_language_counts_where_detection_is_unsure() -> None:
    settings = Settings()
    rows = clean(records([document("1 2 3 4", lang="pt-BR"), document("1 2 3 4", lang="???"), document(ENGLISH, lang="de")]), settings)
    assert rows["language"].to_pylist() == ["pt", "und", "en"]


def test_the_split_follows_from_the_id_alone() -> None:
    ids = [f"doc-{i}" for i in range(20_000)]
    first = splits(ids, 0.05).to_pylist()
    assert splits(ids[::-1], 0.05).to_pylist() == first[::-1]
    assert Counter(first)["validation"] / len(ids) == pytest.approx(0.05, abs=0.005)
    # Pinned: a change of the hash would move documents between the splits.
    assert [i for i in range(100) if first[i] == "validation"] == [11, 24, 25, 27, 37, 46, 83]
    assert set(splits(ids, 0.0).to_pylist()) == {"train"}
    wider = splits(ids, 0.1).to_pylist()
    assert all(b == "validation" for a, b in zip(first, wider, strict=True) if a == "validation")


def test_preparing_never_opens_a_socket(mixed: pa.Table, tokenizer: BatchTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert len(prepare(mixed, SMALL, tokenizer)) == len(mixed)


CHILD = """
import pyarrow as pa, sys
from pipelines.steps import normalize
print(normalize.normalize(pa.array(["caf\\u00c3\\u00a9 one  two \\r\\n", "x" * 100])).texts.to_pylist())
print(sum(normalize._rewrite_all.stats.cache_hits.values()), file=sys.stderr)
"""


@pytest.mark.slow  # compiles
def test_processes_that_start_at_once_share_the_compiled_kernels(tmp_path: Path) -> None:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", CHILD], env=environment, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    together = [start() for _ in range(3)]
    outputs = [child.communicate(timeout=120) for child in together]
    assert [child.returncode for child in together] == [0, 0, 0], outputs
    later = start()
    output, num_hits = later.communicate(timeout=120)
    assert {out for out, _ in outputs} == {output}
    assert int(num_hits) == 1


@pytest.mark.skipif(not CORPUS.exists(), reason="the test corpus ../shared/corpus is not there")
def test_hardly_any_real_document_of_any_language_is_rejected_unless_it_is_short() -> None:
    import zstandard

    with CORPUS.open("rb") as file:
        data = zstandard.ZstdDecompressor().stream_reader(file).read(64_000_000).split(b"\n")[:-1]
    by_language: dict[str, list[str]] = {}
    for line in data[::4] + data[1::4]:
        parsed = json.loads(line)
        by_language.setdefault(parsed["lang"], []).append(parsed["text"])
    for language, texts in by_language.items():
        sample = texts[:400]
        cleaned = clean(records([document(text) for text in sample]), Settings())
        assert set(cleaned["outcome"].to_pylist()) <= {Outcome.KEPT, Outcome.REJECTED}
        num_rejected = sum(reason not in (None, "too_short") for reason in cleaned["reason"].to_pylist())
        assert num_rejected <= 2 + 0.06 * len(sample), (language, Counter(cleaned["reason"].to_pylist()))
