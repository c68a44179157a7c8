"""Publishing duplicates again that were lost with a document that was retracted: out of Kafka, on the path of replayed dead letters.

A record is published as replays.py does it: its id is its key, REPLAY_HEADER names the place where it first stood, so that doing it twice adds
nothing. It goes into the partition of the retraction, behind it: elsewhere it could be read before the retraction and be dropped once more.
What Kafka does not hold any more, or what stands there as another document, is not published but told.
Cost: one bootstrap (0.05 s) for records that stand within MAX_GAP offsets of each other.
"""

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any

from pipelines.dataset.retractions.lost import Lost
from pipelines.kafka.letters import Letter
from pipelines.kafka.reading import Slice, read_blocks
from pipelines.kafka.replays import replay_record
from pipelines.steps.formats.references import read_reference
from schemas.documents import decode_document
from schemas.envelope import DataReference, KafkaRecord
from schemas.errors import EnvelopeError, OffsetsLost, TopicMissing
from schemas.headers import headers_from_arrow
from schemas.settings import Settings

MAX_GAP = 200
Read = Callable[[DataReference], bytes]


def restored_records(settings: Settings, lost: Iterable[Lost]) -> Iterator[tuple[Lost, KafkaRecord | str]]:
    """Each document with the record to publish, or a sentence that says why there is none. Raises BrokerUnavailable, SourceError."""
    read: Read = partial(read_reference, settings=settings)
    for run in _runs(lost):
        records = _records(settings, run)
        for document in run:
            yield document, restored_record(document, records.get(document.offset), settings, read)


def _runs(lost: Iterable[Lost]) -> Iterator[list[Lost]]:
    """Documents of one partition that stand near each other."""
    run: list[Lost] = []
    for document in sorted(lost, key=lambda document: (document.topic, document.partition, document.offset)):
        if run and (run[-1].topic, run[-1].partition) == (document.topic, document.partition) and document.offset - run[-1].offset <= MAX_GAP:
            run.append(document)
            continue
        if run:
            yield run
        run = [document]
    if run:
        yield run


def _records(settings: Settings, run: list[Lost]) -> dict[int, dict[str, Any]]:
    """Rows of schemas.arrow.RECORDS by offset; of a run that Kafka does not hold as a whole, those that are left."""
    topic, partition, wanted = run[0].topic, run[0].partition, {document.offset for document in run}
    found: dict[int, dict[str, Any]] = {}
    try:
        for block in read_blocks(Slice(topic, partition, min(wanted), max(wanted) + 1), settings):
            offsets = block["offset"].to_pylist()
            for row in (row for row, offset in enumerate(offsets) if offset in wanted):
                found[offsets[row]] = block.slice(row, 1).to_pylist()[0] | {"headers": headers_from_arrow(block["headers"].slice(row, 1))[0]}
    except (OffsetsLost, TopicMissing):
        if len(run) > 1:
            return {offset: row for document in run for offset, row in _records(settings, [document]).items()}
    return found


def restored_record(document: Lost, row: dict[str, Any] | None, settings: Settings, read: Read) -> KafkaRecord | str:
    """The record to publish for a row of schemas.arrow.RECORDS, or a sentence that says why there is none."""
    if row is None or row["is_control"]:
        return f"Kafka does not hold {document.place} any more"
    headers, max_bytes = row["headers"], settings.ingest.max_document_bytes
    try:
        found = decode_document(
            row["key"], row["value"], headers, document.topic, document.partition, document.offset, max_bytes=max_bytes, read_reference=read
        )
        letter = Letter(document.place, "", "", datetime.now(UTC), document.doc_id.encode(), row["value"], list(headers), None)
        if found.doc_id != document.doc_id and letter.first_place == document.place:
            return f"at {document.place} stands {found.doc_id!r} now: the topic is another one"
        return replay_record(letter, max_bytes, read_reference=read, max_damage=settings.formats.max_damaged_fraction)
    except EnvelopeError as error:
        return f"it would be a dead letter ({error.rule}): {error}"
