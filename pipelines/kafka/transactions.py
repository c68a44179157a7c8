"""Open transactions that hold back committed records: whose they are, and since when.

A reader of committed records stops before the first record of an open transaction, whatever is committed behind it. A producer that died without
its coordinator noticing holds a partition until its transaction times out (by default after a minute; a hanging one for ever). Nothing here
decides anything: it explains why there is nothing new.
Cost of a look: one bootstrap, a metadata and two ListOffsets requests; three more requests if records are held back. Source: KIP-98, KIP-664.
"""

import math
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import NamedTuple

from kafka import KafkaAdminClient, TopicPartition
from kafka.errors import KafkaError
from kafka.protocol.consumer import IsolationLevel, OffsetSpec

from pipelines.kafka.clients import broker_errors, open_admin
from pipelines.kafka.topics import described
from schemas.errors import HeadraceError
from schemas.settings import Settings


class Holder(NamedTuple):
    """A producer with an open transaction in a partition."""

    producer_id: int
    transactional_id: str | None
    """None if no coordinator knows the transaction: then it hangs."""
    since: datetime | None


class Held(NamedTuple):
    """A partition in which records wait behind an open transaction."""

    topic: str
    partition: int
    stable_offset: int
    """First offset of the oldest open transaction: reading stops here."""
    num_records: int
    """Offsets from there to the end of the log."""
    holders: tuple[Holder, ...]
    """Empty if the broker does not say."""


def held_back(settings: Settings, topic: str) -> list[Held]:
    """Partitions of the topic whose log goes on behind an open transaction. Raises TopicMissing, BrokerUnavailable."""
    with broker_errors(settings.kafka, f"read the offsets of {topic}"), open_admin(settings) as admin:
        partitions = [part["partition_index"] for part in described(admin, settings, [topic])[0]["partitions"]]
        keys = [TopicPartition(topic, partition) for partition in sorted(partitions)]
        latest = dict.fromkeys(keys, OffsetSpec.LATEST)
        # The ends first: what is appended in between then counts as read, not as held.
        ends = admin.list_partition_offsets(latest)
        stable = admin.list_partition_offsets(latest, isolation_level=IsolationLevel.READ_COMMITTED)
        held = [key for key in keys if stable[key].offset < ends[key].offset]
        holders = _holders(admin, held)
        return [Held(topic, key.partition, stable[key].offset, ends[key].offset - stable[key].offset, tuple(holders.get(key, ()))) for key in held]


class HoldWatch:
    """Looks for transactions that stay open while a stream is followed. Reports a transaction once, when it is seen for the second time: short ones
    hold records back too."""

    def __init__(self, settings: Settings, topic: str, every_s: float) -> None:
        self._settings = settings
        self._topic = topic
        self._every_s = every_s
        self._next_look = -math.inf
        self._seen: set[tuple[int, int]] = set()
        """Partition and first offset of each hold of the last look."""
        self._told: set[tuple[int, int]] = set()

    def look(self, now: float) -> list[Held]:
        """Holds to report; ``now`` in seconds. Empty until the next look is due, or while the brokers do not answer."""
        if now < self._next_look:
            return []
        self._next_look = now + self._every_s
        try:
            held = {(one.partition, one.stable_offset): one for one in held_back(self._settings, self._topic)}
        except HeadraceError:
            return []
        lasting = [one for key, one in held.items() if key in self._seen and key not in self._told]
        self._seen = set(held)
        self._told = (self._told & self._seen) | {(one.partition, one.stable_offset) for one in lasting}
        return lasting


def _holders(admin: KafkaAdminClient, held: Iterable[TopicPartition]) -> dict[TopicPartition, list[Holder]]:
    """The producers with an open transaction, the oldest first; nothing where the brokers are too old to say, or do not let us ask."""
    found: dict[TopicPartition, list[Holder]] = {}
    for key in held:
        try:
            producers = admin.describe_producers([key])[key].active_producers
            first = {one.producer_id: one.current_transaction_start_offset for one in producers if one.current_transaction_start_offset >= 0}
            known = _known(admin, list(first))
        except KafkaError:
            continue
        found[key] = [known.get(producer, Holder(producer, None, None)) for producer in sorted(first, key=first.__getitem__)]
    return found


def _known(admin: KafkaAdminClient, producer_ids: list[int]) -> dict[int, Holder]:
    """What the coordinators know of the transactions of these producers."""
    listed = [one for listing in admin.list_transactions(producer_id_filters=producer_ids).values() for one in listing] if producer_ids else []
    names = {one.producer_id: one.transactional_id for one in listed}
    described_by_id = admin.describe_transactions(list(names.values())) if names else {}
    return {producer: Holder(producer, name, _moment(described_by_id[name].transaction_start_time_ms)) for producer, name in names.items()}


def _moment(milliseconds: int) -> datetime | None:
    return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds > 0 else None


def told(held: Held) -> str:
    """In one sentence."""
    what = f"{held.topic}[{held.partition}]: {held.num_records:,} offsets from {held.stable_offset} on wait behind an open transaction"
    if not held.holders:
        return f"{what}; the broker does not say whose"
    return f"{what}; it is {' and '.join(_whose(holder) for holder in held.holders)}"


def _whose(holder: Holder) -> str:
    if holder.transactional_id is None:
        return f"that of producer id {holder.producer_id}, which no coordinator knows: it hangs (kafka-transactions.sh abort)"
    since = f", open since {holder.since:%Y-%m-%d %H:%M:%S} UTC" if holder.since else ""
    return f"that of {holder.transactional_id!r} (producer id {holder.producer_id}{since})"
