"""The soak's child processes, and what they hold in memory. Each is started, killed, suspended and started again under its own pid."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

STOP_TIMEOUT_S = 180.0


class Memory(NamedTuple):
    """Memory of one process at one moment."""

    at_s: float
    """Since the soak began."""
    age_s: float
    """Since the process was started."""
    start_number: int
    pss_mb: float
    anonymous_mb: float


class Child:
    """A command that runs until somebody ends it; ``start`` after its end runs it again."""

    def __init__(self, name: str, command: Callable[[int], list[str]], log: Path) -> None:
        """``command`` is asked with the number of the start, from 0."""
        self.name = name
        self.num_starts = 0
        self.is_suspended = False
        self._command, self._log = command, log
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0

    @property
    def is_running(self) -> bool:
        """Whether somebody started it and nobody took note of its end."""
        return self._process is not None

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Run the command; what it says is appended to its log."""
        assert self._process is None
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command(self.num_starts), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.num_starts, self._started_at = self.num_starts + 1, time.monotonic()

    def suspend(self) -> None:
        """SIGSTOP: to the others it hangs."""
        self._send(signal.SIGSTOP)
        self.is_suspended = True

    def resume(self) -> None:
        """SIGCONT; nothing if it was killed meanwhile."""
        if self.is_suspended:
            self._send(signal.SIGCONT)
            self.is_suspended = False

    def kill(self) -> None:
        """SIGKILL; nothing if it does not run."""
        if self._process is not None:
            self._send(signal.SIGKILL)
            self.wait()

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        self.resume()
        self._send(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """Its exit code, once it has one. Raises subprocess.TimeoutExpired."""
        assert self._process is not None
        code = self._process.wait(STOP_TIMEOUT_S)
        self._process, self.is_suspended = None, False
        return code

    def ended_by_itself(self) -> int | None:
        """Exit code of a process that nobody ended; None while it runs, or is meant not to."""
        if self._process is None or self._process.poll() is None:
            return None
        return self.wait()

    def last_words(self, num_lines: int = 12) -> str:
        """The end of its log."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-num_lines:]) if self._log.exists() else ""

    def memory(self, at_s: float) -> Memory | None:
        """None if it does not run."""
        if self._process is None:
            return None
        try:
            lines = Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            return None
        found = {name: int(rest.split()[0]) / 1024 for name, _, rest in (line.partition(":") for line in lines) if rest.endswith("kB")}
        return Memory(at_s, time.monotonic() - self._started_at, self.num_starts, found.get("Pss", 0.0), found.get("Pss_Anon", 0.0))

    def _send(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            os.kill(self.pid, number)
