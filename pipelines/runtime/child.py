"""One child process: bound to this one, its output in a bounded log file.

Invariants: the child dies with its parent; the log never exceeds twice ``MAX_LOG_BYTES``; a child that ignores SIGTERM is killed with
its whole session. The thread that starts a child must live as long as the child is wanted: PR_SET_PDEATHSIG looks at the thread.
"""

import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from pipelines.runtime.bound import bound

MAX_LOG_BYTES = 8 * 2**20
"""A log is rotated to ``<name>.log.1`` at this size; the one before is dropped."""
TAIL_BYTES = 4096


class BoundedLog:
    """A log file that rotates by size. Used by one thread at a time."""

    def __init__(self, path: Path, max_bytes: int = MAX_LOG_BYTES) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._max_bytes = max_bytes
        self._file = path.open("ab")

    def write(self, data: bytes) -> None:
        """Append; the file is rotated first if it is full."""
        if self._file.tell() + len(data) > self._max_bytes and self._file.tell() > 0:
            self._file.close()
            self._path.replace(self._path.with_name(self._path.name + ".1"))
            self._file = self._path.open("ab")
        self._file.write(data)
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def tail(path: Path, num_lines: int = 5) -> str:
    """Last non-empty lines of a log, at most TAIL_BYTES; empty if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join([line for line in text.splitlines() if line.strip()][-num_lines:])


class Child:
    """A started command. Standard error, and standard output unless captured, go to ``log``."""

    def __init__(self, command: Sequence[str], log: Path, *, environment: Mapping[str, str] | None = None, capture_output: bool = False) -> None:
        self.log = log
        self._captured: IO[bytes] | None = tempfile.TemporaryFile() if capture_output else None  # noqa: SIM115 - lives as long as the child
        reader, writer = os.pipe()
        try:
            self._process = subprocess.Popen(
                bound(command),
                stdin=subprocess.DEVNULL,
                stdout=self._captured or writer,
                stderr=writer,
                env=os.environ | dict(environment or {}),
                start_new_session=True,  # Ctrl-C reaches the parent, which stops its children in order
            )
        finally:
            os.close(writer)
        self._pump = threading.Thread(target=_pump, args=(reader, BoundedLog(log)), name=f"log-{log.stem}", daemon=True)
        self._pump.start()

    @property
    def pid(self) -> int:
        """Process id of the command itself."""
        return self._process.pid

    def poll(self) -> int | None:
        """Exit code, None while it runs; negative: the signal that ended it."""
        return self._process.poll()

    def output(self) -> bytes:
        """Captured standard output so far."""
        if self._captured is None:
            return b""
        self._captured.seek(0)
        return self._captured.read()

    def terminate(self) -> None:
        """Send SIGTERM to the process."""
        self._process.terminate()

    def stop(self, timeout_s: float) -> int:
        """SIGTERM, then SIGKILL for the whole session after ``timeout_s``; returns the exit code."""
        self.terminate()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
        return self._process.wait()

    def kill(self) -> None:
        """SIGKILL for the whole session, also for what an already dead leader left in it."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Kill what is left of the session and drop the captured output."""
        self.kill()
        self._process.wait()
        if self._captured is not None:
            self._captured.close()


def _pump(reader: int, log: BoundedLog) -> None:
    """Copy until every holder of the pipe is gone."""
    with open(reader, "rb", buffering=0) as pipe:
        while data := pipe.read(65_536):
            log.write(data)
    log.close()
