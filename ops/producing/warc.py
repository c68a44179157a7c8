"""Web archives (WARC 1.0 and 1.1, plain or with each record compressed) as findings: one document for each page or text that was served.

Responses with status 200, resources, and conversions (the texts of WET files) are documents if they are HTML or plain text, decoded from their
character set, with URL and date; HTML goes out as HTML, so that its main content is taken by the pipeline's workers and not here. Others of
these kinds are skipped and counted, other kinds of records (requests, metadata, revisits) are not looked at. Bodies of responses may be in gzip
or deflate; other content encodings (br, zstd) are findings that say so.

Invariant: one damaged record costs that record alone: reading goes on at the next one that can be found, and each damaged place is one
finding. Memory is bounded by one record. Cost: 100 MB/s and more (fastwarc).
Source: https://iipc.github.io/warc-specifications/specifications/warc-format/warc-1.1/
"""

import mmap
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType

from ops.producing.findings import Failed, Finding, Found, Skipped, TooLarge, content_id
from pipelines.steps.formats.charset import decode_text
from pipelines.steps.formats.html import page_title
from schemas.errors import EnvelopeError
from schemas.events import DocumentReceived
from schemas.urls import told_url

OK = 200
_STARTS = {".gz": b"\x1f\x8b\x08", ".zst": b"\x28\xb5\x2f\xfd", "": b"WARC/1."}
"""How a record begins, by the file's compression."""
_HTML = frozenset({"text/html", "application/xhtml+xml"})
_TEXT = frozenset({"text/plain"})
_KINDS = WarcRecordType.response | WarcRecordType.resource | WarcRecordType.conversion
_CHARSET = re.compile(r"charset\s*=\s*[\"']?([^\s;\"']+)", re.IGNORECASE)
SHOWN_URL_CHARS = 200


class _Content(NamedTuple):
    """What a record carries."""

    type: str
    """Its media type, without parameters."""
    charset: str | None
    body: bytes


def read_warc(file: Path, compression: str, max_bytes: int) -> Iterator[Finding]:
    """Findings of an archive in its order; ``compression`` is .gz, .zst or empty. Raises OSError if the file cannot be opened."""
    with file.open("rb") as stream:
        at: int | None = 0
        while at is not None:
            stream.seek(at)
            good_until = at - 1
            try:
                for record in ArchiveIterator(stream, record_types=_KINDS, parse_http=False):
                    good_until = record.stream_pos
                    yield _finding(f"{file.as_posix()} byte {good_until}", record, max_bytes)
                return
            except (OSError, ValueError, EOFError) as error:
                yield Failed(
                    f"{file.as_posix()} after byte {max(good_until, at)}", f"a damaged record: {error}; what follows it is read if it can be found"
                )
            at = _next_readable(stream, max(good_until, at) + 1, _STARTS[compression])


def _next_readable(stream: BinaryIO, position: int, start: bytes) -> int | None:
    """Where the next record begins that can be read; None if there is none."""
    with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        while (position := data.find(start, position)) >= 0:
            stream.seek(position)
            try:
                next(iter(ArchiveIterator(stream, parse_http=False)))
            except (OSError, ValueError, EOFError):
                position += 1
            except StopIteration:
                return None
            else:
                return position
    return None


def _finding(place: str, record: WarcRecord, max_bytes: int) -> Finding:
    url = record.headers.get("WARC-Target-URI")
    origin = f"{place} ({told_url(url)[:SHOWN_URL_CHARS]})" if url else place
    if record.content_length > max_bytes:
        return TooLarge(origin, record.content_length)
    promised = record.content_length
    block = record.reader.read(promised)
    if len(block) < promised:
        return Failed(origin, f"the record is cut off: {len(block):,} of {promised:,} bytes are there")
    try:
        content = _response(record, block, max_bytes) if record.record_type == WarcRecordType.response else _as_it_is(record, block)
        if content is None or content.type not in _HTML | _TEXT:
            return Skipped(origin)
        if len(content.body) > max_bytes:
            return TooLarge(origin, len(content.body))
        text = decode_text(content.body, content.charset)
    except (OSError, ValueError, EOFError, zlib.error, EnvelopeError) as error:
        return Failed(origin, f"{type(error).__name__}: {error}")
    return Found(origin, _document(place, record, text, is_html=content.type in _HTML)) if text.strip() else Skipped(origin)


def _response(record: WarcRecord, block: bytes, max_bytes: int) -> _Content | None:
    """What a server answered; none if that was no success. Of what is neither page nor text the body is not unpacked."""
    record.set_bytes_content(block)
    record.parse_http(auto_decode="transfer", strict_mode=False)
    if record.http_headers is None or record.http_headers.status_code != OK:
        return None
    kind = record.http_content_type or ""
    return _Content(kind, record.http_charset, _unpacked(record, max_bytes) if kind in _HTML | _TEXT else b"")


def _as_it_is(record: WarcRecord, block: bytes) -> _Content:
    """What a record without HTTP headers carries; its own say what that is."""
    kind, _, parameters = (record.headers.get("Content-Type") or "").partition(";")
    charset = _CHARSET.search(parameters)
    return _Content(kind.strip().lower(), charset[1] if charset else None, block)


def _unpacked(record: WarcRecord, max_bytes: int) -> bytes:
    """The body without its content encoding, and not much more of it than ``max_bytes``: a megabyte of gzip may hold a gigabyte."""
    body: bytes = record.reader.read()
    encoding = (record.http_headers.get("Content-Encoding") or "").strip().lower()
    if encoding in ("gzip", "x-gzip"):  # some archives hold what is unpacked already
        return zlib.decompressobj(wbits=31).decompress(body, max_bytes + 1) if body.startswith(b"\x1f\x8b") else body
    if encoding == "deflate":
        has_zlib_header = len(body) >= 2 and body[0] & 15 == 8 and int.from_bytes(body[:2], "big") % 31 == 0
        return zlib.decompressobj(wbits=15 if has_zlib_header else -15).decompress(body, max_bytes + 1)
    if encoding not in ("", "identity", "utf-8", "none"):
        raise ValueError(f"content encoding {encoding[:40]!r} is not read; only gzip and deflate are")
    return body


def _document(place: str, record: WarcRecord, text: str, *, is_html: bool) -> DocumentReceived:
    """The archive names each record, so that publishing it again, or a copy of it under another name, gives the same ids."""
    record_id = record.headers.get("WARC-Record-ID") or place
    return DocumentReceived(
        id=content_id(record_id.encode("utf-8", "replace")),
        text=text,
        format="html" if is_html else "text",
        url=record.headers.get("WARC-Target-URI"),
        title=page_title(text) if is_html else None,
        created_at=record.headers.get("WARC-Date"),
    )
