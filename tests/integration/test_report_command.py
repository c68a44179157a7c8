"""``headrace datasets report | drift | release | card`` on a dataset that was ingested from a broker."""

import json
import subprocess
from pathlib import Path

import pytest

from pipelines.dataset.dataset import Dataset
from pipelines.kafka.events import read_events
from pipelines.kafka.topics import topic_names
from schemas.events import AlertFired
from tests.broker_process import BrokerProcess
from tests.commands import run_command
from tests.ingest_harness import CHINESE, ENGLISH, Ingest, Record, document

HOSTILE = "<script>alert('x')</script>"


def records(prefix: str, text: str, number: int = 40) -> list[Record]:
    kept = [document(f"{prefix}-{index}", f"{prefix} {index} " + text + str(index * 7919) + text[index % 20 :], index % 2) for index in range(number)]
    short = f"{HOSTILE} mail me@example.org"
    return [*kept, Record(json.dumps({"id": f"{prefix}-short", "text": short}).encode(), 0)]


@pytest.fixture(scope="module")
def ingest(tmp_path_factory: pytest.TempPathFactory, broker: BrokerProcess) -> Ingest:
    """Three versions; the third is Chinese where the others are English."""
    overrides = {"drift.min_documents": 20, "dedup.near": False}
    made = Ingest(tmp_path_factory.mktemp("report"), broker.bootstrap_servers, "report-command", overrides)
    for prefix, text in (("a", ENGLISH), ("b", ENGLISH), ("c", CHINESE)):
        made.publish(records(prefix, text))
        made.once()
    return made


def run(ingest: Ingest, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = ["datasets", *arguments]
    for name, value in ingest.values.items():
        command += ["--set", f"{name}={json.dumps(value) if not isinstance(value, str) else value}"]
    return run_command(command, ingest.root)


def test_the_report_shows_rejected_texts_from_kafka_escaped_and_without_personal_data(ingest: Ingest, tmp_path: Path) -> None:
    output = tmp_path / "report.html"
    done = run(ingest, "report", "--examples", "2", "--output", str(output))
    assert (done.returncode, done.stdout.strip()) == (0, str(output)), done.stderr
    page = output.read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; mail" in page and "<script" not in page
    assert "me@example.org" not in page and "EMAIL" in page
    assert "drifting" in page and "Dataset version 3" in page


def test_without_examples_no_rejected_text_is_read(ingest: Ingest) -> None:
    done = run(ingest, "report", "--last", "3")
    page = (ingest.root / "reports" / "v00000003.html").read_text(encoding="utf-8")
    assert done.returncode == 0 and "Dataset versions 1 to 3" in page and "alert(" not in page


def test_drift_is_told_once_on_kafka_and_released_once(ingest: Ingest) -> None:
    report = json.loads(run(ingest, "drift", "--json").stdout)
    assert report["version"] == 3 and report["is_drifting"]
    assert [item["feature"] for item in report["features"] if item["is_over"]][:1] == ["language"]
    with read_events(ingest.settings, topic_names(ingest.settings).events) as reader:
        events = [event for _ in range(10) for event in reader.poll(0.3)]
    alerts = {event.id: event.data for event in events if isinstance(event.data, AlertFired)}
    (alert,) = alerts.values()
    assert alert.labels["dataset_version"] == "3" and "headrace datasets release 3" in alert.summary
    first, second = (run(ingest, "release", "3", "--reason", "meant") for _ in range(2))
    assert "is released" in first.stdout and "was released before" in second.stdout
    assert not json.loads(run(ingest, "drift", "3", "--json").stdout)["is_drifting"]
    assert run(ingest, "release", "9").returncode == 1


def test_the_card_and_the_lineage_of_a_version_are_there(ingest: Ingest) -> None:
    card = json.loads(run(ingest, "card", "--version", "2").stdout)
    assert card["name"] == "headrace-dataset-v2"
    attempts = {manifest.version: manifest.attempt for manifest in Dataset(ingest.root).manifests()}
    wanted = {f"{version:08d}-{attempt}-{kind}.json" for version, attempt in attempts.items() for kind in ("start", "complete")}
    assert {path.name for path in (ingest.root / "lineage").iterdir()} == wanted
