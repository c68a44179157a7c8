"""What training says on Kafka, with a real broker and without one. The run's steps are done in this process, so that Ray is not needed."""

import socket
from pathlib import Path
from typing import Any

import pytest

from pipelines.kafka.events import read_events
from pipelines.kafka.topics import ensure_topics, topic_names
from ray_apps.models.registry import Registry
from ray_apps.training.app import train
from ray_apps.training.loss_curve import FILE_NAME
from ray_apps.training.run import is_complete
from schemas.errors import SettingsError, TrainingError
from schemas.events import Event
from schemas.settings import Settings
from tests.broker_process import BrokerProcess
from tests.training_runs import run_alone, tiny_dataset, tiny_settings


def settings_with_kafka(root: Path, address: str, prefix: str) -> Settings:
    settings = tiny_settings(root)
    return settings.model_copy(update={"kafka": settings.kafka.model_copy(update={"bootstrap_servers": address, "topic_prefix": prefix})})


def published(settings: Settings, number: int) -> list[Event]:
    events: list[Event] = []
    with read_events(settings, topic_names(settings).events) as reader:
        for _ in range(100):
            events += reader.poll(0.3)
            if len(events) >= number:
                break
    return events


@pytest.fixture
def kafka_settings(tmp_path: Path, broker: BrokerProcess, topic_prefix: str) -> Settings:
    settings = settings_with_kafka(tmp_path, broker.bootstrap_servers, topic_prefix)
    ensure_topics(settings)
    tiny_dataset(tmp_path)
    return settings


def test_a_finished_run_and_its_model_are_announced_once(kafka_settings: Settings) -> None:
    run = run_alone(kafka_settings)
    manifest = train(kafka_settings)
    assert train(kafka_settings) == manifest
    events = published(kafka_settings, 2)
    data: dict[str, Any] = {event.type: event.data for event in events}
    assert sorted(event.type for event in events) == ["model.registered", "training.finished"]
    assert (data["training.finished"].run_id, data["training.finished"].steps) == (run.run_id, 8)
    assert (data["model.registered"].version, data["model.registered"].run_id) == (1, run.run_id)


def test_a_failed_run_is_announced_with_its_reason_and_registers_nothing(kafka_settings: Settings) -> None:
    run = run_alone(kafka_settings)
    root = Path(kafka_settings.root)
    losses = run.folder(root) / FILE_NAME
    losses.write_bytes(b"".join(losses.read_bytes().splitlines(keepends=True)[1:]))
    with pytest.raises(TrainingError, match="7 of 8 steps"):
        train(kafka_settings)
    [event] = published(kafka_settings, 1)
    assert event.type == "training.failed"
    assert "7 of 8 steps" in event.data.model_dump()["error"]
    assert Registry(root).versions() == []


def test_training_goes_on_when_no_broker_answers(tmp_path: Path) -> None:
    tiny_dataset(tmp_path)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        settings = settings_with_kafka(tmp_path, f"127.0.0.1:{unused.getsockname()[1]}", "nobody")
        run_alone(settings)
        assert train(settings).version == 1


def test_workers_that_want_more_cpus_than_a_private_ray_has_are_refused_at_once(tmp_path: Path) -> None:
    tiny_dataset(tmp_path)
    with pytest.raises(SettingsError, match="need 12 CPUs"):
        train(tiny_settings(tmp_path, num_workers=4, threads_per_worker=3))


def test_a_run_whose_last_checkpoint_is_damaged_is_not_complete(tmp_path: Path) -> None:
    """It is trained on from the checkpoint before, instead of failing at every registration."""
    tiny_dataset(tmp_path)
    run = run_alone(tiny_settings(tmp_path))
    assert is_complete(run, tmp_path)
    store = run.checkpoints(tmp_path)
    (store.folder / store.manifest(8).folder / "model.safetensors").write_bytes(b"spoiled")
    assert not is_complete(run, tmp_path)
