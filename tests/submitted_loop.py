"""A Ray head on this machine, with its dashboard, and `headrace up` on it as a submitted job: the commands of docs/cluster.md on one host."""

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from ops.supervisor.ray_head import choose_ports, head_command, head_environment
from pipelines.runtime.ports import free_ports
from schemas.settings import RaySettings
from tests.processes import command_line, descendants, parents

START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 60.0
JOB_NAME = "headrace up"
SETTINGS: Mapping[str, object] = {
    "ray.address": "auto",
    "ingest.writer": "tasks",  # as on several hosts
    "ingest.slice_records": 50,
    "ingest.min_batch_records": 800,
    "ingest.max_wait_s": 20,
    "ingest.follow_interval_s": 0.5,
    "ingest.min_commit_interval_s": 0,
    "tokenizer.vocab_size": 1024,
    "tokenizer.min_training_bytes": 0,
    "packing.sequence_length": 128,
    "training.max_steps": 120,
    "training.checkpoint_every_steps": 30,
    "training.evaluate_rows": 32,
    "training.global_batch_rows": 8,
    "loop.min_new_tokens": 60_000,
    "rollout.canary_fraction": 0.5,
}
Found = TypeVar("Found")


class SubmittedLoop:
    """Use it in a ``with`` block; at its end all processes are gone. The token is one of its own."""

    def __init__(self, root: Path, bootstrap_servers: str, settings: Mapping[str, object] | None = None) -> None:
        self.root = root
        self.token = secrets.token_hex(32)
        self._bootstrap_servers = bootstrap_servers
        self._settings = {**SETTINGS, "serving.port": free_ports(1)[0], **(settings or {})}
        (port,) = free_ports(1)
        self._ray = RaySettings(dashboard_port=port)
        self._ports = choose_ports(self._ray)
        self.submission = ""

    @property
    def url(self) -> str:
        """Of the dashboard."""
        assert self._ports.dashboard_url is not None
        return self._ports.dashboard_url

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="hr-", dir="/tmp", ignore_cleanup_errors=True)  # Ray's sockets need a short path
        self._environment = os.environ | head_environment(self._ports) | {"RAY_AUTH_TOKEN": self.token}
        output = (Path(self._folder.name) / "head.log").open("wb")
        command = head_command(self._ray, self._ports, Path(self._folder.name) / "ray")
        self._head = subprocess.Popen(command, env=self._environment, stdout=output, stderr=output, cwd=self._folder.name)
        output.close()
        try:
            self.wait(lambda: self.ask("/api/jobs/") == [] or None, "the dashboard", START_TIMEOUT_S)
            self.submission = self._submit()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()

    def _submit(self) -> str:
        """As a person does it."""
        where = ["--root", str(self.root), "--bootstrap-servers", self._bootstrap_servers]
        flags = [word for name, value in self._settings.items() for word in ("--set", f"{name}={value}")]
        submit = [sys.executable, "-P", "-m", "ray.scripts.scripts", "job", "submit", "--address", self.url, "--no-wait"]
        submit += ["--metadata-json", json.dumps({"job_name": JOB_NAME}), "--"]
        words = [*submit, sys.executable, "-P", "-m", "ops.cli.main", "up", *where, *flags]
        done = subprocess.run(words, env=self._environment, capture_output=True, text=True, timeout=START_TIMEOUT_S, check=True)
        found = re.search(r"raysubmit_\w+", done.stdout)
        assert found, done.stdout + done.stderr
        return found[0]

    def stop(self) -> str:
        """Stop the job, as `ray job stop` does; returns what it has become."""
        httpx.post(f"{self.url}/api/jobs/{self.submission}/stop", headers=self._headers, timeout=60.0).raise_for_status()

        def ended() -> str | None:
            status = str(self.ask(f"/api/jobs/{self.submission}")["status"])
            return None if status == "RUNNING" else status

        return self.wait(ended, "the end of the job", STOP_TIMEOUT_S)

    def run(self, program: str) -> str:
        """What a Python program prints that runs on the head, as one more driver."""
        words = [sys.executable, "-P", "-c", program]
        done = subprocess.run(words, env=self._environment, capture_output=True, text=True, timeout=START_TIMEOUT_S, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def _end(self) -> None:
        named = [pid for pid in parents() if self._folder.name in command_line(pid)]
        for pid in (*descendants(self._head.pid, *named), *named, self._head.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._head.wait()
        self._folder.cleanup()

    @property
    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def ask(self, path: str, **parameters: Any) -> Any:
        """What the dashboard's HTTP API answers: JSON."""
        response = httpx.get(f"{self.url}{path}", params=parameters, headers=self._headers, timeout=60.0)
        response.raise_for_status()
        return response.json()

    def listed(self, kind: str) -> list[dict[str, Any]]:
        """All actors or tasks that Ray's state API knows."""
        return list(self.ask(f"/api/v0/{kind}", detail=True, limit=10_000)["data"]["result"]["result"])

    def jobs(self) -> dict[str, dict[str, Any]]:
        """The Jobs page, by name."""
        return {str(job["metadata"].get("job_name")): job for job in self.ask("/api/jobs/")}

    def job_log(self) -> str:
        """What `ray job logs` prints."""
        return str(self.ask(f"/api/jobs/{self.submission}/logs")["logs"])

    def log(self, **of: str) -> str:
        """The standard error of a task (``task_id``) or an actor (``actor_id``)."""
        response = httpx.get(f"{self.url}/api/v0/logs/file", params={**of, "suffix": "err", "lines": "-1"}, headers=self._headers, timeout=60.0)
        response.raise_for_status()
        return response.text

    def wait(self, look: Callable[[], Found | None], what: str, timeout_s: float) -> Found:
        """What ``look`` finds as soon as it finds something; an answer that does not come is nothing."""
        deadline = time.monotonic() + timeout_s
        while True:
            with suppress(httpx.TransportError, httpx.HTTPStatusError):
                if (found := look()) is not None:
                    return found
            assert time.monotonic() < deadline, f"waited {timeout_s:g} s for {what}\n{self._logs()}"
            time.sleep(0.5)

    def _logs(self) -> str:
        logs = sorted((self.root / "logs").glob("*.log"))
        job = self.job_log() if self.submission else ""
        return "\n".join([f"== {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in logs] + [f"== job\n{job[-3000:]}"])
