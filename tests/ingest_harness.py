"""Ingest under test: documents on a broker, the real command as a child process, and what two datasets must have in common."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import polars as pl

from pipelines.dataset.dataset import Dataset, latest_version
from pipelines.dataset.retractions.masks import read_masks
from pipelines.dataset.verify import verify
from pipelines.ingest.stream import ingest_once
from pipelines.kafka.clients import open_admin, open_producer
from pipelines.kafka.topics import ensure_topics, topic_names
from pipelines.runtime.crash import VARIABLE
from pipelines.storage.store import local
from schemas.manifest import DatasetManifest
from schemas.settings import Settings
from schemas.settings_sources import load_settings
from tests.commands import Command

SMALL: Mapping[str, object] = {
    "ingest.runner": "local",
    "ingest.max_batch_records": 120,
    "ingest.slice_records": 35,
    "ingest.stall_timeout_s": 10,
    "ingest.min_commit_interval_s": 0,
    "ingest.validation_fraction": 0.1,
    "packing.sequence_length": 32,
    "packing.shard_rows": 40,
    "tokenizer.vocab_size": 500,
    "kafka.request_timeout_s": 10,
    "ray.num_cpus": 2,
    "ray.dashboard_port": 0,
    "tokenizer.min_training_bytes": 0,
}
"""A few hundred documents make several versions, slices and shards."""
CHILD_TIMEOUT_S = 240
Child: TypeAlias = "subprocess.Popen[str] | Command"
_ATTEMPT = re.compile("-[0-9a-f]{12}(?=[.]arrow$)")
ENGLISH = "the mill turns when water comes down from the hill and grain is ground between two stones that people cut by hand long ago"
CHINESE = "水从山上流下来推动石磨转动人们用它把谷物磨成面粉这是很久以前的事情村子里的人都记得"


@dataclass(frozen=True)
class Record:
    """What is published: key, value, partition."""

    value: bytes | None
    partition: int = 0
    key: bytes | None = None


def document(doc_id: str, text: str, partition: int) -> Record:
    """A plain JSON document under its own id."""
    return Record(json.dumps({"id": doc_id, "text": text}, ensure_ascii=False).encode(), partition, doc_id.encode())


def sample_records(number: int = 300, seed: int = 0) -> list[Record]:
    """Two partitions of everything that can happen: kept, too short, exact and near duplicates, garbage, tombstones; English and Chinese."""
    rng = random.Random(seed)
    texts: list[str] = []
    records: list[Record] = []
    for index in range(number):
        partition, kind = rng.randrange(2), rng.random()
        if kind < 0.05:
            records.append(Record(rng.choice([b"\xff\xfe", b"{", b"[1]", b'{"text": 5}']), partition))
        elif kind < 0.08:
            records.append(Record(None, partition, f"doc-{rng.randrange(number)}".encode()))
        elif kind < 0.14:
            records.append(document(f"doc-{index}", "too short", partition))
        elif kind < 0.24 and texts:
            records.append(document(f"doc-{index}", rng.choice(texts), partition))
        else:
            alphabet, glue = (ENGLISH.split(), " ") if rng.random() < 0.7 else (list(CHINESE), "")
            texts.append(glue.join(rng.choices(alphabet, k=rng.randint(15, 90))) + f" {index}")
            records.append(document(f"doc-{index}", texts[-1], partition))
    return records


@dataclass(frozen=True)
class Ingest:
    """One root, reading one topic prefix of one broker."""

    root: Path
    bootstrap_servers: str
    prefix: str
    overrides: Mapping[str, object] = field(default_factory=dict)

    @property
    def values(self) -> dict[str, object]:
        """All settings that differ from the defaults, by dotted name."""
        own = {"root": str(self.root), "kafka.bootstrap_servers": self.bootstrap_servers, "kafka.topic_prefix": self.prefix}
        return {**SMALL, **own, **self.overrides}

    @property
    def settings(self) -> Settings:
        """The same as settings."""
        return load_settings("", {}, self.values)

    @property
    def topic(self) -> str:
        """Where the documents are."""
        return topic_names(self.settings).documents

    def publish(self, records: Iterable[Record]) -> None:
        """Create the topics if need be and publish the records, acknowledged."""
        ensure_topics(self.settings)
        with open_producer(self.settings) as producer:
            futures = [producer.send(self.topic, key=record.key, value=record.value, partition=record.partition) for record in records]
            producer.flush()
            for future in futures:
                future.get()

    def recreate_topic(self) -> None:
        """Delete the topic and create it again under its name, as Kafka lets anybody do unnoticed."""
        with open_admin(self.settings) as admin:
            admin.delete_topics([self.topic])
            wait_until(lambda: self.topic not in admin.list_topics(), "the topic to be gone")
        ensure_topics(self.settings)

    def once(self) -> list[DatasetManifest]:
        """Ingest in this process, without interruption."""
        return ingest_once(self.settings)

    def start(self, *arguments: str, crash_at: str | None = None) -> Child:
        """The real command as a child process: ``--once`` unless told otherwise."""
        command = ["ingest", *(arguments or ("--once",)), "--json"]
        for name, value in self.values.items():
            command += ["--set", f"{name}={json.dumps(value) if not isinstance(value, str) else value}"]
        environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
        if crash_at is not None:
            environment[VARIABLE] = crash_at
        self.root.mkdir(parents=True, exist_ok=True)  # where no headrace.toml adds settings of its own
        if self.settings.ingest.runner == "local" and "PYTHONPATH" not in os.environ:
            return Command(command, self.root, environment, self.root.with_name(f"{self.root.name}.output"))
        command = [sys.executable, "-P", "-m", "ops.cli.main", *command]  # Ray's workers, and what PYTHONPATH changes, start from nothing
        return subprocess.Popen(command, cwd=self.root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, *arguments: str, crash_at: str | None = None) -> "subprocess.CompletedProcess[str]":
        """The real command, to its end."""
        return finish(self.start(*arguments, crash_at=crash_at))


def finish(child: Child) -> "subprocess.CompletedProcess[str]":
    """Wait for a child; a child that does not end in time is killed and fails the test."""
    try:
        stdout, stderr = child.communicate(timeout=CHILD_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        stdout, stderr = child.communicate()
        raise AssertionError(f"the child did not end in {CHILD_TIMEOUT_S} s:\n{stdout}\n{stderr}") from None
    return subprocess.CompletedProcess(child.args, child.wait(), stdout, stderr)


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    """Poll until it holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s in vain for {what}"
        time.sleep(0.02)


def wait_until_stopped(*children: Child) -> None:
    """Wait until each child is suspended at its crash point (``stop@…``). A child that ends instead fails the test.

    The limit is on the child's processor time: on a busy machine a child may wait for the processor as long as the test may take.
    """
    for child in children:
        state = ""
        while state != "T":
            assert child.poll() is None, f"it ended with {child.poll()} instead of stopping: {child.communicate()}"
            state, used_s = _state_and_processor_s(child.pid)
            assert used_s < CHILD_TIMEOUT_S, f"it works for {used_s:g} s and does not stop"
            time.sleep(0.02)


def _state_and_processor_s(pid: int) -> tuple[str, float]:
    """The letter of its state, and the seconds that its threads have run; empty for a process that has just ended."""
    try:
        fields = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return "", 0.0
    return fields[0], (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def finish_overtaken(ingest: Ingest, point: str) -> None:
    """Suspend a writer at ``point``, a step before its publication, while another one commits the same version: it must be refused in words."""
    slow = ingest.start(crash_at=f"stop@{point}")
    wait_until_stopped(slow)
    ingest.once()
    slow.send_signal(signal.SIGCONT)
    fenced = finish(slow)
    assert fenced.returncode == 1
    assert "was published by another writer" in fenced.stderr
    assert "Traceback" not in fenced.stderr


def assert_recovered(ingest: Ingest, reference: list[dict[str, Any]]) -> None:
    """The dataset is the reference's, and sound."""
    assert state(ingest.root) == reference
    assert verify(ingest.root).problems == []


def state(root: Path) -> list[dict[str, Any]]:
    """Everything that must be equal after a crash and without one: per version, what was read, what became of each record, and the bytes."""
    return [_version(root, manifest) for manifest in Dataset(root).manifests()] if latest_version(root) else []


def _version(root: Path, manifest: DatasetManifest) -> dict[str, Any]:
    files = [pl.read_parquet(local(root / entry.path)) for entry in manifest.documents]  # none in a compaction of the duplicate index
    attempt_free = pl.col("shard").str.replace(f"-{manifest.attempt}", "", literal=True)
    return {
        "offsets": manifest.offsets,
        "outcomes": manifest.outcomes,
        "reasons": manifest.reasons,
        "totals": manifest.totals,
        "tokenizer": manifest.tokenizer,
        "shards": [(entry.split, entry.rows, entry.tokens, entry.documents, entry.sha256) for entry in manifest.shards],
        "segments": [entry.sha256 for entry in manifest.dedup_segments],
        "masks": [row | {"shard": _ATTEMPT.sub("", row["shard"])} for row in read_masks(root, manifest).to_pylist()],
        "boilerplate": [(manifest.boilerplate_first_version, entry.sha256) for entry in manifest.boilerplate],
        "merged": [(entry.split, entry.first_row, entry.rows, entry.copies, entry.sha256) for entry in manifest.merged],
        "base": [entry.sha256 for entry in manifest.dedup_base],
        "documents": pl.concat(files).with_columns(attempt_free).to_dicts() if files else [],
    }
