"""The embedded broker as a child process of whoever needs one.

The child gets its settings as one JSON line on standard input and answers with one JSON line on standard output once it serves. It lives
no longer than its parent: the standard input stays open, and when the parent is gone, in whatever way, the child reads its end and stops;
on Linux the kernel also sends it SIGTERM (``PR_SET_PDEATHSIG``, armed only from a main thread, because it fires when the *thread* that
started the child ends).
"""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from schemas.errors import BrokerError
from schemas.settings import Settings

START_TIMEOUT_S = 60.0
"""A folder with many GB takes seconds to recover."""
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
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def __enter__(self) -> "BrokerProcess":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


def start_broker(settings: Settings, *, listen: str | None = None, data_dir: Path | None = None) -> BrokerProcess:
    """Start a broker as a child process and wait until it serves.

    ``listen`` defaults to ``broker.listen`` (port 0: a free one), ``data_dir`` to ``<root>/broker``; the log is ``broker.log`` in there.
    Raises BrokerError with the child's reason if it does not come up.
    """
    folder = (data_dir or Path(settings.root) / "broker").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    orders = {
        "settings": settings.broker.model_dump(mode="json"),
        "listen": listen or settings.broker.listen,
        "data_dir": str(folder),
        "log_level": settings.telemetry.log_level,
        "die_with_thread_of": os.getpid() if threading.current_thread() is threading.main_thread() else None,
    }
    child = _spawn(folder)
    try:
        return BrokerProcess(child, _hand_over(child, orders, folder))
    except BaseException:
        BrokerProcess(child, "").kill()
        raise


def _spawn(folder: Path) -> "subprocess.Popen[bytes]":
    """The child in a session of its own: Ctrl-C at the terminal is the parent's to handle."""
    repository = Path(__file__).resolve().parents[2]
    path = os.pathsep.join(filter(None, [str(repository), os.environ.get("PYTHONPATH", "")]))
    with (folder / LOG_FILE).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "ops.broker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,
        )


def _hand_over(child: "subprocess.Popen[bytes]", orders: dict[str, Any], folder: Path) -> str:
    assert child.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # a child that died at once is reported below
        child.stdin.write(json.dumps(orders).encode() + b"\n")
        child.stdin.flush()
    answer = _read_line(child)
    if "bootstrap_servers" not in answer:
        raise BrokerError(answer.get("error") or f"the embedded broker did not come up; its log is {folder / LOG_FILE}")
    return str(answer["bootstrap_servers"])


def _read_line(child: "subprocess.Popen[bytes]") -> dict[str, Any]:
    """The child's one line; {} if it ends or says nothing in time."""
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
    return dict(json.loads(line)) if line.endswith(b"\n") else {}


def die_with_parent(parent_pid: int | None) -> None:
    """Ask the Linux kernel for SIGTERM when the thread that started us ends; elsewhere the pipe has to do."""
    if parent_pid is None or not sys.platform.startswith("linux"):
        return
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGTERM)
    if os.getppid() != parent_pid:  # it ended before we could ask
        os.kill(os.getpid(), signal.SIGTERM)
