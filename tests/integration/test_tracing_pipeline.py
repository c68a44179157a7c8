"""One trace from offsets to rollout: what manifests and events carry, and what a real collector is told.

The run's steps are done in this process, so that Ray is not needed.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipelines.kafka.events import EventProducer, read_events
from pipelines.kafka.topics import topic_names
from pipelines.runtime.tracing import stop_tracing
from ray_apps.models.registry import Registry
from ray_apps.rollout import policy
from ray_apps.rollout.controller import announce
from ray_apps.rollout.log import RolloutLog
from ray_apps.rollout.policy import Author
from ray_apps.training.app import train
from ray_apps.training.loss_curve import FILE_NAME
from schemas.errors import TrainingError
from schemas.events import Event, is_traceparent
from schemas.manifest import DatasetManifest, ModelManifest
from schemas.rollout import RolloutState
from tests.broker_process import BrokerProcess
from tests.collector import Collector, nobody_answers, running_collector
from tests.ingest_harness import Ingest, sample_records, state
from tests.training_runs import run_alone

TRAINING = {"training.max_steps": 3, "training.global_batch_rows": 4, "training.checkpoint_every_steps": 3, "training.evaluate_rows": 4}
NUM_RECORDS = 150
Told = tuple[Collector, DatasetManifest]


def ingest_into(root: Path, broker: BrokerProcess, prefix: str, endpoint: str) -> Ingest:
    overrides = {"telemetry.otlp_endpoint": endpoint, "ingest.max_batch_records": 1000}
    return Ingest(root, broker.bootstrap_servers, prefix, TRAINING | overrides)


@pytest.fixture
def collector() -> Iterator[Collector]:
    with running_collector() as running:
        yield running
        stop_tracing()


@pytest.fixture
def ingest(collector: Collector, broker: BrokerProcess, topic_prefix: str, tmp_path: Path) -> Ingest:
    """A root whose spans go to the collector, and documents that it has not read."""
    result = ingest_into(tmp_path / "data", broker, topic_prefix, collector.endpoint)
    result.publish(sample_records(NUM_RECORDS))
    return result


@pytest.fixture(scope="module")
def told(broker: BrokerProcess, tmp_path_factory: pytest.TempPathFactory) -> Told:
    """What one version made the collector hear, and its manifest."""
    with running_collector() as collector:
        ingest = ingest_into(tmp_path_factory.mktemp("told"), broker, "tracing-told", collector.endpoint)
        ingest.publish(sample_records(NUM_RECORDS))
        [dataset] = ingest.once()
        stop_tracing()
    return collector, dataset


def trace_of(manifest: DatasetManifest | ModelManifest | Event) -> tuple[str, str]:
    """Trace id and span id."""
    assert manifest.traceparent is not None and is_traceparent(manifest.traceparent)
    _, trace_id, span_id, _ = manifest.traceparent.split("-")
    return trace_id, span_id


def published(ingest: Ingest, number: int) -> dict[str, Event]:
    events: list[Event] = []
    with read_events(ingest.settings, topic_names(ingest.settings).events) as reader:
        for _ in range(100):
            events += reader.poll(0.2)
            if len(events) >= number:
                break
    assert len(events) == number
    return {event.type: event for event in events}


def tell(ingest: Ingest, changed: RolloutState | None) -> None:
    assert changed is not None
    with EventProducer(ingest.settings) as events:
        announce(changed, events, ingest.root)
        assert events.flush(10.0)


def test_training_and_rollout_go_on_with_the_trace_of_the_dataset_version(ingest: Ingest, collector: Collector) -> None:
    [dataset] = ingest.once()
    run_alone(ingest.settings)
    model = train(ingest.settings)
    assert Registry(ingest.root).manifest(1) == model
    author = Author(datetime.now(UTC), automatic=True)
    tell(ingest, RolloutLog(ingest.root).transition(lambda before: policy.bootstrap(before, 1, author, "00000000")))
    stop_tracing()

    (version,), (run,), (change,) = (collector.named(name) for name in ("dataset.version", "training.run", "rollout.change"))
    assert (version.trace_id, version.span_id) == trace_of(dataset)
    assert (run.trace_id, run.span_id) == trace_of(model)
    assert {version.trace_id} == {run.trace_id, change.trace_id}
    assert (version.parent_id, run.parent_id, change.parent_id) == ("", version.span_id, run.span_id)
    assert (version.service, run.service) == ("headrace-ingest", "headrace-training")

    events = published(ingest, 4)
    assert trace_of(events["dataset.committed"]) == trace_of(dataset)
    assert trace_of(events["training.finished"]) == trace_of(events["model.registered"]) == trace_of(model)
    assert trace_of(events["rollout.changed"]) == (change.trace_id, change.span_id)


def test_the_span_of_a_version_counts_what_its_manifest_counts(told: Told) -> None:
    collector, dataset = told
    (version,) = collector.named("dataset.version")  # one: looking for more documents afterwards made none
    counts = {f"headrace.outcome.{outcome}": count for outcome, count in dataset.outcomes.items()}
    assert counts.items() <= version.attributes.items() and counts["headrace.outcome.dead"] > 0
    assert version.attributes["headrace.dataset_version"] == 1
    assert (version.attributes["headrace.records"], version.attributes["headrace.tokens"]) == (NUM_RECORDS, dataset.num_tokens)
    parts = {part.name: part for part in collector.spans if part.parent_id == version.span_id}
    assert set(parts) == {"dataset.plan", "dataset.job", "dataset.dead_letters", "dataset.publish"}
    assert {part.error for part in parts.values()} == {None}


def test_no_document_text_reaches_the_collector(told: Told) -> None:
    sent = b"".join(told[0].bodies)
    assert sent
    assert not any(word in sent for word in (b"grain", b"mill turns", "水从山".encode(), b"doc-"))


def test_a_failed_run_is_an_error_in_the_trace_of_its_data(ingest: Ingest, collector: Collector) -> None:
    [dataset] = ingest.once()
    losses = run_alone(ingest.settings).folder(ingest.root) / FILE_NAME
    losses.write_bytes(b"".join(losses.read_bytes().splitlines(keepends=True)[1:]))
    with pytest.raises(TrainingError):
        train(ingest.settings)
    stop_tracing()
    (run,) = collector.named("training.run")
    assert (run.trace_id, run.parent_id) == trace_of(dataset)
    assert run.error is not None and "2 of 3 steps" in run.error and run.attributes["error.type"] == "TrainingError"
    assert trace_of(published(ingest, 2)["training.failed"]) == (run.trace_id, run.span_id)


def test_a_collector_that_is_away_changes_nothing_in_the_dataset(broker: BrokerProcess, topic_prefix: str, tmp_path: Path) -> None:
    plain = ingest_into(tmp_path / "plain", broker, topic_prefix, "")
    plain.publish(sample_records(NUM_RECORDS))
    [without] = plain.once()
    with nobody_answers() as endpoint:
        [away] = ingest_into(tmp_path / "away", broker, topic_prefix, endpoint).once()
        stop_tracing(timeout_s=0.0)
    assert state(tmp_path / "away") == state(tmp_path / "plain")
    assert trace_of(away) != trace_of(without)
