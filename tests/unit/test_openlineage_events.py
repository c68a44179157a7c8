"""OpenLineage events: complete, valid for OpenLineage's own client, and never in the way of a commit."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipelines.dataset.dataset import Dataset
from pipelines.dataset.writer import VersionPlan
from pipelines.lineage.openlineage import MAX_FILES, Lineage, run_id
from schemas.errors import SourceStalled
from schemas.manifest import DatasetManifest
from tests.factories import TOPIC, make_dataset, text_settings


def plan_of(manifest: DatasetManifest) -> VersionPlan:
    return VersionPlan(manifest.version, manifest.attempt, manifest.topic_ids, manifest.offsets, manifest.tokenizer)


def events(root: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_bytes()) for path in sorted((root / "lineage").iterdir(), key=lambda path: path.stat().st_mtime_ns)]


@pytest.fixture
def manifest(tmp_path: Path) -> DatasetManifest:
    return make_dataset(tmp_path, num_rows=8)


def test_a_version_is_started_and_completed_under_one_run_with_its_offsets(tmp_path: Path, manifest: DatasetManifest) -> None:
    lineage = Lineage(text_settings(tmp_path))
    lineage.started(plan_of(manifest))
    lineage.completed(manifest)
    started, completed = events(tmp_path)
    assert (started["eventType"], completed["eventType"]) == ("START", "COMPLETE")
    assert started["run"]["runId"] == completed["run"]["runId"] == run_id(manifest.attempt)
    assert started["eventTime"] != completed["eventTime"] == "2026-01-01T00:00:00+00:00"
    (read,) = completed["inputs"]
    span = manifest.offsets[TOPIC][0]
    assert read["name"] == TOPIC
    assert read["inputFacets"]["headrace_kafkaOffsets"]["partitions"] == [{"partition": 0, "startOffset": span.start, "endOffset": span.end}]
    assert completed["outputs"][0]["outputFacets"]["outputStatistics"]["rowCount"] == Dataset(tmp_path).manifest.num_records


def test_a_version_that_is_given_up_fails_and_nothing_is_told_without_a_start(tmp_path: Path, manifest: DatasetManifest) -> None:
    lineage = Lineage(text_settings(tmp_path))
    lineage.failed(SourceStalled("before a plan"))
    with pytest.raises(SourceStalled), lineage.attempt():
        lineage.started(plan_of(manifest))
        raise SourceStalled("no progress")
    lineage.completed(manifest)
    started, failed = events(tmp_path)
    assert (started["eventType"], failed["eventType"]) == ("START", "FAIL")
    assert failed["run"]["facets"]["errorMessage"]["message"] == "SourceStalled: no progress"


def test_openlineages_own_client_understands_the_events(tmp_path: Path, manifest: DatasetManifest) -> None:
    client = pytest.importorskip("openlineage.client.event_v2", reason="openlineage-python is not installed")
    lineage = Lineage(text_settings(tmp_path))
    lineage.started(plan_of(manifest))
    lineage.completed(manifest)
    for event in events(tmp_path):
        inputs = [client.InputDataset(namespace=part["namespace"], name=part["name"]) for part in event["inputs"]]
        outputs = [client.OutputDataset(namespace=part["namespace"], name=part["name"]) for part in event["outputs"]]
        job, run = client.Job(event["job"]["namespace"], event["job"]["name"]), client.Run(event["run"]["runId"])
        kind = client.RunState[event["eventType"]]
        parsed = client.RunEvent(
            eventTime=event["eventTime"], producer=event["producer"], run=run, job=job, eventType=kind, inputs=inputs, outputs=outputs
        )
        assert parsed.schemaURL.split("#")[1] == event["schemaURL"].split("#")[1]


class Receiver(ThreadingHTTPServer):
    """Keeps what is posted; answers with ``status``."""

    daemon_threads = True
    status = 201

    def __init__(self) -> None:
        self.bodies: list[Any] = []
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        self.server.bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(self.server.status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_events_are_posted_where_the_settings_say(tmp_path: Path, manifest: DatasetManifest, receiver: Receiver) -> None:
    lineage = Lineage(text_settings(tmp_path, **{"telemetry.openlineage_url": f"http://127.0.0.1:{receiver.server_port}/api/v1/lineage"}))
    lineage.started(plan_of(manifest))
    lineage.completed(manifest)
    assert receiver.bodies == events(tmp_path)


def test_a_receiver_that_fails_is_left_alone_and_the_files_are_written(
    tmp_path: Path, manifest: DatasetManifest, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.status = 500
    lineage = Lineage(text_settings(tmp_path, **{"telemetry.openlineage_url": f"http://127.0.0.1:{receiver.server_port}/"}))
    lineage.started(plan_of(manifest))
    lineage.completed(manifest)
    assert len(receiver.bodies) == 1 and len(events(tmp_path)) == 2
    assert "could not be sent" in caplog.text


def test_a_folder_that_cannot_be_written_is_logged_only(tmp_path: Path, manifest: DatasetManifest, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "lineage").write_text("a file")
    Lineage(text_settings(tmp_path)).started(plan_of(manifest))
    assert "could not be written" in caplog.text


def test_old_event_files_are_forgotten(tmp_path: Path, manifest: DatasetManifest) -> None:
    folder = tmp_path / "lineage"
    folder.mkdir()
    for number in range(MAX_FILES + 5):
        (folder / f"00000000-{number:012x}-start.json").write_text("{}")
    (folder / "mine.txt").write_text("not ours")
    Lineage(text_settings(tmp_path)).started(plan_of(manifest))
    assert len(list(folder.iterdir())) == MAX_FILES + 1 and (folder / "mine.txt").exists()
