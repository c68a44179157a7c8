"""Web archives: every page is a document, and one damaged record costs that record alone."""

import gzip
import io
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import brotli
import pytest
import zstandard

from ops.producing.findings import Failed, Finding, Found, Skipped, TooLarge, content_id, file_id
from ops.producing.readers import ReadOptions, read_paths


def record(number: int, body: bytes, status: str = "200 OK", headers: str = "Content-Type: text/html", kind: str = "response") -> bytes:
    http = f"HTTP/1.1 {status}\r\n{headers}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    lines = [
        "WARC/1.0",
        f"WARC-Type: {kind}",
        f"WARC-Record-ID: <urn:uuid:12345678-1234-1234-1234-{number:012d}>",
        f"WARC-Target-URI: http://a.example/{number}",
        "WARC-Date: 2026-01-02T03:04:05Z",
        "Content-Type: application/http; msgtype=response",
        f"Content-Length: {len(http)}",
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + http + b"\r\n\r\n"


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}
PAGES = [record(i, f"<title>引水渠</title><p>水 {i} ".encode("gbk") * 30, headers="Content-Type: text/html; charset=GBK") for i in range(5)]


def read(file: Path, data: bytes, max_bytes: int = 2**20) -> list[Finding]:
    file.write_bytes(data)
    return list(read_paths([str(file)], ReadOptions(max_bytes=max_bytes), io.BytesIO()))


def urls(findings: list[Finding]) -> list[str]:
    return [(finding.document.url or "").rpartition("/")[2] for finding in findings if isinstance(finding, Found)]


def test_pages_keep_url_date_and_title_and_go_out_as_html(tmp_path: Path) -> None:
    findings = read(tmp_path / "crawl.warc.gz", b"".join(gzip.compress(page) for page in PAGES))
    assert urls(findings) == ["0", "1", "2", "3", "4"]
    first = findings[0]
    assert isinstance(first, Found)
    document = first.document
    assert (document.format, document.title, document.created_at) == ("html", "引水渠", "2026-01-02T03:04:05Z")
    assert "水 0" in document.text
    assert len({finding.document.id for finding in findings if isinstance(finding, Found)}) == 5
    again = read(tmp_path / "copy.warc.zst", b"".join(zstandard.compress(page) for page in PAGES))
    plain = read(tmp_path / "plain.warc", b"".join(PAGES))
    for other in (again, plain):
        assert [f.document for f in other if isinstance(f, Found)] == [f.document for f in findings if isinstance(f, Found)]


def test_a_page_without_a_record_id_is_named_after_its_place_and_what_is_told_of_it_holds_no_credentials(tmp_path: Path) -> None:
    for url in (b"http://me:secret@a.example/0", b"http://b.example/"):
        page = PAGES[0].replace(b"WARC-Record-ID", b"X").replace(b"http://a.example/0", url)
        (finding,) = read(tmp_path / "crawl.warc", page)
        assert isinstance(finding, Found)
        assert finding.document.id == content_id(f"{file_id(str(tmp_path / 'crawl.warc'))} byte 0".encode())
        assert "secret" not in finding.origin and finding.origin.endswith(".example/0)" if b"secret" in url else "b.example/)")


def test_resources_and_the_texts_of_wet_files_are_documents(tmp_path: Path) -> None:
    def carrying(number: int, kind: str, content_type: str, body: bytes) -> bytes:
        lines = record(number, b"", kind=kind).split(b"\r\n\r\n")[0].split(b"\r\n")
        return b"\r\n".join([*lines[:5], f"Content-Type: {content_type}\r\nContent-Length: {len(body)}".encode(), b"", body, b"", b""])

    records = [
        carrying(0, "conversion", "text/plain", "水渠里依然有水流过。".encode()),
        carrying(1, "resource", "text/html; charset=GBK", "<title>引水渠</title>".encode("gbk")),
        carrying(2, "resource", "image/png", b"\x89PNG"),
        carrying(3, "metadata", "text/plain", b"of the crawler"),
    ]
    findings = read(tmp_path / "crawl.warc.wet.gz", b"".join(map(gzip.compress, records)))
    assert urls(findings) == ["0", "1"]
    first, second, third, fourth = findings
    assert isinstance(first, Found) and (first.document.text, first.document.format) == ("水渠里依然有水流过。", "text")
    assert isinstance(second, Found) and (second.document.title, second.document.format) == ("引水渠", "html")
    assert fourth == Skipped(fourth.origin, "metadata record")
    assert third == Skipped(third.origin, "media type image/png") and third.origin.endswith("(http://a.example/2)")


def test_what_is_no_page_is_skipped_and_counted(tmp_path: Path) -> None:
    findings = read(
        tmp_path / "crawl.warc",
        b"".join(
            [
                record(0, b"gone", status="404 Not Found"),
                record(1, b"\x89PNG", headers="Content-Type: image/png"),
                record(2, b"asked", kind="request"),
                record(3, b" \n"),
                record(4, gzip.compress(b"<p>packed"), headers="Content-Type: text/html\r\nContent-Encoding: gzip"),
                record(5, "grüß dich".encode("latin-1"), headers="Content-Type: text/plain; charset=iso-8859-1"),
                record(6, b"x" * 2_000, headers="Content-Type: text/plain"),
                record(7, gzip.compress(b"x" * 2_000_000), headers="Content-Type: text/plain\r\nContent-Encoding: gzip"),
            ]
        ),
        max_bytes=2_500,
    )
    found = [finding.document for finding in findings if isinstance(finding, Found)]
    assert [(document.text[:9], document.format) for document in found] == [("<p>packed", "html"), ("grüß dich", "text"), ("x" * 9, "text")]
    assert [finding.reason for finding in findings if isinstance(finding, Skipped)] == [
        "HTTP status 404", "media type image/png", "request record", "empty text"
    ]  # fmt: skip
    assert sum(isinstance(finding, TooLarge) for finding in findings) == 1  # unpacked, far larger than it came
    assert len(findings) == 8


def test_bodies_are_unpacked_up_to_the_limit_only(tmp_path: Path) -> None:
    def packed(number: int, body: bytes, encoding: str) -> bytes:
        return record(number, body, headers=f"Content-Type: text/plain\r\nContent-Encoding: {encoding}")

    bombs = [gzip.compress(bytes(60 * 2**20)), brotli.compress(bytes(60 * 2**20), quality=1), zstandard.compress(bytes(60 * 2**20))]
    bodies = [zlib.compress(b"zlib"), zlib.compress(b"raw")[2:-4], b"unpacked already", *bombs, brotli.compress(b"whole" * 99)[:-3], b"x", b"x"]
    encodings = ["deflate", "Deflate", "gzip", "gzip", "br", "zstd", "br", "br", "compress"]
    data = b"".join(packed(number, *both) for number, both in enumerate(zip(bodies, encodings, strict=True)))
    tracemalloc.start()
    findings = read(tmp_path / "crawl.warc", data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [finding.document.text for finding in findings if isinstance(finding, Found)] == ["zlib", "raw", "unpacked already"]
    assert [type(finding) for finding in findings[3:]] == [TooLarge, TooLarge, TooLarge, Failed, Failed, Failed]
    assert peak < 20 * 2**20


def test_bodies_in_br_and_zstd_and_in_several_encodings_are_documents(tmp_path: Path) -> None:
    text = "水渠里依然有水流过。".encode() * 50
    packed = {"br": brotli.compress(text), "zstd": zstandard.compress(text), "gzip, br": brotli.compress(gzip.compress(text))}
    data = b"".join(record(n, body, headers=f"Content-Type: text/plain\r\nContent-Encoding: {name}") for n, (name, body) in enumerate(packed.items()))
    findings = read(tmp_path / "crawl.warc", data)
    assert [finding.document.text for finding in findings if isinstance(finding, Found)] == [text.decode()] * 3


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "X-GZIP": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": zstandard.compress,
    "Zstd": zstandard.ZstdCompressor(write_content_size=False, write_checksum=True).compress,
}


@pytest.mark.parametrize("encoding", PACKERS)
def test_a_packed_body_that_ends_early_is_a_failure_whatever_packed_it(tmp_path: Path, encoding: str) -> None:
    text = " ".join(str(number**3) for number in range(2_000)).encode()
    whole = PACKERS[encoding](text)
    headers = f"Content-Type: text/plain\r\nContent-Encoding: {encoding}"
    findings = read(tmp_path / "crawl.warc", b"".join(record(n, body, headers=headers) for n, body in enumerate([whole, whole[:-1], whole[:-2000]])))
    assert [type(finding) for finding in findings] == [Found, Failed, Failed]
    assert all("is cut off" in finding.error for finding in findings[1:] if isinstance(finding, Failed))


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_body_in_several_parts_that_were_packed_one_by_one_is_read_whole(tmp_path: Path, encoding: str) -> None:
    pack = PACKERS[encoding]
    headers = f"Content-Type: text/plain\r\nContent-Encoding: {encoding}"
    bodies = [pack(b"first, ") + pack(b"second"), pack(b"first, ") + pack(b"second")[:-3]]
    whole, cut = read(tmp_path / "crawl.warc", b"".join(record(n, body, headers=headers) for n, body in enumerate(bodies)))
    assert isinstance(whole, Found) and whole.document.text == "first, second"
    assert isinstance(cut, Failed)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_body_of_many_empty_parts_costs_what_it_weighs(tmp_path: Path, encoding: str) -> None:
    """It would take minutes if each part copied what is behind it."""
    empty, page = (gzip.compress(text) if encoding == "gzip" else zstandard.compress(text) for text in (b"", b"<p>a page"))
    body = empty * 200_000 + page
    (found,) = read(tmp_path / "crawl.warc", record(1, body, headers=f"Content-Type: text/html\r\nContent-Encoding: {encoding}"), 8 * 2**20)
    assert isinstance(found, Found)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, br"])
def test_a_body_that_was_stored_unpacked_is_read_whatever_encoding_its_header_names(tmp_path: Path, encoding: str) -> None:
    page = "<!DOCTYPE html><p>水渠里依然有水流过。 The old mill stands by the river.</p>"
    findings = read(tmp_path / "crawl.warc", record(1, page.encode(), headers=f"Content-Type: text/html\r\nContent-Encoding: {encoding}"))
    assert [finding.document.text for finding in findings if isinstance(finding, Found)] == [page]


def test_a_body_is_read_whether_it_is_in_chunks_or_only_said_to_be(tmp_path: Path) -> None:
    plain = b"<!DOCTYPE html><p>The old mill stands by the river.</p>"
    chunks = b"%x\r\n%s\r\n3;x=y\r\nand\r\n0\r\n\r\n" % (len(plain), plain)
    bodies = [plain, chunks, b"2026\nwas a good year", chunks[:-5], gzip.compress(plain), chunks[:-9], chunks[:9]]
    headers = "Content-Type: text/html\r\nTransfer-Encoding: chunked"
    data = b"".join(record(n, body, headers=headers + "\r\nContent-Encoding: gzip" * (n == 4)) for n, body in enumerate(bodies))
    findings = read(tmp_path / "crawl.warc", data)
    texts = [plain, plain + b"and", b"2026\nwas a good year", plain + b"and", plain]
    assert [finding.document.text for finding in findings if isinstance(finding, Found)] == [text.decode() for text in texts]
    assert len(findings) == 7, "no page is a failure too"
    assert all(isinstance(finding, Failed) and "is cut off" in finding.error for finding in findings[5:]), "half a chunk is no page"


def chunked(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


PAGE = b"<html><body><p>The old mill stands by the river, and its wheel has turned for three hundred years.</p></body></html>"
CHUNKED = "Content-Type: text/html\r\nTransfer-Encoding: chunked"


@pytest.mark.parametrize(
    "body",
    [
        b"BEEF\r\n" + PAGE,  # the chunk would go on behind the end, but the page is whole
        b"cafe\r\n<div><p>one</p></div>\n<p>two</p>\n",
        b"20240131\r\nA page without an end",  # no chunk is that large
        b"0\r\n" + PAGE,
        b"a\r\n<p>one</p>\r\n" + PAGE,  # a line ends where the chunk would, and no other begins there
        b"10\r\n" + PAGE,
    ],
)
def test_a_plain_page_whose_first_line_is_a_hex_number_is_read_as_it_is(tmp_path: Path, body: bytes) -> None:
    (finding,) = read(tmp_path / "crawl.warc", record(0, body, headers=CHUNKED))
    assert isinstance(finding, Found), finding
    assert finding.document.text == body.decode()


def test_a_body_in_chunks_that_is_cut_off_is_a_failure_or_ends_behind_a_chunk(tmp_path: Path) -> None:
    whole = chunked(PAGE, PAGE)
    findings = read(tmp_path / "crawl.warc", b"".join(record(n, whole[:n], headers=CHUNKED) for n in range(5, len(whole))))
    assert len(findings) == len(whole) - 5
    for num_bytes, finding in enumerate(findings, start=5):
        behind = [number for number in (1, 2) if 0 <= num_bytes - (len(chunked(*[PAGE] * number)) - 7) <= 4 + number]
        if isinstance(finding, Found):
            assert finding.document.text.encode() == PAGE * behind[0]
        else:
            assert isinstance(finding, Failed) and "is cut off" in finding.error and not behind


def test_chunks_that_are_damaged_behind_the_second_are_a_failure(tmp_path: Path) -> None:
    (finding,) = read(tmp_path / "crawl.warc", record(0, chunked(PAGE, PAGE)[:-5] + b"no chunk\r\n", headers=CHUNKED))
    assert isinstance(finding, Failed) and "is damaged: no chunk begins at its byte" in finding.error


def test_media_types_ignore_case_and_what_has_none_is_a_page_if_it_begins_as_one(tmp_path: Path) -> None:
    page = "<!DOCTYPE html><title>引水渠</title><p>水从山上流下来"
    headers = [
        "Content-Type: TEXT/HTML; Charset=GBK",
        "content-type: Text/Plain;CHARSET=gbk",
        "Content-Type: charset=gbk",
        "X: y",
        "Content-Type: Image/PNG",
        "X: y",
    ]
    bodies = [page.encode("gbk")] * 4 + [b"x", b"no page"]
    findings = read(
        tmp_path / "crawl.warc", b"".join(record(n, body, headers=head) for n, (head, body) in enumerate(zip(headers, bodies, strict=True)))
    )
    assert [(f.document.text, f.document.format) for f in findings if isinstance(f, Found)] == [
        (page, kind) for kind in ("html", "text", "html", "html")
    ]
    assert [f.reason for f in findings if isinstance(f, Skipped)] == ["media type image/png", "no media type, and no page"]


@pytest.mark.parametrize(
    "written",
    [
        (b"Content-Type: application/http", b"Content-Type: Application/HTTP"),
        (b"Content-Type: application/http; msgtype=response", b"CONTENT-TYPE: APPLICATION/HTTP;MSGTYPE=RESPONSE"),
        (b"Content-Type: application/http; msgtype=response\r\n", b""),
        (b"WARC-Type: response", b"warc-type: Response"),
        (b"WARC-Target-URI", b"warc-target-uri"),
    ],
)
def test_a_record_says_what_it_is_in_any_case(tmp_path: Path, written: tuple[bytes, bytes]) -> None:
    assert written[0] in PAGES[0]
    assert urls(read(tmp_path / "crawl.warc", PAGES[0].replace(*written) + PAGES[1])) == ["0", "1"]


def test_a_record_whose_length_cannot_be_read_says_so_and_costs_no_other(tmp_path: Path) -> None:
    parts = [gzip.compress(page) for page in (PAGES[0].replace(b"Content-Length", b"content-length", 1), PAGES[1])]
    first, *_, last = read(tmp_path / "crawl.warc.gz", b"".join(parts))
    assert isinstance(first, Failed) and "must be written Content-Length" in first.error
    assert urls([last]) == ["1"]


def test_a_url_in_brackets_is_the_url(tmp_path: Path) -> None:
    (finding,) = read(tmp_path / "crawl.warc", PAGES[0].replace(b"http://a.example/0", b"<http://a.example/0>"))
    assert isinstance(finding, Found)
    assert finding.document.url == "http://a.example/0"
    assert finding.origin.endswith("(http://a.example/0)")


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_damaged_record_costs_that_record_alone(tmp_path: Path, suffix: str) -> None:
    compress = COMPRESSORS[suffix]
    parts = [bytearray(compress(page)) for page in PAGES]
    parts[2][:40] = b"\x00" * 40
    findings = read(tmp_path / f"crawl.warc{suffix}", b"".join(parts))
    assert urls(findings) == ["0", "1", "3", "4"]
    assert sum(isinstance(finding, Failed) for finding in findings) == 1


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_truncated_archive_gives_what_is_there_and_names_the_rest(tmp_path: Path, suffix: str) -> None:
    compress = COMPRESSORS[suffix]
    findings = read(tmp_path / f"crawl.warc{suffix}", b"".join(compress(page) for page in PAGES)[:-20])
    assert urls(findings)[:4] == ["0", "1", "2", "3"]
    assert any(isinstance(finding, Failed) for finding in findings)


@pytest.mark.parametrize("data", [b"", b"no archive at all", b"\x1f\x8b\x08 torn"])
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_what_is_no_archive_is_named(tmp_path: Path, suffix: str, data: bytes) -> None:
    findings = read(tmp_path / f"crawl.warc{suffix}", data)
    assert not urls(findings)
    assert len(findings) == (1 if data else 0) or suffix != ""
