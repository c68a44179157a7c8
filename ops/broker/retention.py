"""Retention: old or surplus segments are deleted, idle producers forgotten."""

import asyncio
import logging
import time

from ops.broker.topics import Catalogue, Topic

logger = logging.getLogger(__name__)


async def keep_applying_retention(catalogue: Catalogue) -> None:
    """Apply retention to every partition, again and again, until cancelled."""
    while True:
        await asyncio.sleep(catalogue.settings.retention_check_interval_s)
        for topic in catalogue:
            apply_retention(catalogue, topic, time.time() * 1000)


def apply_retention(catalogue: Catalogue, topic: Topic, now_ms: float) -> None:
    """Delete what a topic's ``retention.ms`` and ``retention.bytes`` no longer allow; a disk that refuses is logged, and tried again later."""
    limits = catalogue.limits(topic)
    oldest_ms = int(now_ms) - limits.retention_ms if limits.retention_ms is not None else None
    for partition in topic.partitions:
        partition.producers.forget_idle(time.monotonic())
        try:
            partition.apply_retention(oldest_ms, limits.retention_bytes)
        except OSError:
            logger.exception("retention of %s failed", partition.folder)
