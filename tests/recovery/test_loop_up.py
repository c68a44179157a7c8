"""``headrace up`` as a person runs it, and as a machine that fails would treat it. Real processes, ports and signals."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipelines.dataset.dataset import Dataset, latest_version
from pipelines.runtime.ports import free_ports
from ray_apps.models.registry import Registry
from ray_apps.rollout.log import RolloutLog

DEADLINE_S = 60.0
MODEL_DEADLINE_S = 400.0
SMALL = {
    "training.max_steps": 60,
    "training.num_workers": 1,
    "training.checkpoint_every_steps": 5,
    "training.evaluate_rows": 8,
    "tokenizer.vocab_size": 512,
    "tokenizer.min_training_bytes": 0,
    "packing.sequence_length": 64,
    "loop.min_new_tokens": 20_000,
    "ingest.max_wait_s": 1.0,
    "ingest.min_commit_interval_s": 1.0,
    "ray.object_store_bytes": 100 * 2**20,
}


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = DEADLINE_S) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.1)
    return found


def processes_under(root: Path) -> set[int]:
    """Processes that live and were given this root: by their command line or their environment."""
    needle = str(root).encode()
    found = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            if needle in (entry / "cmdline").read_bytes() or f"HEADRACE_ROOT={root}\0".encode() in (entry / "environ").read_bytes():
                found.add(int(entry.name))
        except OSError:
            continue
    return found


def read(path: Path) -> bytes:
    """A file of a process; nothing if the process is gone."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


class Up:
    """A running ``headrace up``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        broker, serving = free_ports(2)
        self.kafka, self.api = f"127.0.0.1:{broker}", f"http://127.0.0.1:{serving}"
        flags = {"broker.listen": self.kafka, "serving.port": serving, "ray.dashboard_port": 0, **SMALL}
        self.settings = [word for name, value in flags.items() for word in ("--set", f"{name}={value}")]
        self.process = self.start()

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "ops.cli.main", *words, "--root", str(self.root), *self.settings]

    def start(self) -> "subprocess.Popen[bytes]":
        with (self.root.parent / "up.log").open("ab") as log:
            self.process = subprocess.Popen(self.command("up", "--json"), stdout=subprocess.PIPE, stderr=log, start_new_session=True)
        return self.process

    def ready(self) -> dict[str, Any]:
        """What it prints when everything answers."""
        assert self.process.stdout is not None
        text = b""
        while line := self.process.stdout.readline():
            text += line
            if line == b"}\n":
                return dict(json.loads(text))
        raise AssertionError(f"up ended: {(self.root.parent / 'up.log').read_text()[-2000:]}")

    def pids(self) -> dict[str, int]:
        """Of its services, as ``ps`` would show them."""
        words = {"broker": b"ops.cli.main\0broker", "ingest": b"ops.cli.main\0ingest", "serve": b"ops.cli.main\0serve", "ray": b"start\0--head"}
        commands = {pid: read(Path(f"/proc/{pid}/cmdline")) for pid in self.children()}
        return {name: pid for pid, command in commands.items() for name, word in words.items() if word in command}

    def children(self) -> set[int]:
        """Processes that any of its threads started."""
        return {int(pid) for path in Path(f"/proc/{self.process.pid}/task").glob("*/children") for pid in read(path).split()}

    def kill(self) -> None:
        self.process.kill()
        self.close()

    def close(self) -> None:
        self.process.wait(DEADLINE_S)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def terminate(self) -> int:
        self.process.terminate()
        self.close()
        return self.process.returncode


@contextmanager
def running_up(root: Path) -> Iterator[Up]:
    root.mkdir(parents=True)
    up = Up(root)
    try:
        yield up
    finally:
        if up.process.poll() is None:
            up.process.terminate()
        up.close()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel binds children to their parent on Linux only")
def test_a_killed_up_leaves_nothing_running_and_two_ups_cannot_share_a_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    with running_up(root) as up:
        wait_until(lambda: {"broker", "ray"} <= up.pids().keys(), "broker and Ray are started")
        second = subprocess.run(up.command("up"), capture_output=True, text=True, check=False)
        assert second.returncode == 1
        assert f"process {up.process.pid} runs `headrace up` under {root} already" in second.stderr
        up.kill()
        wait_until(lambda: not processes_under(root), "everything is gone")


def published(up: Up, part: str, limit: int) -> int:
    words = up.command("produce", "--sample", "--part", part, "--limit", str(limit), "--json", "--bootstrap-servers", up.kafka)
    result = subprocess.run(words, capture_output=True, check=True)
    return int(json.loads(result.stdout)["published"])


def kill_and_wait_for_its_return(up: Up, name: str) -> None:
    before = up.pids()[name]
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: up.pids().get(name) not in (None, before), f"{name} is back")


def taken_in(root: Path) -> int:
    return Dataset(root).manifest.totals.num_records if latest_version(root) else 0


def offsets_of(root: Path) -> list[tuple[int, int]]:
    """Partition and offset of every record of every version."""
    trails = [root / entry.path for manifest in Dataset(root).manifests() for entry in manifest.documents]
    return pl.concat([pl.read_parquet(path, columns=["partition", "offset"]) for path in trails]).rows()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_loop_goes_on_whatever_is_killed_and_loses_and_doubles_nothing(tmp_path: Path) -> None:
    root = tmp_path / "root"
    with running_up(root) as up:
        up.ready()
        sent = published(up, "1/2", 150)
        wait_until(lambda: taken_in(root) == sent, "the first documents", MODEL_DEADLINE_S)
        for name in ("broker", "ingest", "serve", "ray"):
            kill_and_wait_for_its_return(up, name)
        sent += published(up, "2/2", 150)
        wait_until(lambda: list((root / "training").glob("*/checkpoints/*.json")), "a checkpoint", MODEL_DEADLINE_S)
        up.kill()  # in the middle of the training run
        wait_until(lambda: not processes_under(root), "everything is gone")
        runs = sorted(path.name for path in (root / "training").iterdir())

        up.start()
        up.ready()
        wait_until(lambda: RolloutLog(root).latest(), "the first model is champion", MODEL_DEADLINE_S)
        wait_until(lambda: taken_in(root) == sent, "all documents", MODEL_DEADLINE_S)
        model = Registry(root).manifest(1)
        assert model.training.run_id == runs[0], "the killed run was taken up, not begun anew"
        positions = offsets_of(root)
        assert len(positions) == len(set(positions)) == sent == sum(Dataset(root).manifest.totals.outcomes.values())
        assert up.terminate() == 0
        wait_until(lambda: not processes_under(root), "everything is gone")
        run_ids = [Registry(root).manifest(version).training.run_id for version in Registry(root).versions()]
        assert len(run_ids) == len(set(run_ids))
