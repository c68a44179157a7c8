"""What is planted among the sample documents, so that every outcome is seen: garbage, duplicates, a retraction. All of it counted."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from ops.producing.samples import Share, sample_documents
from pipelines.kafka.clients import broker_errors, open_producer
from pipelines.kafka.topics import topic_names
from schemas.settings import Settings

NUM_DUPLICATES = 20
"""Documents that are sent again word for word, and as many with a few words changed."""
FLUSH_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Planted:
    """One record, as raw as a careless producer would send it."""

    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


def garbage() -> Iterator[Planted]:
    """Records that are no documents, and documents that are no prose."""
    yield Planted(b"invalid-utf-8", b'{"text": "caf\xe9 \xff\xfe"}')
    yield Planted(b"broken-json", b'{"text": "this string is never clo')
    yield Planted(b"deeply-nested", b"[" * 50_000 + b"]" * 50_000)
    yield Planted(b"lone-surrogate", rb'{"text": "half of a pair: \ud83d and then nothing"}')
    yield Planted(b"wrong-type", b'{"text": 42}')
    yield Planted(b"no-text", b'{"title": "a document without text"}')
    yield Planted(b"empty-text", b'{"text": " \\n\\t "}')
    yield Planted(b"bare-array", b'["not", "an", "object"]')
    yield Planted(None, b"")
    old = (("ce_specversion", b"0.3"), ("ce_id", b"1"), ("ce_source", b"/old"), ("ce_type", b"document.received"))
    yield Planted(b"old-cloudevents", b'{"text": "an event of a version that nobody speaks any more"}', old)
    yield Planted(b"too-short", _document("too-short", "Hello."))
    yield Planted(b"repetition", _document("repetition", "Buy now, buy cheap, buy here!\n" * 60))
    yield Planted(b"base64", _document("base64", "QmFzZTY0IGlzIG5vdCBwcm9zZSBhbmQgdGVhY2hlcyBub3RoaW5n" * 20))


def duplicates(part: Share) -> Iterator[Planted]:
    """Sample documents of a part again: word for word, and with a few words changed."""
    found = islice((found.document for found in sample_documents(part) if len(found.document.text) > 1_500), NUM_DUPLICATES)
    for number, document in enumerate(found):
        yield Planted(f"copy-{number}".encode(), _document(f"copy-{number}", document.text))
        words = document.text.split(" ")
        middle = len(words) // 2
        changed = " ".join([*words[:middle], "(slightly", "edited)", *words[middle:]])
        yield Planted(f"near-copy-{number}".encode(), _document(f"near-copy-{number}", changed))


def retraction() -> Iterator[Planted]:
    """A document, and the tombstone that takes it back."""
    text = (
        "This note is taken back right after it was published, so that no model may learn from it. "
        + "It says nothing else that matters to anybody. "
    )
    yield Planted(b"retracted-note", _document("retracted-note", text))
    yield Planted(b"retracted-note", None)


def plant(settings: Settings, part: Share) -> int:
    """Publish all of it to the documents topic; returns the number of records, acknowledged. Raises BrokerUnavailable."""
    topic = topic_names(settings).documents
    records = [*garbage(), *duplicates(part), *retraction()]
    with broker_errors(settings.kafka, "publish"), open_producer(settings) as producer:
        sent = [producer.send(topic, key=record.key, value=record.value, headers=list(record.headers)) for record in records]
        producer.flush(timeout=FLUSH_TIMEOUT_S)
        for future in sent:
            future.get(timeout=FLUSH_TIMEOUT_S)
    return len(records)


def _document(doc_id: str, text: str) -> bytes:
    return json.dumps({"id": doc_id, "text": text}, ensure_ascii=False).encode()
