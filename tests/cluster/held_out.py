"""A stream that is ingested with its root on an object store, by tasks on several hosts, while processes and hosts are killed at random.

The process that ingests runs on a worker. After a kill it starts again on a worker of chance, which may have nothing but the store.
"""

import json
import os
import random
import signal
import subprocess
import time
from typing import Any

import pyarrow as pa

from pipelines.dataset.verify import verify
from pipelines.storage.mirror import root_folder
from tests.cluster.cluster import TOKEN
from tests.cluster.faults import WORKER_KILLED
from tests.cluster.hosts import REPOSITORY, Host
from tests.cluster.loop import LONG, Loop, documents
from tests.cluster.store import ENVIRONMENT, URL
from tests.ingest_harness import state
from tests.processes import command_line

CORPUS = REPOSITORY.parent / "shared" / "corpus" / "documents.jsonl.zst"
NUM_DOCUMENTS, MAX_CHARS = 2_000, 20_000
SETTINGS = {
    "kafka.topic_prefix": "held-out",
    "ingest.max_batch_records": 150,  # so that there are many versions, and each is more than one task
    "ingest.slice_records": 20,
    "ingest.min_commit_interval_s": 0,
    "packing.sequence_length": 128,
    "packing.shard_rows": 100,
    "tokenizer.vocab_size": 1024,
    "tokenizer.min_training_bytes": 0,
}
FAULTS = ("process", "process", "tasks", "tasks", "host", "host")
"""What is killed, in an order of chance: the ingesting process, all tasks of a host, a host whole."""
PAUSE_S = (4.0, 25.0)
"""Shortest and longest time before the next kill; an ingest on Ray needs some ten seconds for its first version."""


def held_out_documents() -> str:
    """JSON Lines: documents from all over the corpus where it is there, else of Python's reference."""
    if not CORPUS.exists():
        return "".join(documents(number, LONG) for number in range(1_001, 1_001 + NUM_DOCUMENTS // 400))
    with pa.CompressedInputStream(pa.OSFile(str(CORPUS)), "zstd") as stream:
        lines = [line for line in stream.read().splitlines() if len(line) < MAX_CHARS]
    chosen = (json.loads(line) for line in lines[7 :: len(lines) // NUM_DOCUMENTS])
    return "".join(json.dumps({"id": each["id"], "text": each["text"]}) + "\n" for each in chosen)


class HeldOut:
    """The stream, its reference, and its dataset on the store. ``close`` ends what still runs."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._cluster = loop.cluster
        self._flags = ["--bootstrap-servers", loop.kafka, *(word for name, value in SETTINGS.items() for word in ("--set", f"{name}={value}"))]
        self._log = self._cluster.site.folder / "held-out.log"
        self._running: tuple[subprocess.Popen[str], Host] | None = None
        self.reading_hosts: set[str] = set()
        """Hosts on which tasks were seen to read."""
        self.kills: list[str] = []

    def publish(self) -> None:
        """All documents, from the operator's machine."""
        (self._cluster.operator.folder / "root/held-out.jsonl").write_text(held_out_documents())
        self._type("headrace", "produce", "/root/held-out.jsonl", "--root", "/root/no-data")

    def reference(self) -> list[dict[str, Any]]:
        """What an uninterrupted run makes of it in a folder of the operator's machine."""
        self._type("headrace", "ingest", "--once", "--root", "/root/reference", "--set", "ingest.runner=local")
        return state(self._cluster.operator.folder / "root/reference")

    def kill_at_random(self, rng: random.Random) -> None:
        """Ingest, and let each of FAULTS come at a random moment, as long as there is something to do."""
        for fault in rng.sample(FAULTS, len(FAULTS)):
            process, host = self._started(rng)
            if self._ends_within(process, rng.uniform(*PAUSE_S)):
                return
            self._kill(fault, host, rng)

    def finish(self) -> list[dict[str, Any]]:
        """Ingest what is left, without interruption; what the store holds then, as a host that has nothing sees it."""
        process, _ = self._started(random.Random(0))
        assert self._ends_within(process, 300.0), self._said()
        root = root_folder(URL, str(self._cluster.site.folder / "cache"))
        assert verify(root).problems == []
        return state(root)

    def close(self) -> None:
        """End the process that ingests."""
        if self._running is not None:
            self._kill_process()

    def _started(self, rng: random.Random) -> tuple["subprocess.Popen[str]", Host]:
        """The process that ingests, on a random worker that is a node; the one that still runs, if there is one."""
        if self._running is None:
            host = rng.choice(self._nodes())
            words = ["headrace", "ingest", "--once", "--root", URL, "--set", "ray.address=auto", *self._flags]
            with self._log.open("a") as log:
                environment = {**TOKEN, **ENVIRONMENT}
                self._running = (host.start(words, environment=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT), host)
        return self._running

    def _nodes(self) -> list[Host]:
        """Workers that are switched on and part of the cluster."""
        names = self._cluster.nodes().values()
        return [worker for worker in self._cluster.workers if worker.pid and worker.name in names]

    def _ends_within(self, process: "subprocess.Popen[str]", seconds: float) -> bool:
        """Whether the process comes to its end in that time; it must not fail."""
        deadline = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < deadline:
            self.reading_hosts |= self._cluster.running("ray::ReadKafka")
            time.sleep(0.5)
        if process.poll() is None:
            return False
        assert process.returncode == 0, self._said()
        self._running = None
        return True

    def _kill(self, fault: str, host: Host, rng: random.Random) -> None:
        """Kill what ``fault`` names, on a host of chance."""
        victim = host if fault == "process" else rng.choice(self._nodes())
        self.kills.append(f"{fault} on {victim.name}{' (where the ingest runs)' if victim is host else ''}")
        if fault == "process":
            self._kill_process()
        elif fault == "tasks":
            for pid in _task_processes(victim):
                _end(pid)
        else:
            WORKER_KILLED.strike(self._cluster, victim)
            if victim is host:
                self._kill_process()
            WORKER_KILLED.mend(self._loop, victim)

    def _kill_process(self) -> None:
        assert self._running is not None
        process, host = self._running
        for pid in host.processes("ingest --once") if host.pid else []:
            _end(pid)
        process.communicate(timeout=60)
        self._running = None

    def _type(self, *words: str) -> None:
        self._cluster.type(" ".join([*words, *self._flags]), 300)

    def _said(self) -> str:
        return self._log.read_text()[-4000:]


def _task_processes(host: Host) -> list[int]:
    """Those of Ray's workers that are neither Ray's own (without its agents a node ends) nor Serve's."""
    return [pid for pid in host.processes("ray::") if not any(word in command_line(pid) for word in ("Agent", "Serve", "SERVE", "Job"))]


def _end(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
