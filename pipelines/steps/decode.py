"""Kafka records -> documents. The one step with a call per record: JSON has no columns.

Invariant: every record gets exactly one verdict here: a document (its outcome is still open), retracted, rejected (a page without
content), dead with a rule and a sentence, or control for an offset without a record. Nothing that a record holds raises; only a blob store
that cannot be read does (BlobsUnavailable), and records that refer to more than MAX_OUTSIDE_BYTES together (BlockTooLarge).
Cost: that of schemas.documents.decode_document; pages cost what steps.formats.html costs. Values are read in place, without a copy.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.steps.declared import declared_of
from pipelines.steps.formats.attributes import KnownEvents, known_events
from pipelines.steps.formats.charset import decode_text
from pipelines.steps.formats.html import looks_like_page, read_page
from pipelines.steps.formats.references import read_reference
from schemas.arrow import Outcome
from schemas.documents import Attributes, Document, Retraction, decode_document, decode_json_document
from schemas.envelope import DataReference, Headers
from schemas.errors import BlockTooLarge, EnvelopeError
from schemas.headers import BAD_NAME, BROKEN_RECORD, REPLAY_HEADER, headers_from_arrow
from schemas.settings import Settings
from schemas.urls import public_url

NO_CONTENT = "html/no_content"
"""The rule that rejects a page of which nothing is left."""
MAX_OUTSIDE_BYTES = 32 * 2**20
"""Most bytes that the records of a block may refer to, if these are several: 2,500 events may name 2,500 books."""
CHUNK_RECORDS = 256
"""Headers become Python objects this many records at a time: more of them alive at once keep the garbage collector busy."""
MAX_PLACE_BYTES = 300
"""Of a header that names a place: a topic's name has at most 249 characters."""
_HOST = re.compile(r"[a-z][a-z0-9+.-]*://(?:[^/?#@]*@)?(?:www\.)?([^/?#:@]{1,253})", re.IGNORECASE)


class Verdict(NamedTuple):
    """What became of one record; for a document ``outcome`` is None and ``text`` is not."""

    outcome: Outcome | None
    doc_id: str | None = None
    reason: str | None = None
    error: str | None = None
    source: str | None = None
    domain: str | None = None
    declared_language: str | None = None
    text: str | None = None
    replay_of: str | None = None
    url: str | None = None
    outside_bytes: int | None = None
    title: str | None = None
    license: str | None = None
    created_at: str | None = None
    meta: str | None = None


SCHEMA = pa.schema(
    [
        pa.field("outcome", pa.string()),
        pa.field("doc_id", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("error", pa.string()),
        pa.field("source", pa.string()),
        pa.field("domain", pa.string()),
        pa.field("declared_language", pa.string()),
        pa.field("text", pa.large_string()),
        pa.field("replay_of", pa.string()),
        pa.field("url", pa.string()),
        pa.field("outside_bytes", pa.int64()),
        pa.field("title", pa.string()),
        pa.field("license", pa.string()),
        pa.field("created_at", pa.string()),
        pa.field("meta", pa.string()),
    ]
)
"""The verdicts of a batch, one row per record."""

_CONTROL = Verdict(Outcome.CONTROL)


def decode(records: pa.Table, settings: Settings) -> pa.Table:
    """One row of SCHEMA for each row of a schemas.arrow.RECORDS table, in the same order. Raises BlobsUnavailable, and BlockTooLarge for several
    rows that refer to more than MAX_OUTSIDE_BYTES.
    """
    reader = _Outside(settings)
    verdicts: list[Verdict] = []
    for block in records.to_batches():
        events = known_events(block.column("headers"))
        for start in range(0, len(block), CHUNK_RECORDS):
            chunk = slice(start, start + CHUNK_RECORDS)
            part = KnownEvents(events.sources[chunk], events.ids[chunk])
            for verdict in _verdicts(block.slice(start, CHUNK_RECORDS), part, settings, reader):
                verdicts.append(verdict)
                if reader.total_bytes > MAX_OUTSIDE_BYTES and len(records) > 1:
                    raise BlockTooLarge(f"{len(records)} records refer to more than {MAX_OUTSIDE_BYTES:,} bytes; split the block")
    by_field = zip(*verdicts, strict=True) if verdicts else ([] for _ in SCHEMA)
    return pa.table([pa.array(values, field.type) for values, field in zip(by_field, SCHEMA, strict=True)], schema=SCHEMA)


def _verdicts(batch: pa.RecordBatch, events: KnownEvents, settings: Settings, reader: "_Outside") -> Iterator[Verdict]:
    """The verdicts of one chunk, in its order."""
    names = ("is_control", "key", "topic", "partition", "offset")
    columns = [batch.column(name).to_pylist() for name in names]
    other_headers, has_marks = _other_headers(batch.column("headers"), events)
    max_bytes = settings.ingest.max_document_bytes
    rows = zip(*columns, _values(batch.column("value")), events.sources, events.ids, strict=True)
    for is_control, key, topic, partition, offset, value, source, event_id in rows:
        pairs = next(other_headers) if source is None else ()
        if is_control:
            yield _CONTROL
            continue
        try:
            if value is not None and not pairs:
                event = None if source is None else Attributes(source, event_id)
                place = (topic, partition, offset)
                verdict = _document(decode_json_document(key, value, event, place, max_bytes=max_bytes, read_reference=reader), settings)
            else:
                if has_marks:
                    _check_marks(pairs)
                found = decode_document(key, value, pairs, topic, partition, offset, max_bytes=max_bytes, read_reference=reader)
                verdict = Verdict(Outcome.RETRACTED, found.doc_id) if isinstance(found, Retraction) else _document(found, settings)
        except EnvelopeError as error:
            verdict = Verdict(Outcome.DEAD, reason=error.rule, error=str(error))
        if reader.size_bytes:
            verdict = verdict._replace(outside_bytes=reader.taken())
        yield verdict._replace(replay_of=_replay_of(pairs)) if has_marks and pairs else verdict


class _Outside:
    """Reads what lies outside the records, and counts its bytes."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.size_bytes = 0
        self.total_bytes = 0

    def __call__(self, reference: DataReference) -> bytes:
        data = read_reference(reference, self._settings)
        self.size_bytes += len(data)
        self.total_bytes += len(data)
        return data

    def taken(self) -> int:
        """Bytes since this was asked last."""
        size_bytes, self.size_bytes = self.size_bytes, 0
        return size_bytes


def _values(column: pa.LargeBinaryArray) -> Iterator[memoryview | None]:
    """Views of the values where they lie, one at a time: thousands of living views would keep the garbage collector busy."""
    if not len(column):
        return
    _, offsets, data = column.buffers()
    ends = memoryview(offsets).cast("q")[column.offset : column.offset + len(column) + 1]
    view = memoryview(data) if data is not None else memoryview(b"")
    is_there = column.is_valid().to_numpy(zero_copy_only=False)
    for row, is_valid in enumerate(is_there):
        yield view[ends[row] : ends[row + 1]] if is_valid else None


def _other_headers(headers: pa.ListArray, events: KnownEvents) -> tuple[Iterator[Headers], bool]:
    """The headers of the records whose events are not known, and whether any of these has a mark."""
    others = headers.filter(pa.array([source is None for source in events.sources], pa.bool_()))
    return iter(headers_from_arrow(others)), _has_marks(others)


def _has_marks(headers: pa.ListArray) -> bool:
    """Whether any record of the chunk has a header that somebody of us added: one look at all names instead of one at each record."""
    names = headers.flatten().field("key")
    return bool(pc.any(pc.or_(pc.starts_with(names, BAD_NAME), pc.equal(pc.utf8_lower(names), REPLAY_HEADER))).as_py())


def _replay_of(headers: Headers) -> str | None:
    """The place that a replay names, empty if that is no place; none if the record is no replay."""
    named = (value or b"" for name, value in headers if name.lower() == REPLAY_HEADER)
    place = next((value[:MAX_PLACE_BYTES].decode("utf-8", "replace") for value in named), None)
    return place if place is None or place.isprintable() else ""


def _check_marks(headers: Headers) -> None:
    """Raise what is wrong with a record that the reader marked."""
    whys = [value for name, value in headers if name == BROKEN_RECORD]
    if whys and whys[0]:
        raise EnvelopeError("broken_record", f"the batch of the record cannot be unpacked: {whys[0][:300].decode('utf-8', 'replace')}")
    if whys:
        raise EnvelopeError(
            "broken_record", "the record's bytes do not follow Kafka's record format; its producer is broken (the value is what was found)"
        )
    bad = next((name for name, _ in headers if name.startswith(BAD_NAME)), None)
    if bad is not None:
        raise EnvelopeError("bad_header", f"a header's name is not UTF-8: {bad[1:81]!r}")


def _document(found: Document, settings: Settings) -> Verdict:
    """The verdict on a document, its text decoded and taken out of its page where that is needed."""
    domain = found.domain or (_host(found.url) if found.url else None)
    url = public_url(found.url) if found.url else None
    text = found.text
    if found.raw is not None:
        text = decode_text(found.raw.data, found.raw.charset, settings.formats.max_damaged_fraction)
    if found.format == "html" or (found.format == "auto" and looks_like_page(text)):
        text = read_page(text, settings.formats.html_max_depth).text
        if not text:
            return Verdict(Outcome.REJECTED, found.doc_id, NO_CONTENT, None, found.source, domain, found.lang, url=url)
    elif found.raw is not None and (not text or text.isspace()):
        raise EnvelopeError("empty_text", f"the text has {len(text)} characters and all are white space")
    return Verdict(None, found.doc_id, None, None, found.source, domain, found.lang, text, None, url, None, *declared_of(found))


def _host(url: str) -> str | None:
    """The host that a URL names, lower-case, without ``www.``; none if there is none."""
    found = _HOST.match(url)
    return found[1].lower() if found else None
