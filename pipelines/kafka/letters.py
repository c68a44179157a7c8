"""Reading the dead-letter topic for a person: which records could not be read, why, and what they hold.

A letter that was published twice, by a commit that was tried again, is shown once: letters are told apart by their key, the place
where the record stood. Reads from the first letter, or from a time on, to the end as it is when reading begins; holds one poll.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kafka import TopicPartition

from pipelines.kafka.clients import broker_errors, open_consumer
from pipelines.kafka.deadletters import original
from pipelines.kafka.topics import missing, topic_names
from schemas.errors import DatasetError
from schemas.headers import REPLAY_HEADER
from schemas.settings import Settings


@dataclass(frozen=True)
class Letter:
    """A dead letter, taken apart."""

    place: str
    """``topic/partition/offset`` of the record that died: its name."""
    rule: str
    """Which rule it broke."""
    error: str
    """What was wrong, in a sentence."""
    died_at: datetime
    """When the letter was published, UTC."""
    key: bytes | None
    """The record's own key, as are value and headers."""
    value: bytes | None
    headers: list[tuple[str, bytes | None]]
    omitted_bytes: int | None
    """Size of a value that the dead-letter topic did not take; None if the value is here."""

    @property
    def first_place(self) -> str:
        """``place``, or where the record first stood if it was a replay: by this its replays are known."""
        named = (text.decode("utf-8", "replace") for name, text in self.headers if name.lower() == REPLAY_HEADER and text)
        return next(named, self.place)

    @property
    def size_bytes(self) -> int:
        """Bytes of the record's value."""
        return len(self.value or b"") if self.omitted_bytes is None else self.omitted_bytes


def read_letters(settings: Settings, since: datetime | None = None) -> Iterator[Letter]:
    """Every dead letter once, partition by partition as they come; ``since`` leaves out those published before.

    Raises TopicMissing, BrokerUnavailable.
    """
    topic, seen = topic_names(settings).deadletter, set[bytes]()
    for record in _records(settings, topic, since):
        if record.key is not None and record.key not in seen:
            seen.add(record.key)
            yield letter_of(record.key, record.value, record.headers, record.timestamp)


def find_letters(settings: Settings, places: list[str]) -> list[Letter]:
    """The letters of these records, in the order asked for. Raises DatasetError if one is not there."""
    wanted = set(places)
    found = {letter.place: letter for letter in read_letters(settings) if letter.place in wanted}
    if absent := [place for place in places if place not in found]:
        topic = topic_names(settings).deadletter
        raise DatasetError(
            f"there is no dead letter {', '.join(absent)} in topic {topic}; a letter is named after the topic/partition/offset of the record "
            "that died: see `headrace deadletter list`"
        )
    return [found[place] for place in places]


def letter_of(key: bytes, value: bytes | None, headers: list[tuple[str, bytes | None]], timestamp_ms: int) -> Letter:
    """Take a record of the dead-letter topic apart."""
    own_key, own_value, own_headers = original(value, headers)
    ours = {name: (text or b"").decode("utf-8", "replace") for name, text in headers[len(own_headers) :]}
    rule = ours.get("headrace_rule", "")
    omitted = ours.get("headrace_value_omitted", "")
    return Letter(
        place=key.decode("utf-8", "replace"),
        rule=rule,
        error=ours.get("headrace_error", "").removeprefix(f"{rule}: "),
        died_at=datetime.fromtimestamp(max(0, timestamp_ms) / 1000, UTC),
        key=own_key,
        value=own_value,
        headers=own_headers,
        omitted_bytes=int(omitted) if omitted.isdigit() else None,
    )


def _records(settings: Settings, topic: str, since: datetime | None) -> Iterator[Any]:
    with broker_errors(settings.kafka, f"read {topic}"), open_consumer(settings, auto_offset_reset="earliest") as consumer:
        keys = [TopicPartition(topic, partition) for partition in sorted(consumer.partitions_for_topic(topic) or ())]
        if not keys:
            raise missing(topic, settings)
        ends = consumer.end_offsets(keys)
        for key in keys:
            consumer.assign([key])
            _seek(consumer, key, since)
            while consumer.position(key) < ends[key]:
                yield from (record for record in consumer.poll(timeout_ms=500).get(key, []) if record.offset < ends[key])


def _seek(consumer: Any, key: TopicPartition, since: datetime | None) -> None:
    if since is None:
        consumer.seek_to_beginning(key)
        return
    found = consumer.offsets_for_times({key: int(since.timestamp() * 1000)})[key]
    if found is None:
        consumer.seek_to_end(key)
    else:
        consumer.seek(key, found.offset)
