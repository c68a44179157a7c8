"""The embedded broker for tests and benchmarks: ``headrace broker``, the command that ships, as a child process.

Its data is in ``<root>/broker``, its log in ``<root>/broker.log``. The child is bound to the thread that started it and ends with it, also when that
is killed (pipelines/runtime/bound.py).
"""

import contextlib
import json
import os
import selectors
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from pipelines.runtime.bound import bound
from schemas.errors import BrokerError
from schemas.settings import Settings

START_TIMEOUT_S = 120.0
"""A folder with many GB takes seconds to recover, and a busy machine seconds to import."""
STOP_TIMEOUT_S = 20.0
LOG_FILE = "broker.log"


class BrokerProcess:
    """A running broker that this process started."""

    def __init__(self, child: "subprocess.Popen[bytes]", bootstrap_servers: str) -> None:
        self._child = child
        self.bootstrap_servers = bootstrap_servers

    @property
    def pid(self) -> int:
        """Process id of the broker."""
        return self._child.pid

    @property
    def is_running(self) -> bool:
        """Whether the process lives."""
        return self._child.poll() is None

    def stop(self) -> None:
        """Stop cleanly (SIGTERM) and wait; SIGKILL if that takes too long. Does nothing to a broker that has ended."""
        self._child.terminate()
        try:
            self._child.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
        self._reap()

    def kill(self) -> None:
        """SIGKILL it: what was acknowledged is still there at the next start."""
        self._child.kill()
        self._reap()

    def _reap(self) -> None:
        self._child.wait()
        if self._child.stdout is not None:
            self._child.stdout.close()

    def __enter__(self) -> "BrokerProcess":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


def start_broker(settings: Settings, *, root: Path, listen: str = "127.0.0.1:0") -> BrokerProcess:
    """Start ``headrace broker`` with these broker settings and wait until it serves. Raises BrokerError with its reason if it does not come up."""
    root = root.resolve()
    root.mkdir(parents=True, exist_ok=True)
    chosen = {"broker": settings.broker, "telemetry": settings.telemetry}
    flags = [f"--set={section}.{name}={_flag(value)}" for section, part in chosen.items() for name, value in part.model_dump(mode="json").items()]
    command = [sys.executable, "-P", "-m", "ops.cli.main", "broker", "--listen", listen, "--root", str(root), "--json", *flags]
    log_start = (root / LOG_FILE).stat().st_size if (root / LOG_FILE).exists() else 0
    with (root / LOG_FILE).open("ab") as log:
        child = subprocess.Popen(bound(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, cwd=root, start_new_session=True)
    try:
        return BrokerProcess(child, _address(child, root / LOG_FILE, log_start))
    except BaseException:
        BrokerProcess(child, "").kill()
        raise


def _flag(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _address(child: "subprocess.Popen[bytes]", log: Path, log_start: int) -> str:
    line = _read_line(child)
    if not line:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(STOP_TIMEOUT_S)
        said = log.read_bytes()[log_start:].decode().splitlines()
        raise BrokerError(said[-1] if said else f"the broker did not come up in {START_TIMEOUT_S} s; its log is {log}")
    return str(json.loads(line)["bootstrap_servers"])


def _read_line(child: "subprocess.Popen[bytes]") -> bytes:
    """The child's first line; empty if it ends or says nothing in time."""
    assert child.stdout is not None
    deadline = time.monotonic() + START_TIMEOUT_S
    line = b""
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while not line.endswith(b"\n") and selector.select(max(deadline - time.monotonic(), 0)):
            chunk = os.read(child.stdout.fileno(), 4096)
            if not chunk:
                break
            line += chunk
    return line if line.endswith(b"\n") else b""
