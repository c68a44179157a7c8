"""Retention: old or surplus segments are deleted, idle producers forgotten.

Invariant: the broker's own limits delete no document that ingest has not committed to a version. A topic ``<prefix>.documents`` is kept from the
offset on that the group ``<prefix>.ingest`` has committed, which ingest does after each version, and whole while that group has committed nothing.
What a topic's own ``retention.ms`` and ``retention.bytes`` say is a person's wish, and obeyed as Apache Kafka obeys it.
"""

import asyncio
import logging
import time

from ops.broker.offsets import OffsetStore, TopicPartition
from ops.broker.topics import Catalogue, Topic

logger = logging.getLogger(__name__)

DOCUMENTS, INGEST = ".documents", ".ingest"
"""Ends of the names of the documents topic and of ingest's consumer group; the prefix is the same."""
OWN_LIMITS = frozenset({"retention.ms", "retention.bytes"})


async def keep_applying_retention(catalogue: Catalogue, offsets: OffsetStore) -> None:
    """Apply retention to every partition, again and again, until cancelled."""
    while True:
        await asyncio.sleep(catalogue.settings.retention_check_interval_s)
        for topic in catalogue:
            apply_retention(catalogue, offsets, topic, time.time() * 1000)


def apply_retention(catalogue: Catalogue, offsets: OffsetStore, topic: Topic, now_ms: float) -> None:
    """Delete what a topic's limits no longer allow; a disk that refuses is logged, and tried again later."""
    limits = catalogue.limits(topic)
    oldest_ms = int(now_ms) - limits.retention_ms if limits.retention_ms is not None else None
    for index, partition in enumerate(topic.partitions):
        partition.producers.forget_idle(time.monotonic())
        try:
            partition.apply_retention(oldest_ms, limits.retention_bytes, read_until(topic, index, offsets))
        except OSError:
            logger.exception("retention of %s failed", partition.folder)


def read_until(topic: Topic, partition: int, offsets: OffsetStore) -> int | None:
    """Offset before which retention may delete; None where it is bound by nothing but the limits."""
    if not topic.name.endswith(DOCUMENTS) or OWN_LIMITS & topic.configs.keys():
        return None
    committed = offsets.of(topic.name.removesuffix(DOCUMENTS) + INGEST).get(TopicPartition(topic.name, partition))
    return committed.offset if committed else 0
