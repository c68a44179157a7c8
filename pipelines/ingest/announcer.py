"""Telling others that a version is committed: Kafka group offsets for lag monitors, a ``dataset.committed`` event for everyone, and an
``alert.fired`` if the version is unlike those before it.

Invariant: nothing here is the truth, nothing here raises because of Kafka, and telling the same version twice is recognisable as such.
"""

import logging
from pathlib import Path
from types import TracebackType
from typing import Self

from pipelines.dataset.dataset import Dataset
from pipelines.drift.watch import Watch, drift_alert
from pipelines.kafka.events import EventProducer
from pipelines.kafka.offsets import publish_group_offsets
from pipelines.runtime.crash import crash_point
from schemas.errors import BrokerError, DatasetError
from schemas.events import DatasetCommitted, Event, new_event
from schemas.settings import Settings

SOURCE = "/headrace/ingest"
FLUSH_TIMEOUT_S = 5.0
_log = logging.getLogger(__name__)


def group_id(settings: Settings) -> str:
    """Consumer group under which lag monitors find the dataset's offsets."""
    return f"{settings.kafka.topic_prefix}.ingest"


class Announcer:
    """Keeps one event producer open from the first announcement to the end of the block."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._events: EventProducer | None = None
        self._watch = Watch(Path(settings.root).resolve(), settings.drift, is_writer=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._events is not None:
            self._events.__exit__(kind, error, trace)

    def announce(self, dataset: Dataset, topic: str) -> None:
        """Publish the version's offsets, then its event."""
        try:
            publish_group_offsets(self._settings, group_id(self._settings), topic, dataset.next_offsets(topic))
        except BrokerError as error:
            _log.warning("version %d is committed, but its offsets could not be published for lag monitors: %s", dataset.version, error)
        crash_point("offsets_published")
        if self._events is None:
            self._events = EventProducer(self._settings).__enter__()
        self._events.publish(committed_event(dataset), topic="events", key="dataset")
        self._tell_drift(dataset, self._events)
        if not self._events.flush(FLUSH_TIMEOUT_S):
            _log.warning("version %d is committed, but its event still waits for the broker", dataset.version)
        crash_point("event_published")

    def _tell_drift(self, dataset: Dataset, events: EventProducer) -> None:
        """An alert if the version is unlike those before it."""
        try:
            alert = drift_alert(dataset, self._watch)
        except DatasetError as error:
            _log.warning("version %d is committed, but could not be compared with those before it: %s", dataset.version, error)
            return
        if alert is not None:
            events.publish(alert, topic="events", key="drift")


def committed_event(dataset: Dataset) -> Event:
    """``dataset.committed``; its id follows from the manifest, so that a second telling has the same."""
    manifest = dataset.manifest
    data = DatasetCommitted(
        version=manifest.version,
        parent=manifest.parent,
        manifest_sha256=dataset.sha256,
        offsets=manifest.offsets,
        outcomes=manifest.outcomes,
        num_records=manifest.num_records,
        num_tokens=manifest.num_tokens,
        total_train_tokens=manifest.totals.num_effective_train_tokens,
    )
    identity, subject = f"dataset-{manifest.version}-{dataset.sha256[:16]}", f"dataset/{manifest.version}"
    return new_event(data, id=identity, source=SOURCE, time=manifest.created_at, subject=subject, traceparent=manifest.traceparent)
