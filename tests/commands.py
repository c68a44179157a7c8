"""The ``headrace`` command as a child process that starts at once: forked from a server which has imported what is slow to import.

A child has its own process id, environment, folder and output files; it is killed, suspended and waited for as any other, and dies with
the test run. What starts threads when it is imported (Polars, Ray, torch) is left for the child: threads do not survive a fork.
"""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

from pipelines.runtime.bound import die_with_parent

IMPORTED = (
    "awkward",  # which numba loads, as it loads scipy where that is installed
    "kafka.admin",
    "numba",
    "opentelemetry.sdk.trace",
    "pandas",
    "pipelines.dataset.dataset",
    "pipelines.dataset.merging",
    "pipelines.dedup.resolve",
    "pipelines.ingest.announcer",
    "pipelines.kafka.events",
    "pipelines.lineage.openlineage",
    "pipelines.quality.scoring",
    "pipelines.runtime.tracing",
    "pipelines.steps.decode",
    "pipelines.steps.quality",
    "pipelines.tokenizers.engine.fast",
    "prometheus_client",
    "pyarrow.compute",
    "pyarrow.parquet",
    "rich.console",
    "schemas.settings_sources",
    "scipy.linalg.cython_blas",
    "tests.warm_start",
)
TIMEOUT_S = 120.0
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(list(IMPORTED))


class Command:
    """A running ``headrace``; the methods are those of ``subprocess.Popen``."""

    def __init__(self, arguments: Sequence[str], cwd: Path, environment: Mapping[str, str], output: Path) -> None:
        """``output``: a folder in which its standard output and error are kept; made if it is missing."""
        output.mkdir(parents=True, exist_ok=True)
        self.args = ["headrace", *arguments]
        self._files = [Path(mkdtemp(dir=output)) / name for name in ("stdout", "stderr")]
        self._process = _SERVER.Process(target=_run, args=(list(arguments), cwd, dict(environment), self._files))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit code, minus the signal's number if one killed it, None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The same."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end. Raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end, and all that it wrote. Raises subprocess.TimeoutExpired."""
        self.wait(timeout)
        stdout, stderr = (file.read_text() if file.exists() else "" for file in self._files)
        return stdout, stderr

    def send_signal(self, number: int) -> None:
        """Nothing happens if it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


def run_command(arguments: Sequence[str], cwd: Path, environment: Mapping[str, str] = os.environ) -> "subprocess.CompletedProcess[str]":
    """The command, to its end. Raises subprocess.TimeoutExpired after TIMEOUT_S, and the command is killed."""
    with TemporaryDirectory() as output:
        command = Command(arguments, cwd, environment, Path(output))
        try:
            out, err = command.communicate(TIMEOUT_S)
        finally:
            command.kill()
    return subprocess.CompletedProcess(command.args, command.wait(), out, err)


def _run(arguments: list[str], cwd: Path, environment: dict[str, str], files: list[Path]) -> None:
    """In the child: become the command."""
    die_with_parent()
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = ["headrace", *arguments]
    from ops.cli.main import main

    sys.exit(main(arguments))
