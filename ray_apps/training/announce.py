"""Publishes training events to Kafka, when a Kafka is named. They are for people and for the loop's log; nothing depends on them.

Event ids follow from the run, so that a run that was interrupted and started again repeats itself recognizably.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from pipelines.kafka.events import EventProducer
from pipelines.runtime.tracing import current_traceparent
from ray_apps.training.run import TrainingRun
from schemas.events import EventData, ModelRegistered, TrainingFailed, TrainingFinished, TrainingStarted, new_event
from schemas.manifest import ModelManifest
from schemas.settings import Settings

log = logging.getLogger(__name__)

SOURCE = "/headrace/training"

Announce = Callable[[EventData, str], None]
"""Publishes data under a name that is unique to what happened, for example a run's id."""


@contextmanager
def announcer(settings: Settings) -> Iterator[Announce]:
    """Something that publishes to the events topic inside the block; silent where no Kafka is named or none answers."""
    if not settings.kafka.bootstrap_servers:
        yield _ignore
        return
    with EventProducer(settings) as producer:

        def announce(data: EventData, name: str) -> None:
            identity, now = f"{type(data).__name__}/{name}", datetime.now(UTC)
            event = new_event(data, id=identity, source=SOURCE, time=now, subject=name, traceparent=current_traceparent())
            producer.publish(event, topic="events", key=name)

        yield announce


def _ignore(data: EventData, name: str) -> None:
    """No Kafka: nothing to tell."""
    log.debug("no Kafka is named; %s of %s is not published", type(data).__name__, name)


def started(run: TrainingRun) -> TrainingStarted:
    """The run begins, or goes on."""
    training = run.training
    return TrainingStarted(
        run_id=run.run_id,
        dataset_version=run.dataset.version,
        parent_model=run.parent_model,
        num_workers=training.num_workers,
        steps=training.max_steps,
    )


def failed(run: TrainingRun, error: Exception) -> TrainingFailed:
    """The run was given up."""
    return TrainingFailed(run_id=run.run_id, dataset_version=run.dataset.version, error=str(error))


def finished(manifest: ModelManifest) -> TrainingFinished:
    """The run reached its last step."""
    run = manifest.training
    return TrainingFinished(
        run_id=run.run_id,
        dataset_version=manifest.dataset.version,
        steps=run.steps,
        tokens=run.tokens,
        first_loss=run.first_loss,
        last_loss=run.last_loss,
        duration_s=run.duration_s,
    )


def registered(manifest: ModelManifest) -> ModelRegistered:
    """A model version exists."""
    evaluation = manifest.evaluation
    return ModelRegistered(
        version=manifest.version,
        dataset_version=manifest.dataset.version,
        run_id=manifest.training.run_id,
        num_parameters=manifest.num_parameters,
        loss=evaluation.loss if evaluation else None,
        perplexity=evaluation.perplexity if evaluation else None,
    )
