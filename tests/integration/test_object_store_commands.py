"""The commands with ``--root s3://…``, as a person uses them on two hosts: each has a cache of its own, and nothing else in common but the store."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipelines.kafka.events import read_events
from pipelines.kafka.topics import topic_names
from pipelines.runtime.bound import bound
from schemas.events import Event
from schemas.settings_sources import load_settings
from tests.broker_process import BrokerProcess
from tests.commands import run_command
from tests.ingest_harness import SMALL, Ingest, document, sample_records, state
from tests.object_stores import SECRET, Store, running_store

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """moto."""
    with running_store("moto", tmp_path_factory.mktemp("moto")) as store:
        yield store


class Host:
    """A machine with credentials, and a cache that only it has."""

    def __init__(self, store: Store, broker: BrokerProcess, prefix: str, folder: Path, runner: str = "local") -> None:
        folder.mkdir()
        self.folder, self.url = folder, store.url(prefix)
        settings = {**SMALL, "ingest.runner": runner, "storage.cache": str(folder / "cache"), "kafka.topic_prefix": prefix}
        self._flags = ["--root", self.url, "--bootstrap-servers", broker.bootstrap_servers]
        self._flags += [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
        self._environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder), **store.environment}

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """The command in an interpreter of its own, because Ray's workers start from nothing; its standard error goes to a file."""
        command, piped = [sys.executable, "-P", "-m", "ops.cli.main", *arguments, *self._flags], subprocess.PIPE
        with (self.folder / f"{arguments[0]}.err").open("a") as log:
            return subprocess.Popen(bound(command), cwd=self.folder, env=self._environment, stdout=piped, stderr=log, text=True)

    def said(self, command: str) -> str:
        """Standard error of what was started."""
        text = (self.folder / f"{command}.err").read_text()
        assert SECRET not in text
        return text

    def run(self, *arguments: str, code: int = 0) -> "subprocess.CompletedProcess[str]":
        """The command; nothing that it says holds the secret."""
        command = [*arguments, *self._flags]
        if "ingest.runner=ray" in command or arguments[0] == "train":  # Ray's workers start from nothing
            ray = [sys.executable, "-P", "-m", "ops.cli.main", *command]
            done = subprocess.run(ray, check=False, cwd=self.folder, env=self._environment, capture_output=True, text=True, timeout=600)
        else:
            done = run_command(command, self.folder, self._environment)
        assert done.returncode == code, done.stderr
        assert SECRET not in done.stdout + done.stderr
        assert "headrace-mirrors" not in done.stdout + done.stderr
        return done

    def json(self, *arguments: str, code: int = 0) -> Any:
        """Its answer."""
        return json.loads(self.run(*arguments, "--json", code=code).stdout)


@pytest.mark.slow
def test_two_hosts_share_a_dataset_through_the_store_alone(
    store: Store, broker: BrokerProcess, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = Ingest(tmp_path / "local", broker.bootstrap_servers, topic_prefix)
    local.publish(sample_records(220))
    local.once()
    first, second = (Host(store, broker, topic_prefix, tmp_path / name) for name in ("first", "second"))
    versions = first.json("ingest", "--once")["versions"]
    wanted = state(local.root)
    assert [[shard["sha256"] for shard in version["shards"]] for version in versions] == [
        [shard[-1] for shard in version["shards"]] for version in wanted
    ]
    assert len(second.json("datasets", "list")["versions"]) == len(wanted)
    assert second.json("datasets", "show", "1")["num_records"] == wanted[0]["totals"].num_records
    assert second.json("datasets", "verify")["problems"] == []
    second.run("datasets", "export", "--format", "jsonl", "--output", "exported")
    assert len((second.folder / "exported" / "train.jsonl").read_text().splitlines()) > 50
    kept = next(row["doc_id"] for row in wanted[0]["documents"] if row["outcome"] == "kept")
    second.json("retract", kept)
    assert second.json("ingest", "--once")["versions"][0]["num_masked_documents"] == 1
    assert "retracted" in first.run("trace", kept).stdout
    assert first.json("gc", "--grace-s", "0")["removed"] == []
    assert "headrace demo needs a folder as root" in first.run("demo", code=2).stderr
    assert SECRET not in _everything(store, topic_prefix, tmp_path, monkeypatch)


def _everything(store: Store, prefix: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """All bytes of all objects of a root."""
    from pipelines.storage.objects import Objects

    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    objects = Objects(store.url(prefix))
    found = objects.listed("")
    assert len(found) > 20
    return b"".join(objects.get(entry.key) for entry in found).decode("latin-1")


def test_a_document_in_a_blob_of_the_store_is_read_by_another_host(store: Store, broker: BrokerProcess, topic_prefix: str, tmp_path: Path) -> None:
    first, second = (Host(store, broker, topic_prefix, tmp_path / name) for name in ("first", "second"))
    text = " ".join(f"the mill turns when water comes down from the hill and grain is ground {number}" for number in range(400))
    (first.folder / "large.jsonl").write_bytes(document("large", text, 0).value or b"")
    first.run("produce", "large.jsonl", "--set", "formats.max_inline_bytes=1024")
    assert second.json("ingest", "--once")["versions"][0]["outcomes"]["kept"] == 1


@pytest.mark.slow
def test_ray_tasks_write_the_same_dataset_to_the_store(store: Store, broker: BrokerProcess, topic_prefix: str, tmp_path: Path) -> None:
    local = Ingest(tmp_path / "local", broker.bootstrap_servers, topic_prefix)
    local.publish(sample_records(220))
    local.once()
    ray = Host(store, broker, topic_prefix, tmp_path / "ray", runner="ray")
    versions = ray.json("ingest", "--once")["versions"]
    assert [[shard["sha256"] for shard in version["shards"]] for version in versions] == [
        [shard[-1] for shard in version["shards"]] for version in state(local.root)
    ]
    assert ray.json("datasets", "verify")["problems"] == []


TRAINING = {
    "training.max_steps": 6,
    "training.num_workers": 1,
    "training.global_batch_rows": 4,
    "training.checkpoint_every_steps": 3,
    "training.evaluate_rows": 4,
    "ray.object_store_bytes": 100 * 2**20,
}


def flags(settings: dict[str, Any]) -> list[str]:
    """On a command line."""
    return [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]


@contextmanager
def started(host: Host, *arguments: str) -> "Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]":
    """A service of the host, and what it prints when it is ready; stopped in order at the end."""
    child = host.start(*arguments, "--json")
    try:
        yield child, _first_document(child, host, arguments[0])
        child.terminate()
        assert child.wait(120) == 0, host.said(arguments[0])
    finally:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


def _first_document(child: "subprocess.Popen[str]", host: Host, command: str) -> dict[str, Any]:
    assert child.stdout is not None
    text = ""
    while line := child.stdout.readline():
        text += line
        if line == "}\n":
            return dict(json.loads(text))
    raise AssertionError(host.said(command)[-3_000:])


def _events(broker: BrokerProcess, prefix: str) -> list[Event]:
    """All that were published up to now."""
    settings = load_settings("", {}, {"kafka.bootstrap_servers": broker.bootstrap_servers, "kafka.topic_prefix": prefix})
    found: list[Event] = []
    with read_events(settings, topic_names(settings).events) as reader:
        while events := reader.poll(2.0):
            found += events
    return found


def answer(url: str, timeout_s: float = 120.0) -> dict[str, Any]:
    """What the model makes of a prompt, once it answers."""
    deadline = time.monotonic() + timeout_s
    while True:
        response = httpx.post(f"{url}/v1/completions", json={"model": "headrace", "prompt": "the mill", "max_tokens": 4}, timeout=60)
        if response.status_code == 200:
            return dict(response.json())
        assert time.monotonic() < deadline, response.text
        time.sleep(0.5)


@pytest.mark.slow
def test_a_model_that_one_host_trains_is_served_by_another(
    store: Store, broker: BrokerProcess, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Ingest(tmp_path / "local", broker.bootstrap_servers, topic_prefix).publish(sample_records(220))
    first, second, third = (Host(store, broker, topic_prefix, tmp_path / name) for name in ("first", "second", "third"))
    first.json("ingest", "--once")
    model = second.json("train", *flags(TRAINING))
    assert model["training"]["steps"] == 6
    assert second.json("train", *flags(TRAINING)) == model, "it is not trained again"
    assert first.json("models", "list")["models"] == [model]
    assert first.json("models", "lineage")["dataset"]["matches"]
    assert first.json("models", "evaluate", "--set", "training.evaluate_rows=4")["loss"] == pytest.approx(model["evaluation"]["loss"], rel=1e-5)
    third.json("rollout", "set", "--champion", "1")
    assert first.json("rollout", "show")["champion"] == 1
    with started(third, "serve", *flags({"serving.port": 0, "ray.object_store_bytes": 100 * 2**20})) as (_, addresses):
        assert answer(addresses["url"])["choices"]
    told = _events(broker, topic_prefix)
    assert {event.type for event in told} >= {"dataset.committed", "training.started", "training.finished", "model.registered"}
    assert SECRET not in third.said("serve") + _everything(store, topic_prefix, tmp_path, monkeypatch) + repr(told)


@pytest.mark.slow
@pytest.mark.timeout(1_200)
def test_up_makes_a_model_of_new_documents_on_one_host_and_another_host_takes_it_over(
    store: Store, broker: BrokerProcess, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (Host(store, broker, topic_prefix, tmp_path / name) for name in ("first", "second"))
    settings = flags({**TRAINING, "loop.min_new_tokens": 1_000, "serving.port": 0})
    with started(first, "up", *settings) as (_, addresses):
        assert addresses["root"] == first.url
        refused = second.run("up", *settings, code=1)
        assert "runs `headrace up` under s3://bucket/" in refused.stderr
        Ingest(tmp_path / "local", broker.bootstrap_servers, topic_prefix).publish(sample_records(220))
        assert answer(addresses["api"], 600)["choices"]
        assert second.json("models", "list")["aliases"]["champion"] == 1
    with started(second, "up", *settings) as (_, addresses):
        assert answer(addresses["api"], 300)["choices"]
    assert SECRET not in first.said("up") + second.said("up") + _everything(store, topic_prefix, tmp_path, monkeypatch)


def test_up_without_a_kafka_of_its_own_is_refused_before_anything_starts(
    store: Store, broker: BrokerProcess, topic_prefix: str, tmp_path: Path
) -> None:
    host = Host(store, broker, topic_prefix, tmp_path / "host")
    host._flags[2:4] = []
    assert "the embedded broker, which is used where no Kafka is named (--bootstrap-servers), needs a folder as root" in host.run("up", code=2).stderr


def test_what_is_wrong_with_a_root_is_told_in_one_line(store: Store, broker: BrokerProcess, topic_prefix: str, tmp_path: Path) -> None:
    host = Host(store, broker, topic_prefix, tmp_path / "host")
    assert "there is no dataset under s3://bucket/" in host.run("datasets", "list", code=1).stderr
    host._flags[1] = "s3://nowhere/root"
    assert "there is no bucket for the root s3://nowhere/root" in host.run("ingest", "--once", code=2).stderr
    host._flags[1] = f"s3://key:{SECRET}@bucket/root"
    assert "holds a user, a query or a fragment" in host.run("datasets", "list", code=2).stderr
    host._flags[1:4] = ["s3://bucket/root"]
    assert "needs a folder as root" in host.run("ingest", "--once", code=2).stderr
