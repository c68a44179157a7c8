"""A backlog makes Ray's autoscaler add nodes of ingest's own kind; idle nodes are removed. The machines are those of Ray's fake provider."""

import itertools
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pipelines.runtime.ports import free_ports
from tests.broker_process import BrokerProcess
from tests.ingest_harness import Ingest, sample_records, state, wait_until
from tests.processes import command_line, descendants, parents

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore")]  # Ray's
INGEST_NODE = "ingest_node"
NODE_TYPES = {
    "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
    "cpu": {"resources": {"CPU": 1, INGEST_NODE: 1, "object_store_memory": 100 * 2**20}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    "gpu": {"resources": {"CPU": 4, "GPU": 1, "object_store_memory": 100 * 2**20}, "node_config": {}, "min_workers": 0, "max_workers": 2},
}
HEAD_ID = f"{'f' * 51}00000"
PROVIDER = {
    "type": "external",  # under its own name, Ray looks for a file that its wheel lacks
    "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
    "launch_multiple": True,
    "disable_node_updaters": True,
}
CONFIGURATION = {
    "cluster_name": "fake",
    "max_workers": 4,
    "available_node_types": NODE_TYPES,
    "head_node_type": "ray.head.default",
    "upscaling_speed": 10.0,
    "idle_timeout_minutes": 1.0,  # a worker process needs longer to start on a busy machine than a few seconds
    **{name: {} for name in ("docker", "auth", "file_mounts")},
    **{f"{who}_commands": [] for who in ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")},
    **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
    "file_mounts_sync_continuously": False,
}


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a Ray head without CPUs, whose autoscaler may start nodes."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    with tempfile.TemporaryDirectory(prefix="hr-", dir="/tmp", ignore_cleanup_errors=True) as folder:  # Ray's sockets need a short path
        port, client, agent, metrics = free_ports(4)
        configuration = Path(folder) / "cluster.json"
        provider = PROVIDER | {"gcs_address": f"127.0.0.1:{port}", "head_node_id": HEAD_ID}
        configuration.write_text(json.dumps(CONFIGURATION | {"provider": provider}))
        options = {
            "node-ip-address": "127.0.0.1",
            "port": port,
            "ray-client-server-port": client,
            "dashboard-agent-listen-port": agent,
            "metrics-export-port": metrics,
            "num-cpus": 0,
            "object-store-memory": 100 * 2**20,
            "include-dashboard": "false",
            "temp-dir": f"{folder}/ray",
            "autoscaling-config": configuration,
        }
        command = [sys.executable, "-P", "-m", "ray.scripts.scripts", "start", "--head", "--disable-usage-stats"]
        environment = os.environ | {
            "RAY_FAKE_CLUSTER": "1",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_enable_autoscaler_v2": "1",  # the older one takes fake nodes, which share an address, for dead
            "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        }
        try:
            subprocess.run([*command, *(f"--{name}={value}" for name, value in options.items())], env=environment, check=True, capture_output=True)
            yield f"127.0.0.1:{port}"
        finally:
            kill_the_cluster_of(folder)


def kill_the_cluster_of(folder: str) -> None:
    """Ray's processes name their cluster's folder in their command lines, or have a parent that does."""
    named = [pid for pid in parents() if folder in command_line(pid)]
    for pid in (*descendants(*named), *named):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


WATCH = f"""
import ray, sys, time
ray.init(address=sys.argv[1], namespace="headrace", log_to_driver=False)
while True:
    living = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    print(*sorted("gpu" if "GPU" in has else "cpu" if "{INGEST_NODE}" in has else "head" for has in living), flush=True)
    time.sleep(0.2)
"""
"""Prints four times a second which nodes are alive. It is a process of its own, because Ray reads its token once per process."""


def test_a_backlog_adds_ingest_nodes_no_gpu_node_and_idleness_removes_them(
    broker: BrokerProcess, address: str, topic_prefix: str, tmp_path: Path
) -> None:
    on_cluster = {"ingest.runner": "ray", "ray.address": address, "ray.ingest_nodes": INGEST_NODE, "ingest.slice_records": 10}
    ingest = Ingest(tmp_path / "data", broker.bootstrap_servers, topic_prefix, on_cluster)
    ingest.publish(sample_records(110))  # one version
    seen = tmp_path / "seen"
    with seen.open("w") as output, subprocess.Popen([sys.executable, "-P", "-c", WATCH, address], stdout=output) as watch:
        try:
            wait_until(lambda: bool(seen.read_text()), "the watch", timeout_s=120)
            done = ingest.run("--once")
            assert done.returncode == 0, done.stderr
            wait_until(lambda: seen.read_text().endswith("\nhead\n"), "idle nodes to go", timeout_s=180)
        finally:
            watch.kill()
    assert "no node of the cluster has the resource 'ingest_node', which ray.ingest_nodes names" in done.stderr
    changes = [nodes for nodes, _ in itertools.groupby(seen.read_text().splitlines())]
    assert changes[0] == changes[-1] == "head" and "cpu head" in changes
    assert not any("gpu" in nodes for nodes in changes)
    reference = Ingest(tmp_path / "local", broker.bootstrap_servers, topic_prefix)
    reference.once()
    assert state(ingest.root) == state(reference.root)
