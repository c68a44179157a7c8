"""The real Apache Kafka of ../shared/kafka, for tests that measure ourselves against it. Tests skip where it or Java is missing."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines.runtime.ports import free_ports

KAFKA = Path(__file__).resolve().parents[2] / "shared" / "kafka"
"""Beside the repository, not part of it."""


QUICK_JAVA = os.environ | {"JAVA_TOOL_OPTIONS": "-XX:TieredStopAtLevel=1"}
"""What lives for seconds is compiled once and simply: a third less processor time."""


@dataclass(frozen=True)
class ApacheKafka:
    """A running Apache Kafka."""

    pid: int
    bootstrap_servers: str
    log: Path


def require_kafka() -> Path:
    """The folder with Apache Kafka; skips the test, saying why, where there is none."""
    if not (KAFKA / "start").is_file():
        pytest.skip(f"no Apache Kafka in {KAFKA}")
    if shutil.which("java") is None:
        pytest.skip("no java on PATH, which Apache Kafka needs")
    return KAFKA


@contextmanager
def running_apache_kafka(
    data_dir: Path, *, port: int | None = None, settings: Sequence[str] = (), users: Sequence[str] = ()
) -> Iterator[ApacheKafka]:
    """Start Apache Kafka on a folder (kept for a restart) and stop it at the end. ``settings`` are ``name=value``; ``users`` are
    ``name=password`` and turn on SASL/SCRAM-SHA-256."""
    flags = [flag for setting in ("group.min.session.timeout.ms=1000", *settings) for flag in ("--set", setting)]
    flags += ["--users", *users] if users else []
    command = [str(require_kafka() / "start"), "--port", str(port or free_ports(1)[0]), "--dir", str(data_dir), "--foreground", *flags]
    with subprocess.Popen(command, env=QUICK_JAVA, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        line = starter.stdout.readline()
        assert line, "Apache Kafka did not start"
        ready = json.loads(line)
        try:
            yield ApacheKafka(ready["pid"], ready["bootstrap_servers"], Path(ready["log"]))
        finally:
            starter.send_signal(signal.SIGTERM)
            starter.wait(30)


def run_tool(name: str, *arguments: str, input_text: str | None = None, timeout_s: float = 60.0) -> str:
    """Run one of Apache Kafka's Java tools; returns what it wrote on both streams, and fails the test if it failed."""
    command = [str(require_kafka() / "tool"), name, *arguments]
    done = subprocess.run(
        command, env=QUICK_JAVA, input=input_text, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout_s, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)} failed with {done.returncode}:\n{done.stdout}"
    return done.stdout
