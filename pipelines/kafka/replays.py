"""Publishing to the documents topic on behalf of a person: dead letters again, unchanged or repaired, duplicates that were lost with a
retracted document (pipelines/ingest/restoring.py), and retractions.

A replayed document enters once, however often it is replayed and whatever dies in between, because who it is does not depend on the
replay: its id is its own, else its key, else the place where the record first stood; and REPLAY_HEADER says that it is a replay, so that
ingest takes it as a duplicate when a document of that id is kept already (dataset/retractions/retractions.py). The id becomes the key: it names a
document that has no id of its own, and puts the replay into the partition of the id's retractions, where the order between them is
that of publication. A letter of a replay that died again is a replay of the first place.
Every record is acknowledged by all replicas before ``publish`` returns; a crash before that and a second run publish some twice, which is the
same as replaying twice.
"""

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import NamedTuple

import orjson
from kafka.errors import MessageSizeTooLargeError, RecordListTooLargeError

from pipelines.kafka.clients import broker_errors, open_producer
from pipelines.kafka.letters import Letter
from pipelines.kafka.sizes import size_of
from pipelines.kafka.topics import topic_names
from pipelines.steps.formats.charset import MAX_DAMAGE, decode_text
from schemas.documents import Document, decode_document
from schemas.envelope import DataReference, KafkaRecord, encode, refuse_reference
from schemas.errors import EnvelopeError, RecordTooLarge
from schemas.events import DocumentRetracted, is_document_id, new_event
from schemas.headers import BAD_NAME, BROKEN_RECORD, REPLAY_HEADER
from schemas.settings import Settings

SOURCE = "/headrace/retract"
MAX_PENDING, MAX_PENDING_BYTES = 1_000, 32 * 2**20
"""Records that wait for their acknowledgement at the same time, and how much they hold; whichever comes first."""


class Placed(NamedTuple):
    """Where a record was written."""

    partition: int
    offset: int


def replay_record(
    letter: Letter,
    max_bytes: int,
    value: bytes | None = None,
    read_reference: Callable[[DataReference], bytes] = refuse_reference,
    max_damage: float = MAX_DAMAGE,
) -> KafkaRecord:
    """The record to publish: the original without headers whose names were not UTF-8, or ``value`` in its place, which may be a plain
    JSON document where the original was an event.

    Raises EnvelopeError if the record would be dead-lettered again (``max_bytes`` is ingest.max_document_bytes, ``max_damage``
    formats.max_damaged_fraction), or if there is nothing to publish, and what ``read_reference`` raises.
    """
    first = letter.first_place.encode()
    headers = [(name, text or b"") for name, text in letter.headers if name.lower() != REPLAY_HEADER and not name.startswith(BAD_NAME)]
    if value is None and (missing := _missing(letter)):
        raise EnvelopeError("nothing_to_replay", f"{letter.place}: {missing}; give a value with --edit or --set-text")
    record = KafkaRecord(_key(letter, first), letter.value if value is None else value, [*headers, (REPLAY_HEADER, first)])
    try:
        doc_id = _doc_id(record, max_bytes, max_damage, read_reference)
    except EnvelopeError:
        if value is None:
            raise
        record = record._replace(headers=[pair for pair in record.headers if not _is_envelope(pair[0])])
        doc_id = _doc_id(record, max_bytes, max_damage, read_reference)
    return record._replace(key=doc_id.encode())


def with_text(letter: Letter, text: str) -> bytes:
    """The letter's value with another text, where it is a JSON object that says more than that; else a new object.

    A structured CloudEvent keeps its envelope.
    """
    try:
        found = orjson.loads(letter.value or b"")
    except orjson.JSONDecodeError:
        found = None
    document = found if isinstance(found, dict) else {}
    if isinstance(document.get("data"), dict) and "specversion" in document:
        document["data"]["text"] = text
    else:
        document["text"] = text
    return orjson.dumps(document)


def retraction_record(doc_id: str, reason: str | None, now: datetime) -> KafkaRecord:
    """``document.retracted`` under the document's key, so that it comes to the partition of what was published under that key.

    Raises EnvelopeError if this cannot be an id.
    """
    if not is_document_id(doc_id):
        raise EnvelopeError("bad_id", f"{doc_id[:80]!r} cannot be a document id: it must have 1 to 1,024 characters and no control characters")
    event = new_event(DocumentRetracted(id=doc_id, reason=reason), id=f"retract-{doc_id}@{now.isoformat()}", source=SOURCE, time=now, subject=doc_id)
    return encode(event, doc_id)


def publish(settings: Settings, records: Iterable[KafkaRecord], partition: int | None = None) -> list[Placed]:
    """Write the records to the documents topic, each acknowledged, in order; into the partition of their keys unless another is given.

    Raises BrokerUnavailable, RecordTooLarge.
    """
    topic = topic_names(settings).documents
    placed: list[Placed] = []
    # Not idempotent: after a refusal an idempotent kafka-python producer (3.0.12) fails everything that follows.
    with broker_errors(settings.kafka, f"publish to {topic}"), open_producer(settings, enable_idempotence=False) as producer:
        waiting, size_bytes = [], 0
        for record in records:
            waiting.append(producer.send(topic, key=record.key, value=record.value, headers=record.headers, partition=partition))
            size_bytes += size_of(record.key, record.value, record.headers)
            if len(waiting) == MAX_PENDING or size_bytes >= MAX_PENDING_BYTES:
                placed += _placed(waiting, topic)
                waiting, size_bytes = [], 0
        producer.flush()
        return placed + _placed(waiting, topic)


def _placed(waiting: list[object], topic: str) -> list[Placed]:
    try:
        found = [future.get() for future in waiting]  # type: ignore[attr-defined]
    except (MessageSizeTooLargeError, RecordListTooLargeError) as error:
        raise RecordTooLarge(
            f"topic {topic} does not take a record of this size: {error}; raise its max.message.bytes, or shorten the text"
        ) from error
    return [Placed(metadata.partition, metadata.offset) for metadata in found]


def _missing(letter: Letter) -> str | None:
    """Why the letter's own value cannot be published; None if it can."""
    if letter.omitted_bytes is not None:
        return f"its {letter.omitted_bytes:,} bytes were too large for its letter"
    if any(name == BROKEN_RECORD for name, _ in letter.headers):
        return "its value could not be told from the rest of the record"
    if letter.value is None and not any(name.lower() == "ce_dataref" for name, _ in letter.headers):
        return "it has no value"
    return None


def _doc_id(record: KafkaRecord, max_bytes: int, max_damage: float, read_reference: Callable[[DataReference], bytes]) -> str:
    """The id that ingest would give it; raises what ingest would find wrong."""
    found = decode_document(record.key, record.value, record.headers, "replay", 0, 0, max_bytes=max_bytes, read_reference=read_reference)
    if isinstance(found, Document) and found.raw is not None:
        decode_text(found.raw.data, found.raw.charset, max_damage)
    return found.doc_id


def _is_envelope(header: str) -> bool:
    return header.lower().startswith("ce_") or header.lower() == "content-type"


def _key(letter: Letter, first: bytes) -> bytes:
    """The record's own key if it can name a document, else the place where it first stood."""
    try:
        usable = letter.key is not None and is_document_id(letter.key.decode())
    except UnicodeDecodeError:
        usable = False
    return letter.key if usable and letter.key else first
