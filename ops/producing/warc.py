"""Web archives (WARC 1.0 and 1.1, plain or with each record compressed) as findings: one document for each page or text that was served.

Responses with status 200, resources, and conversions (the texts of WET files) are documents if they are HTML or plain text, decoded from their
character set, with URL and date; HTML goes out as HTML, so that its main content is taken by the pipeline's workers and not here. What has no
media type is a page if it begins as one. All other records are skipped, each with a reason: its kind, its status or its media type. Bodies of
responses may be in gzip, deflate, br or zstd, and in chunks; many crawlers keep the header that says so and store the plain body: it is read too.
Header names, record types and media types are compared without regard to case, but for Content-Length of a record (fastwarc).

A record, a chunk or a packed body that ends early is a failure. A chunked body that ends between two chunks, and an unpacked body that the archive
itself cut (``WARC-Truncated``), are taken as they are. A plain body may begin with a line that looks like a chunk's: see ``_dechunked``.

Invariant: every record is one finding; one damaged record costs that record alone: reading goes on at the next one that can be found, and each
damaged place is one finding. Memory is bounded by one record and ``max_bytes`` of what it unpacks to. Cost: 100 MB/s and more (fastwarc).
Source: https://iipc.github.io/warc-specifications/specifications/warc-format/warc-1.1/
"""

import io
import mmap
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import brotli
import zstandard
from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType

from ops.producing.findings import Failed, Finding, Found, Skipped, TooLarge, content_id, file_id
from pipelines.steps.formats.charset import decode_text
from pipelines.steps.formats.html import looks_like_page, page_title
from schemas.errors import EnvelopeError
from schemas.events import DocumentReceived
from schemas.urls import public_url

OK = 200
_STARTS = {".gz": b"\x1f\x8b\x08", ".zst": b"\x28\xb5\x2f\xfd", "": b"WARC/1."}
"""How a record begins, by the file's compression."""
_HTML = frozenset({"text/html", "application/xhtml+xml"})
_TEXT = frozenset({"text/plain"})
_KINDS = frozenset({"response", "resource", "conversion"})
_HTTP = "application/http"
_CHARSET = re.compile(r"charset\s*=\s*[\"']?([^\s;\"']+)", re.IGNORECASE)
_CHUNK_LINE = re.compile(rb"\s*([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\n]{0,1000})?\r?\n")
_BETWEEN_CHUNKS = re.compile(rb"\s*[0-9A-Fa-f]{0,8}[ \t]*(?:;[^\n]{0,1000})?\r?")
"""What may be left of a body that ends behind a chunk: nothing, or the beginning of the next one's line."""
_TRAILERS = re.compile(rb"(?:[!-9;-~]{1,100}:[^\n]*\n)*\s*")
_MAX_CHUNK_BYTES = 2**24
"""No server sends larger ones: a first line with a larger number is text."""
_PAGE_END = re.compile(rb"</html\s*>(?:\s|<!--.{0,2000}?-->)*\Z", re.IGNORECASE | re.DOTALL)
_PAGE_END_BYTES = 4096
_PAIRED_TAG = re.compile(rb"<(/?)(html|body|main|article|section|div|p|h[1-6]|ul|ol|table|pre|blockquote)\b[^>]*>(\s*\Z)?", re.IGNORECASE)
_CONTROLS = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
"""Control characters that no text has; ISO-2022 has the escape character."""
_GZIP_START = b"\x1f\x8b"
_MIN_PLAIN_BYTES = 64
_BAD_BODY = (ValueError, EOFError, zlib.error, brotli.error, zstandard.ZstdError)
_READ_BYTES, _FIRST_PIECE_BYTES = 64 * 2**10, 512
SHOWN_URL_CHARS = 200
_SHOWN_CHARS = 60


class _Content(NamedTuple):
    """What a record carries."""

    type: str
    """Its media type, without parameters, in lower case; empty if none was given."""
    charset: str | None
    body: bytes


def read_warc(file: Path, compression: str, max_bytes: int, max_damage: float) -> Iterator[Finding]:
    """Findings of an archive in its order; ``compression`` is .gz, .zst or empty. Raises OSError if the file cannot be opened."""
    with file.open("rb") as stream:
        at: int | None = 0
        while at is not None:
            stream.seek(at)
            good_until = at - 1
            try:
                for record in ArchiveIterator(stream, record_types=WarcRecordType.any_type, parse_http=False):
                    good_until = record.stream_pos
                    yield _finding(f"{file.as_posix()} byte {good_until}", record, max_bytes, max_damage)
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


def _finding(place: str, record: WarcRecord, max_bytes: int, max_damage: float) -> Finding:
    url = _url(record)
    origin = f"{place} ({public_url(url)[:SHOWN_URL_CHARS]})" if url else place
    kind = (record.headers.get("WARC-Type") or "unnamed").strip().lower()
    if kind not in _KINDS:
        return Skipped(origin, f"{_shown(kind)} record")
    if record.content_length > max_bytes:
        return TooLarge(origin, record.content_length)
    try:
        block = _block(record)
        content = _response(record, block, max_bytes) if kind == "response" else _as_it_is(record, block)
        if isinstance(content, str):
            return Skipped(origin, content)
        is_too_large = len(content.body) > max_bytes
        return TooLarge(origin, len(content.body)) if is_too_large else _found(origin, place, record, content, max_damage)
    except (OSError, EnvelopeError, *_BAD_BODY) as error:
        return Failed(origin, f"{type(error).__name__}: {error}")


def _block(record: WarcRecord) -> bytes:
    """The bytes of a record. Raises ValueError if they are not all there."""
    promised = record.content_length
    if not promised and (record.headers.get("Content-Length") or "0").strip() != "0":
        value = record.headers.get("Content-Length")
        raise ValueError(f"the record's length cannot be read ({value!r}): the header must be written Content-Length, with a number as its value")
    block: bytes = record.reader.read(promised)
    if len(block) < promised:
        raise ValueError(f"the record is cut off: {len(block):,} of {promised:,} bytes are there")
    return block


def _found(origin: str, place: str, record: WarcRecord, content: _Content, max_damage: float) -> Finding:
    """The document that a record holds. Raises EnvelopeError."""
    text = decode_text(content.body, content.charset, max_damage)
    is_html = content.type in _HTML or (not content.type and looks_like_page(text))
    if not text.strip():
        return Skipped(origin, "empty text")
    if not is_html and content.type not in _TEXT:
        return Skipped(origin, "no media type, and no page")
    return Found(origin, _document(place, record, text, is_html=is_html))


def _url(record: WarcRecord) -> str | None:
    """Where it was found. Some archives put the URL in angle brackets, as WARC 1.0's grammar had it."""
    url: str | None = record.headers.get("WARC-Target-URI")
    return url[1:-1] if url and url.startswith("<") and url.endswith(">") else url


def _response(record: WarcRecord, block: bytes, max_bytes: int) -> _Content | str:
    """What a server answered, or why it is skipped. Of what is neither page nor text the body is not unpacked."""
    record.set_bytes_content(block)
    record.is_http = _media_type(record.headers.get("Content-Type"))[0] in ("", _HTTP)  # fastwarc minds the case
    record.parse_http(auto_decode="none", strict_mode=False)
    headers = record.http_headers
    if headers is None or headers.status_code is None:
        return "response without an HTTP header"
    if headers.status_code != OK:
        return f"HTTP status {headers.status_code}"
    kind, charset = _media_type(headers.get("Content-Type"))
    if kind and kind not in _HTML | _TEXT:
        return f"media type {_shown(kind)}"
    return _Content(kind, charset, _unpacked(record, max_bytes))


def _as_it_is(record: WarcRecord, block: bytes) -> _Content | str:
    """What a record without HTTP headers carries; its own say what that is."""
    kind, charset = _media_type(record.headers.get("Content-Type"))
    return _Content(kind, charset, block) if not kind or kind in _HTML | _TEXT else f"media type {_shown(kind)}"


def _media_type(header: str | None) -> tuple[str, str | None]:
    """The media type in lower case, empty if there is none, and the character set that a header names."""
    charset = _CHARSET.search(header or "")
    kind = (header or "").partition(";")[0].strip().lower()
    return kind if "/" in kind else "", charset[1] if charset else None


def _shown(word: str) -> str:
    return word[:_SHOWN_CHARS] if word.isprintable() else repr(word[:_SHOWN_CHARS])


def _unpacked(record: WarcRecord, max_bytes: int) -> bytes:
    """The body without its encodings, and not much more of it than ``max_bytes``: a megabyte of gzip may hold a gigabyte."""
    body: bytes = record.reader.read()
    if "chunked" in (record.http_headers.get("Transfer-Encoding") or "").lower():
        body = _dechunked(body)
    encodings = [name.strip().lower() for name in (record.http_headers.get("Content-Encoding") or "").split(",")]
    for encoding in reversed(encodings):
        if encoding in ("", "identity", "utf-8", "none"):
            continue
        if encoding not in _DECODERS:
            raise ValueError(f"content encoding {encoding[:40]!r} is not read; {', '.join(sorted(_DECODERS))} are")
        try:
            body = _DECODERS[encoding](body, max_bytes + 1)
        except _BAD_BODY:
            if not _is_plain(body):
                raise
    return body


def _is_plain(body: bytes) -> bool:
    """Whether a body is unpacked already, whatever its header says: of 64 random bytes or more, 999 in 1,000 hold a control character."""
    return len(body) >= _MIN_PLAIN_BYTES and not _CONTROLS.search(body[:1024])


def _dechunked(body: bytes) -> bytes:
    """The chunks' content; the body itself if it is not in chunks, whatever its header says. Raises ValueError if a chunk is cut off or damaged.

    A first line that may be a chunk's is not enough: behind the chunk that it announces the next one begins, or the body ends. Where that chunk
    would go on behind the body's end, the body is cut off, unless it shows that it is whole. A Content-Length says nothing: archives write one of
    their own.
    """
    parts: list[bytes] = []
    at = 0
    while (not parts or body[at : at + 1] in (b"\r", b"\n")) and (line := _CHUNK_LINE.match(body, at)):
        size, start = int(line[1], 16), line.end()
        if not size:
            return b"".join(parts) if parts or _TRAILERS.fullmatch(body, start) else body
        at = start + size
        if at > len(body):
            if not parts and (not line[0].endswith(b"\r\n") or size > _MAX_CHUNK_BYTES or _is_whole_page(body)):
                return body
            raise ValueError(f"the body is cut off: its last chunk has {len(body) - start:,} of {size:,} bytes")
        parts.append(body[start:at])
    if parts and _BETWEEN_CHUNKS.fullmatch(body, at):
        return b"".join(parts)
    if len(parts) > 1:
        raise ValueError(f"the body is damaged: no chunk begins at its byte {at:,}")
    return body


def _is_whole_page(body: bytes) -> bool:
    """Whether the body ends as a page does, or is part of one in which what was opened is closed at the very end."""
    if _PAGE_END.search(body, max(0, len(body) - _PAGE_END_BYTES)):
        return True
    tags = list(_PAIRED_TAG.finditer(body))
    opened = Counter(tag[2].lower() for tag in tags if not tag[1])
    closed = Counter(tag[2].lower() for tag in tags if tag[1])
    return bool(tags) and tags[-1][3] is not None and opened == closed


def _ungzipped(body: bytes, max_bytes: int) -> bytes:
    """Some archives hold what is unpacked already; some servers send several members."""
    if not body.startswith(_GZIP_START):
        return body
    parts: list[bytes] = []
    at, left = 0, max_bytes
    while left > 0 and body.startswith(_GZIP_START, at):
        part, at = _inflated_stream(body, at, left, wbits=31)
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _inflated(body: bytes, max_bytes: int) -> bytes:
    has_zlib_header = len(body) >= 2 and body[0] & 15 == 8 and int.from_bytes(body[:2], "big") % 31 == 0
    return _inflated_stream(body, 0, max_bytes, wbits=15 if has_zlib_header else -15)[0]


def _inflated_stream(body: bytes, at: int, max_bytes: int, *, wbits: int) -> tuple[bytes, int]:
    """What the stream at ``at`` unpacks to, up to the limit, and where it ends. Raises ValueError if it ends early."""
    decompressor = zlib.decompressobj(wbits=wbits)
    parts: list[bytes] = []
    left = max_bytes
    for piece in _pieces(body, at):
        if decompressor.eof or left <= 0:
            break
        parts.append(decompressor.decompress(piece, left))
        left -= len(parts[-1])
        at += len(piece) - len(decompressor.unconsumed_tail) - len(decompressor.unused_data)
    if left > 0 and not decompressor.eof:
        raise _cut_off(body)
    return b"".join(parts), at


def _pieces(body: bytes, at: int) -> Iterator[bytes]:
    """What stands from there on, in pieces: small ones first, since each of many small streams copies what is behind it in its piece."""
    size = _FIRST_PIECE_BYTES
    while at < len(body):
        yield body[at : at + size]
        at, size = at + size, min(2 * size, _READ_BYTES)


def _cut_off(body: bytes) -> ValueError:
    return ValueError(f"the packed body is cut off: {len(body):,} bytes are there")


def _unbrotlied(body: bytes, max_bytes: int) -> bytes:
    decompressor = brotli.Decompressor()
    parts = [decompressor.process(body, output_buffer_limit=_READ_BYTES)]
    size = len(parts[0])
    while size < max_bytes and not decompressor.is_finished() and not decompressor.can_accept_more_data():
        parts.append(decompressor.process(b"", output_buffer_limit=_READ_BYTES))
        size += len(parts[-1])
    if size < max_bytes and not decompressor.is_finished():
        raise _cut_off(body)
    return b"".join(parts)


def _unzstandarded(body: bytes, max_bytes: int) -> bytes:
    """The reader stops at the limit but says nothing about an end that is missing; so what is small enough is unpacked a second time."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=2**27)
    with decompressor.stream_reader(io.BytesIO(body), read_across_frames=True) as reader:
        found = bytes(reader.read(max_bytes))
    at = 0
    while at < len(body) and len(found) < max_bytes:
        at = _frame_end(decompressor, body, at)
    return found


def _frame_end(decompressor: zstandard.ZstdDecompressor, body: bytes, at: int) -> int:
    """Where the frame at ``at`` ends. Raises ValueError if it ends early."""
    frame = decompressor.decompressobj()
    for piece in _pieces(body, at):
        frame.decompress(piece)
        at += len(piece) - len(frame.unused_data)
        if frame.eof:
            return at
    raise _cut_off(body)


_DECODERS: Mapping[str, Callable[[bytes, int], bytes]] = {
    "gzip": _ungzipped,
    "x-gzip": _ungzipped,
    "deflate": _inflated,
    "br": _unbrotlied,
    "zstd": _unzstandarded,
}


def _document(place: str, record: WarcRecord, text: str, *, is_html: bool) -> DocumentReceived:
    """The archive names each record, so that publishing it again, or a copy of it under another name, gives the same ids."""
    file, _, position = place.rpartition(" byte ")
    record_id = record.headers.get("WARC-Record-ID") or f"{file_id(file)} byte {position}"
    return DocumentReceived(
        id=content_id(record_id.encode("utf-8", "replace")),
        text=text,
        format="html" if is_html else "text",
        url=_url(record),
        title=page_title(text) if is_html else None,
        created_at=record.headers.get("WARC-Date"),
    )
