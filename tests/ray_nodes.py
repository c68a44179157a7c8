"""A Ray cluster of several nodes on this machine: `ray start` as on hosts, a folder of its own, ended by process ids."""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines.runtime.cluster import RAY_ENVIRONMENT
from pipelines.runtime.ports import free_ports
from tests.processes import command_line, descendants, parents

RAY = (sys.executable, "-P", "-m", "ray.scripts.scripts", "start")
STORE_BYTES = 100 * 2**20
START_TIMEOUT_S = 240


@dataclass(frozen=True)
class Node:
    """A worker node, held by `ray start --block`."""

    process: "subprocess.Popen[bytes]"

    def take_away(self) -> None:
        """SIGTERM, as from whatever stops a machine: Ray drains the node for the time that ``Nodes.add`` gave it, then ends it."""
        self.process.terminate()

    def has(self, pid: int) -> bool:
        """Whether the process is one of this node's."""
        return pid in descendants(self.process.pid)

    def wait_until_gone(self, timeout_s: float) -> None:
        """Raises TimeoutExpired."""
        self.process.wait(timeout_s)


class Nodes:
    """The cluster. Its head has no CPU; ``run_cluster`` makes it."""

    def __init__(self, address: str, folder: Path) -> None:
        self.address = address
        self.folder = folder
        self.nodes: list[Node] = []

    def add(self, resources: Mapping[str, float], num_cpus: int = 1, grace_s: float = 30.0, host: str | None = None) -> Node:
        """Start one more node, on a loopback address of its own; one that gets SIGTERM has so much time. Does not wait for it.

        A program joins a node that has its own address, 127.0.0.1: so it must be given to no node that goes while the program runs.
        """
        agent, metrics = free_ports(2)
        options = {
            "address": self.address,
            "node-ip-address": host or f"127.0.0.{len(self.nodes) + 2}",
            "num-cpus": num_cpus,
            "resources": json.dumps(dict(resources)),
            "object-store-memory": STORE_BYTES,
            "dashboard-agent-listen-port": agent,
            "metrics-export-port": metrics,
            "temp-dir": f"{self.folder}/ray",
        }
        environment = os.environ | RAY_ENVIRONMENT | {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": f"{grace_s:g}"}
        log = (self.folder / f"node-{len(self.nodes)}.log").open("wb")
        with log:
            command = [*RAY, "--block", "--disable-usage-stats", *(f"--{name}={value}" for name, value in options.items())]
            self.nodes.append(Node(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)))
        return self.nodes[-1]

    def logs(self, text: str) -> bool:
        """Whether a process of the cluster has logged this."""
        return any(text in path.read_text(errors="replace") for path in self.folder.glob("ray/session_2*/logs/**/*") if path.is_file())


@contextmanager
def run_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    """A head; all that belongs to the cluster ends with the block."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    with tempfile.TemporaryDirectory(prefix="hr-", dir="/tmp", ignore_cleanup_errors=True) as folder:  # Ray's sockets need a short path
        port, client, agent, metrics = free_ports(4)
        options = {
            "node-ip-address": "127.0.0.1",
            "port": port,
            "ray-client-server-port": client,
            "dashboard-agent-listen-port": agent,
            "metrics-export-port": metrics,
            "num-cpus": 0,
            "object-store-memory": STORE_BYTES,
            "include-dashboard": "false",
            "temp-dir": f"{folder}/ray",
        }
        command = [*RAY, "--head", "--disable-usage-stats", *(f"--{name}={value}" for name, value in options.items())]
        cluster = Nodes(f"127.0.0.1:{port}", Path(folder))
        try:
            subprocess.run(command, env=os.environ | RAY_ENVIRONMENT, check=True, capture_output=True, timeout=START_TIMEOUT_S)
            yield cluster
        finally:
            _kill_all_of(folder, [node.process for node in cluster.nodes])


def _kill_all_of(folder: str, holders: "list[subprocess.Popen[bytes]]") -> None:
    """Ray's processes name their cluster's folder in their command lines, or have a parent that does."""
    named = [pid for pid in parents() if folder in command_line(pid)] + [holder.pid for holder in holders if holder.poll() is None]
    for pid in (*descendants(*named), *named):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for holder in holders:
        holder.wait()
