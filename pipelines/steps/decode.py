"""Kafka records -> documents. The one step with a call per record: JSON has no columns.

Invariant: every record gets exactly one verdict here: a document (its outcome is still open), retracted, dead with a rule and a
sentence, or control for an offset without a record. Nothing that a record holds raises. Cost: that of schemas.envelope.decode_document.
"""

import re
from typing import Any, NamedTuple

import pyarrow as pa

from schemas.arrow import Outcome
from schemas.envelope import Retraction, decode_document
from schemas.errors import EnvelopeError
from schemas.headers import REPLAY_HEADER

_HOST = re.compile(r"[a-z][a-z0-9+.-]*://(?:[^/?#@]*@)?(?:www\.)?([^/?#:@]{1,253})", re.IGNORECASE)


class _Record(NamedTuple):
    is_control: bool
    key: bytes | None
    value: bytes | None
    headers: list[dict[str, Any]] | None
    topic: str
    partition: int
    offset: int


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
    is_replay: bool = False


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
        pa.field("is_replay", pa.bool_()),
    ]
)
"""The verdicts of a batch, one row per record."""


def decode(records: pa.Table, max_document_bytes: int) -> pa.Table:
    """One row of SCHEMA for each row of a schemas.arrow.RECORDS table, in the same order."""
    columns = [records.column(name).to_pylist() for name in _Record._fields]
    verdicts = [_verdict(_Record(*row), max_document_bytes) for row in zip(*columns, strict=True)]
    by_field = zip(*verdicts, strict=True) if verdicts else ([] for _ in SCHEMA)
    return pa.table([pa.array(values, field.type) for values, field in zip(by_field, SCHEMA, strict=True)], schema=SCHEMA)


def _verdict(record: _Record, max_document_bytes: int) -> Verdict:
    if record.is_control:
        return Verdict(Outcome.CONTROL)
    headers = [(header["key"], header["value"]) for header in record.headers or ()]
    try:
        found = decode_document(record.key, record.value, headers, record.topic, record.partition, record.offset, max_bytes=max_document_bytes)
    except EnvelopeError as error:
        return Verdict(Outcome.DEAD, reason=error.rule, error=str(error))
    if isinstance(found, Retraction):
        return Verdict(Outcome.RETRACTED, doc_id=found.doc_id)
    domain = found.domain or _host(found.url)
    is_replay = any(name.lower() == REPLAY_HEADER for name, _ in headers)
    return Verdict(None, found.doc_id, source=found.source, domain=domain, declared_language=found.lang, text=found.text, is_replay=is_replay)


def _host(url: str | None) -> str | None:
    """The host that a URL names, lower-case, without ``www.``; none if there is none."""
    found = _HOST.match(url) if url else None
    return found[1].lower() if found else None
