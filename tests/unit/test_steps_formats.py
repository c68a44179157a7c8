"""Pages, character sets and documents outside their records."""

import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.steps.decode import NO_CONTENT, SCHEMA, decode
from pipelines.steps.formats.charset import decode_text
from pipelines.steps.formats.html import looks_like_page, read_page
from schemas.arrow import RECORDS
from schemas.errors import BlobsUnavailable, EnvelopeError
from schemas.settings import Settings

MAX_DEPTH = 500
PAGE = (
    "<html><head><title> A \n page</title><style>p{}</style></head><body><nav><a href=x>Home</a><a href=y>About us</a></nav>"
    "<article><h1>Big news</h1>"
    "<p>The old mill stands by the river &amp; turns. Its wheel has not stopped for a hundred years.</p><p>水从山上流下来推动石磨转动。</p>"
    "<script>var x;</script></article><footer>Imprint</footer></body></html>"
)
SAMPLES = {
    "gb18030": "座老磨坊立在河边。它的水轮已经一百年没有转动了，但水渠里依然有水流过。人们用它把谷物磨成面粉。",
    "big5": "這座老磨坊立在河邊。它的水輪已經一百年沒有轉動了，但水渠裡依然有水流過。人們用它把穀物磨成麵粉。",
    "shift_jis": "古い水車小屋が川のほとりに立っている。水車は百年のあいだ回っていないが、水路にはまだ水が流れている。",
    "euc_jp": "古い水車小屋が川のほとりに立っている。水車は百年のあいだ回っていないが、水路にはまだ水が流れている。",
    "euc_kr": "오래된 물레방아가 강가에 서 있다. 바퀴는 백 년 동안 돌지 않았지만 수로에는 아직 물이 흐른다. 사람들은 곡식을 빻았다.",
    "cp1251": "Старая мельница стоит у реки. Её колесо не вращалось сто лет, но в канале всё ещё течёт вода.",
    "koi8-r": "Старая мельница стоит у реки. Ее колесо не вращалось сто лет, но в канале все еще течет вода.",
    "cp1252": "Die alte Mühle steht am Fluß. Ihr Rad hat sich seit hundert Jahren nicht gedreht, aber über den Kanal fließt noch Wasser.",
}


def rows(*given: Mapping[str, Any], settings: Settings = Settings()) -> list[dict[str, Any]]:  # noqa: B008 (frozen)
    base = {"topic": "t", "partition": 0, "timestamp_ms": 0, "is_control": False}
    table = decode(pa.Table.from_pylist([base | {"offset": at} | dict(row) for at, row in enumerate(given)], schema=RECORDS), settings)
    assert table.schema.equals(SCHEMA)
    return list(table.to_pylist())


def json_row(**fields: Any) -> dict[str, Any]:
    return {"value": json.dumps(fields, ensure_ascii=False).encode()}


def event_row(value: bytes | None, content_type: str, **attributes: str) -> dict[str, Any]:
    named = {"id": "1", "source": "/crawl", "specversion": "1.0", "type": "document.received"} | attributes
    headers = [{"key": f"ce_{name}", "value": text.encode()} for name, text in named.items()]
    return {"value": value, "headers": [*headers, {"key": "content-type", "value": content_type.encode()}]}


def test_the_main_content_of_a_page_is_its_article_and_the_title_is_kept() -> None:
    page = read_page(PAGE, MAX_DEPTH)
    assert page.title == "A page"
    assert "The old mill stands by the river & turns." in page.text
    assert "水从山上流下来推动石磨转动。" in page.text
    assert not any(word in page.text for word in ("About us", "var x", "Imprint", "p{}"))


SLOW_PAGES = {
    "attributes": "<p " + " ".join(f"a{i}='>'" for i in range(40_000)) + ">deep",
    "optgroup": "<select>" + "<optgroup><option>deep" * 50_000,
    "deep": "<div>" * 100_000 + "deep",
    "formatting": "".join(f"<p><b a={i}>" for i in range(5_000)) + "deep",
    "multiplied": "<a href=x>" * 400 + "<p>deep" * 50_000,
    "unclosed": "<script" * 100_000,
}


HIDDEN = {
    "comments that end at once": "<!-->" + "<div>" * 60_000,
    "comments with another end": "<!--x--!>" + "<div>" * 60_000,
    "styles in graphics": "<svg><style>" + "<div>" * 60_000,
    "end tags of nothing": "<div></p></span></x>" * 20_000,
    "end tags out of scope": "".join(f"<b a={i}><object></b></object>" for i in range(4_000)) + "<p>x" * 40_000,
    "end tags in bogus comments": "".join(f"<b a={i}><?</b>" for i in range(10_000)) + "<p>x" * 40_000,
    "end tags with other spaces": "".join(f"<b a={i}></b\x0b>" for i in range(10_000)) + "<p>x" * 40_000,
    "attributes of bodies": "".join(f"<body a{i}=1>" for i in range(40_000)),
    "options": "<select>" + "<option>" * 60_000,
    "annotations": "<rtc>" * 80_000,
    "blocks below": "<div>" * 40_000 + "<p>" * 60_000,
}
"""Pages whose structure is not what counting tags makes of them."""


@pytest.mark.parametrize("page", HIDDEN.values(), ids=HIDDEN)
def test_a_page_that_hides_what_makes_it_slow_is_not_slow(page: str) -> None:
    started = time.process_time()
    read_page(page, MAX_DEPTH)
    assert time.process_time() - started < 5


def test_headings_are_content() -> None:
    text = "The old mill stands by the river and turns. Its wheel has not stopped for a hundred years."
    for before, after in (("<article><header>", "</header>"), ("<main>", ""), ("<header>", "</header><div id=content>")):
        page = f"<html><body><nav><a href=x>Home</a></nav>{before}<h1>Big news</h1>{after}<p>{text}</p><h2>Its wheel</h2><p>{text}</p></body></html>"
        assert [line for line in read_page(page, MAX_DEPTH).text.split("\n") if line] == ["Big news", text, "Its wheel", text]


def test_pages_are_parsed_up_to_the_allowed_depth() -> None:
    for depth, is_parsed in ((MAX_DEPTH - 4, True), (MAX_DEPTH, False)):
        page = "<nav><a href=x>Menu</a></nav>" + "<div>" * depth + "<p>The old mill stands by the river and turns.</p>" + "</div>" * depth
        assert ("Menu" not in read_page(page, MAX_DEPTH).text) == is_parsed


@pytest.mark.parametrize("page", SLOW_PAGES.values(), ids=SLOW_PAGES)
def test_a_page_made_to_be_slow_is_not(page: str) -> None:
    started = time.process_time()
    found = read_page(page, MAX_DEPTH)
    assert time.process_time() - started < 5
    assert found.text == "" if page.startswith("<script") else "deep" in found.text


@given(st.text() | st.text(st.sampled_from("<>/!-abpscript=\"' &;#x\x00\ud7ff")).map(lambda text: f"<p>{text}<script>"))
def test_any_text_is_a_page(text: str) -> None:
    for max_depth in (1, MAX_DEPTH):
        page = read_page(text, max_depth)
        assert page.text == page.text.strip()
        page.text.encode()
    looks_like_page(text)


def test_a_document_says_whether_it_is_html_or_lets_us_see() -> None:
    found = rows(
        json_row(id="html", text=PAGE, format="html", url="https://www.a.example/x"),
        json_row(id="auto", text="<!DOCTYPE html>" + PAGE, format="auto"),
        json_row(id="no page", text="a < b, <b>not</b> a page", format="auto"),
        json_row(id="as it is", text=PAGE),
        event_row(PAGE.encode(), "text/html; charset=utf-8", url="https://a.example/", lang="en"),
        event_row("引水渠".encode("gbk"), "text/plain; charset=GBK"),
        json_row(id="empty", text="<html><nav><a href=x>Menu</a></nav></html>", format="html"),
        json_row(id="bad", text="x", format="docx"),
        json_row(id="bad", text="x", format=7),
    )
    main = found[0]["text"]
    assert [row["text"] for row in found[:6]] == [main, main, "a < b, <b>not</b> a page", PAGE, main, "引水渠"]
    assert (found[4]["doc_id"], found[4]["domain"], found[4]["declared_language"]) == ("/crawl#1", "a.example", "en")
    assert [(row["outcome"], row["reason"]) for row in found[6:]] == [("rejected", NO_CONTENT), ("dead", "bad_format"), ("dead", "wrong_type")]


def test_a_character_set_without_a_media_type_is_enough() -> None:
    page = "<!DOCTYPE html><p>老人坐在河边看着水流过磨坊的轮子。</p>".encode("gbk")
    found = rows(
        event_row(page, "charset=gbk"),
        event_row("老人坐在河边看着水流".encode("gbk"), '; Charset="GBK"'),
        event_row(b'{"id": "json", "text": "water"}', "charset=utf-8"),
        event_row("老人坐在河边看着水流过磨坊的轮子。".encode(), "text/html; charset=gbk"),
        event_row(b"x", "gbk"),
    )
    assert [row["text"] for row in found] == [
        "老人坐在河边看着水流过磨坊的轮子。",
        "老人坐在河边看着水流",
        "water",
        "老人坐在河边看着水流过磨坊的轮子。",
        None,
    ]
    assert found[4]["reason"] == "unknown_content_type"


def test_the_share_of_damage_that_a_text_may_have_is_a_setting() -> None:
    damaged = ("老人坐在河边看着水流过磨坊的轮子。" * 2).encode() + b"\xff\xff"
    strict, mild = (Settings.model_validate({"formats": {"max_damaged_fraction": share}}) for share in (0, 0.1))
    assert rows(event_row(damaged, "text/plain"), settings=strict)[0]["reason"] == "not_utf8"
    assert rows(event_row(damaged, "text/plain"), settings=mild)[0]["text"].count("\ufffd") == 2


def test_a_structured_event_may_hold_a_page() -> None:
    event = {"id": "1", "source": "/x", "specversion": "1.0", "type": "document.received", "datacontenttype": "text/html", "data": PAGE}
    headers = [{"key": "content-type", "value": b"application/cloudevents+json"}]
    (found,) = rows({"value": json.dumps(event).encode(), "headers": headers})
    assert "The old mill" in found["text"]


@pytest.mark.parametrize("charset", SAMPLES)
def test_bytes_are_read_in_the_set_that_was_declared_named_or_detected(charset: str) -> None:
    text = SAMPLES[charset]
    data = text.encode(charset)
    assert decode_text(data, charset) == text
    assert decode_text(data, None) == text
    assert decode_text(data, "utf-8") == text  # declared wrongly
    assert decode_text(b'<meta charset="%s"><p>x' % charset.encode() + data, None).endswith(text)


def test_byte_order_marks_count_more_than_declarations() -> None:
    for data in ("\ufeff水".encode(), "\ufeff水".encode("utf-16-le"), "\ufeff水".encode("utf-16-be")):
        assert decode_text(data, "gbk") == "水"


@settings(deadline=None)  # codecs are imported when they are first used
@given(st.binary(), st.none() | st.sampled_from(["utf-8", "gbk", "utf-16", "utf-32", "hex", "zlib", "idna", "no such", "\0", "utf-7", "mbcs"]))
def test_any_bytes_are_text_or_a_named_rule(data: bytes, declared: str | None) -> None:
    try:
        decode_text(data, declared).encode()
    except EnvelopeError as error:
        assert error.rule in ("not_utf8", "bad_charset")


@pytest.fixture
def store(tmp_path: Path) -> Settings:
    (tmp_path / "root" / "blobs").mkdir(parents=True)
    (tmp_path / "extra").mkdir()
    (tmp_path / "secret").write_bytes(b"secret of the machine")
    return Settings.model_validate(
        {"root": str(tmp_path / "root"), "formats": {"dataref_roots": (str(tmp_path / "extra"),), "max_dataref_bytes": 10_000}}
    )


def reference(content: bytes, uri: str, **other: Any) -> dict[str, Any]:
    return json_row(**({"id": "a", "dataref": uri, "datarefsha256": hashlib.sha256(content).hexdigest(), "datarefsize": len(content)} | other))


def test_a_document_outside_its_record_is_read_from_allowed_folders(store: Settings, tmp_path: Path) -> None:
    text, data = "水从山上流下来".encode(), b'{"id": "own", "text": "from an event"}'
    (tmp_path / "root" / "blobs" / "one two").write_bytes(text)
    (tmp_path / "extra" / "b").write_bytes(PAGE.encode())
    digest = hashlib.sha256(data).hexdigest()
    (tmp_path / "extra" / digest).write_bytes(data)
    found = rows(
        reference(text, "blobs/one%20two"),
        reference(PAGE.encode(), (tmp_path / "extra" / "b").as_uri(), format="html"),
        event_row(b"", "application/json", dataref=(tmp_path / "extra" / digest).as_uri()),
        event_row(None, "application/json", dataref=(tmp_path / "extra" / digest).as_uri(), datarefsize=str(len(data))),
        settings=store,
    )
    assert [(row["doc_id"], row["error"]) for row in found] == [("a", None), ("a", None), ("own", None), ("own", None)]
    assert found[0]["text"] == text.decode()
    assert "The old mill" in found[1]["text"]
    assert found[2]["text"] == found[3]["text"] == "from an event"


def test_no_reference_leads_out_of_the_allowed_folders(store: Settings, tmp_path: Path) -> None:
    secret = b"secret of the machine"
    (tmp_path / "root" / "blobs" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "root" / "blobs" / "up").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "extra" / "pipe")
    uris = [
        "../secret", "blobs/../../secret", "blobs/%2e%2e/%2e%2e/secret", "blobs/link", "blobs/up/secret", (tmp_path / "secret").as_uri(),
        str(tmp_path / "secret"), "http://127.0.0.1/secret", "https://a.example/x", "s3://bucket/x", "file://host/etc/passwd", "//host/x", "ftp:x",
        "blobs", ".", "blobs/a?b", "blobs/a%00b", "http://[", (tmp_path / "extra" / "pipe").as_uri(), "file:blobs/x", "blobs-of-another/x",
    ]  # fmt: skip
    for uri in uris:
        (found,) = rows(reference(secret, uri), settings=store)
        assert (found["outcome"], found["reason"], found["text"]) == ("dead", "dataref_forbidden", None), uri


def test_what_is_wrong_with_a_reference_is_a_rule(store: Settings, tmp_path: Path) -> None:
    (tmp_path / "root" / "blobs" / "a").write_bytes(b"content")
    (tmp_path / "root" / "blobs" / "large").write_bytes(b"x" * 10_001)
    given = {
        "dataref_missing": [reference(b"x", "blobs/none"), reference(b"x", "blobs/a/b"), reference(b"x", "blobs/" + "n" * 500)],
        "dataref_mismatch": [reference(b"Content", "blobs/a"), reference(b"content", "blobs/a", datarefsize=8)],
        "too_large": [reference(b"x" * 10_001, "blobs/large"), reference(b"x" * 10_001, "blobs/large", datarefsize=None)],
        "bad_attribute": [reference(b"x", ""), reference(b"x", "blobs/a", datarefsha256="0"), reference(b"x", "blobs/a", datarefsize="7x")],
    }
    for rule, records in given.items():
        assert [row["reason"] for row in rows(*records, settings=store)] == [rule] * len(records)


def test_a_store_that_is_away_costs_no_document(store: Settings, tmp_path: Path) -> None:
    (tmp_path / "extra").rmdir()
    with pytest.raises(BlobsUnavailable, match="nothing was committed"):
        rows(reference(b"x", (tmp_path / "extra" / "x").as_uri()), settings=store)
    (tmp_path / "root" / "blobs").rmdir()  # nothing was ever put there: no reason to stop
    assert rows(reference(b"x", "blobs/x"), settings=store)[0]["reason"] == "dataref_missing"
