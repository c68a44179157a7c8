"""The commands with ``--root s3://…``, as a person uses them on two hosts: each has a cache of its own, and nothing else in common but the store."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

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

    def run(self, *arguments: str, code: int = 0) -> "subprocess.CompletedProcess[str]":
        """The command; nothing that it says holds the secret."""
        command = [*arguments, *self._flags]
        if "ingest.runner=ray" in command:  # Ray's workers start from nothing
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
    for command in ("up", "train", "serve", "demo"):
        assert f"headrace {command} needs a folder as root" in first.run(command, code=2).stderr
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


def test_what_is_wrong_with_a_root_is_told_in_one_line(store: Store, broker: BrokerProcess, topic_prefix: str, tmp_path: Path) -> None:
    host = Host(store, broker, topic_prefix, tmp_path / "host")
    assert "there is no dataset under s3://bucket/" in host.run("datasets", "list", code=1).stderr
    host._flags[1] = "s3://nowhere/root"
    assert "there is no bucket for the root s3://nowhere/root" in host.run("ingest", "--once", code=2).stderr
    host._flags[1] = f"s3://key:{SECRET}@bucket/root"
    assert "holds a user, a query or a fragment" in host.run("datasets", "list", code=2).stderr
    host._flags[1:4] = ["s3://bucket/root"]
    assert "needs a folder as root" in host.run("ingest", "--once", code=2).stderr
