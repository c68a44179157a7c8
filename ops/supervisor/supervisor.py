"""Keeps the services alive: starts them in order, restarts what dies with growing pauses, stops them in reverse order.

    waiting --needs are ready, pause is over--> starting --ready--> ready --WRONG_USAGE, MAX_REFUSALS times in a row--> down
       ^----------------- exit, or a service in dies_with went away ------'

Invariants: a service starts only while everything it needs is ready. One that exits MAX_FIRST_ATTEMPTS times before it was ever ready ends
the supervisor with the log's last lines, unless ``retries_before_ready`` is set. One that was ready once is restarted without limit, unless it
exits with WRONG_USAGE: its settings stay those with which it was started.
One that exits so before it was ever ready ends the supervisor, with its last line and its code. One that was ready, and then exits so
MAX_REFUSALS times in a row (a port may be taken for a moment), stays down if a service with ``serves_users`` was ready once; else it ends the
supervisor too.
What goes wrong with one service, whatever it is, costs that service a pause and the others nothing; the supervisor never ends
without saying why (``raise_failure``). All children are started by the one thread that runs ``run``, and die with it.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from pipelines.runtime.backoff import pause_s
from pipelines.runtime.child import Child, tail
from schemas.errors import WRONG_USAGE, ServiceFailed

_log = logging.getLogger(__name__)
TICK_S = 0.1
SHORT_STOP_S = 1.0
MAX_BACKOFF_S = 30.0
STABLE_S = 30.0
"""A service that was up this long starts again without a pause worth the name."""
MAX_FIRST_ATTEMPTS = 3
MAX_REFUSALS = 4
REFUSAL_RESET_S = 3600.0
"""A refusal after running this long counts as the first."""


class Status(StrEnum):
    """What a service is doing."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    DOWN = "down"
    """It refused, and is not started again."""
    STOPPED = "stopped"


@dataclass(frozen=True)
class Service:
    """What to keep running."""

    name: str
    command: tuple[str, ...]
    is_ready: Callable[[], bool]
    """Whether it does its work. Asked about twice a second from start until it says yes, unless ``says_ready`` is set; must return within a
    second or two.
    """
    is_alive: Callable[[], bool] = lambda: False
    """Whether a start that takes long is going well: such a start is not given up."""
    needs: tuple[str, ...] = ()
    """Services that must be ready before this one starts."""
    dies_with: tuple[str, ...] = ()
    """Services without whose very process this one is useless: when they go, it is stopped and started again after them."""
    told: str | None = None
    """Prefix of log lines that are passed on to the listener."""
    says_ready: tuple[str, ...] = ()
    """Prefixes of log lines with which it says that it is ready; ``is_ready`` is not asked."""
    serves_users: bool = False
    """Whether it must go on when another one refuses."""
    retries_before_ready: bool = False
    """Whether it is restarted without limit although it was never ready; exit code WRONG_USAGE excepted."""
    environment: Mapping[str, str] = field(default_factory=dict)
    start_timeout_s: float = 180.0
    """A start that takes longer, and does not show that it is alive, is stopped and tried again."""
    stop_timeout_s: float = 15.0
    """Between SIGTERM and SIGKILL."""


@dataclass
class _Running:
    """A service and what has become of it."""

    service: Service
    status: Status = Status.WAITING
    child: Child | None = None
    started_at: float = 0.0
    alive_at: float = 0.0
    next_start: float = 0.0
    next_check: float = 0.0
    log_read: int = 0
    """Bytes of the log that were searched for the lines of ``told`` and ``says_ready``."""
    has_said_ready: bool = False
    failures: int = 0
    refusals: int = 0
    """In a row."""
    was_ready: bool = False


Listener = Callable[[str, Status, str], None]
"""Called with (service, status, detail) on each change, from the supervisor's thread."""


class Supervisor:
    """Runs services. ``listener`` must not block."""

    def __init__(self, services: Sequence[Service], logs: Path, backoff_s: float, listener: Listener) -> None:
        self._services = {service.name: _Running(service) for service in services}
        self._logs = logs
        self._backoff_s = backoff_s
        self._listener = listener
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._failure: ServiceFailed | None = None

    def run(self) -> None:
        """Keep everything alive until ``stop`` is called or a service cannot be started at all; then stop everything."""
        try:
            while not self._stop.wait(TICK_S):
                self.tick(time.monotonic())
        except ServiceFailed as error:
            self._failure = error
        except Exception as error:  # noqa: BLE001  whatever it was, everything is stopped now, and whoever started it must hear why
            _log.exception("the supervisor itself failed")
            self._failure = ServiceFailed(f"the supervisor itself failed ({type(error).__name__}: {error}); everything was stopped")
        finally:
            self._stop_all()
            with self._changed:
                self._changed.notify_all()

    def stop(self) -> None:
        """Ask ``run`` to stop everything and return."""
        self._stop.set()

    def status(self, name: str) -> Status:
        """What a service is doing."""
        return self._services[name].status

    def pid(self, name: str) -> int | None:
        """Process id of a service that runs."""
        child = self._services[name].child
        return child.pid if child else None

    def raise_failure(self) -> None:
        """Raise ServiceFailed if a service could not be started at all."""
        if self._failure is not None:
            raise self._failure

    def wait_ready(self, names: Sequence[str], stop: threading.Event) -> bool:
        """Block until all the named services are ready; False if ``stop`` is set first. Raises ServiceFailed."""
        while not stop.is_set():
            self.raise_failure()
            with self._changed:
                if all(self._services[name].status is Status.READY for name in names):
                    return True
                self._changed.wait(TICK_S)
        return False

    def tick(self, now: float) -> None:
        """Move every service one step on. Raises ServiceFailed."""
        for running in self._services.values():
            try:
                self._move(running, now)
            except ServiceFailed:
                raise
            except Exception as error:  # noqa: BLE001  no memory for a process, a probe that raises: one service's trouble ends no other
                self._troubled(running, error, now)

    def _move(self, running: _Running, now: float) -> None:
        if running.child is not None and (code := running.child.poll()) is not None:
            self._ended(running, code, now)
        elif running.status is Status.WAITING:
            self._maybe_start(running, now)
        elif running.status is Status.STARTING:
            self._maybe_ready(running, now)
        if (running.service.told is not None or running.service.says_ready) and running.child is not None:
            self._read_log(running)

    def _read_log(self, running: _Running) -> None:
        """Pass on what it says in the new complete lines of its log."""
        service = running.service
        path = self._logs / f"{service.name}.log"
        size = path.stat().st_size if path.exists() else 0
        running.log_read = running.log_read if running.log_read <= size else 0  # it was rotated
        if size == running.log_read:
            return
        with path.open("rb") as file:
            file.seek(running.log_read)
            new, newline, _ = file.read().rpartition(b"\n")
        running.log_read += len(new) + len(newline)
        for line in new.decode("utf-8", "replace").split("\n"):
            running.has_said_ready |= line.startswith(service.says_ready)
            if service.told is not None and line.startswith(service.told):
                self._change(running, running.status, line)

    def _troubled(self, running: _Running, error: Exception, now: float) -> None:
        """Something that is no exit of the service: try the step again after a pause."""
        running.failures += 1
        pause = pause_s(self._backoff_s, running.failures, MAX_BACKOFF_S)
        running.next_start = running.next_check = now + pause
        if running.child is None:
            running.status = Status.WAITING
        _log.error("%s: %s: %s; trying again in %.0f s", running.service.name, type(error).__name__, error, pause, exc_info=error)

    def _maybe_start(self, running: _Running, now: float) -> None:
        service = running.service
        if service.serves_users and (down := next((name for name in service.needs if self._services[name].status is Status.DOWN), None)):
            log = self._logs / f"{down}.log"
            ended = f"{down} exited with code {WRONG_USAGE} (wrong settings)"
            raise ServiceFailed(f"{service.name} cannot start: {ended}. Correct the error in {log}, then start `headrace up` again", WRONG_USAGE)
        if now < running.next_start or any(self._services[name].status is not Status.READY for name in service.needs):
            return
        log = self._logs / f"{service.name}.log"
        running.log_read = log.stat().st_size if log.exists() else 0
        running.child = Child(service.command, log, environment=service.environment)
        running.started_at = now
        running.has_said_ready = False
        self._change(running, Status.STARTING, f"process {running.child.pid}")

    def _maybe_ready(self, running: _Running, now: float) -> None:
        assert running.child is not None
        if now >= running.next_check:
            running.next_check = now + 0.5
            if running.has_said_ready if running.service.says_ready else running.service.is_ready():
                running.was_ready = True
                self._change(running, Status.READY, f"after {now - running.started_at:.1f} s")
                return
            if running.service.is_alive():
                running.alive_at = now
        if now - max(running.started_at, running.alive_at) > running.service.start_timeout_s:
            code = running.child.stop(running.service.stop_timeout_s)
            self._ended(running, code, now)

    def _ended(self, running: _Running, code: int, now: float) -> None:
        """A child is gone: take its dependents down, and plan the next start."""
        assert running.child is not None
        running.child.close()
        running.child = None
        stable = running.status is Status.READY and now - running.started_at > STABLE_S
        running.failures = 1 if stable else running.failures + 1
        running.refusals = 0 if code != WRONG_USAGE else 1 if now - running.started_at > REFUSAL_RESET_S else running.refusals + 1
        name, log = running.service.name, self._logs / f"{running.service.name}.log"
        if running.refusals and (not running.was_ready or running.refusals >= MAX_REFUSALS):
            self._refused(running, log)
            return
        if not running.was_ready and running.failures >= MAX_FIRST_ATTEMPTS and not running.service.retries_before_ready:
            raise ServiceFailed(f"{name} does not start: {_ending(code, log)}; the end of {log}:\n{tail(log)}")
        pause = pause_s(self._backoff_s, running.failures, MAX_BACKOFF_S)
        running.next_start = now + pause
        self._change(running, Status.WAITING, f"{_ending(code, log)}, starting again in {pause:.0f} s")
        self._stop_dependents(name)

    def _refused(self, running: _Running, log: Path) -> None:
        """Starting it again cannot help. Marks it DOWN if a service with ``serves_users`` was ready once; else raises ServiceFailed."""
        name = running.service.name
        others = [other for other in self._services.values() if other is not running and other.status is not Status.DOWN]
        if not running.was_ready or not any(other.service.serves_users and other.was_ready for other in others):
            ended = f"{name} exited with code {WRONG_USAGE} (wrong settings): {tail(log, num_lines=1)}"
            raise ServiceFailed(f"{ended}. Correct this and start `headrace up` again. Log: {log}", WRONG_USAGE)
        ending = _ending(WRONG_USAGE, log)
        self._change(running, Status.DOWN, f"{ending}; `up` does not start it again. Correct the error, then restart `headrace up`")
        self._stop_dependents(name)

    def _stop_dependents(self, name: str) -> None:
        for other in self._services.values():
            if name in other.service.dies_with and other.child is not None:
                other.child.stop(SHORT_STOP_S)  # it may wait for ever for what is gone
                other.child.close()
                other.child = None
                self._change(other, Status.WAITING, f"stopped because {name} went away")

    def _stop_all(self) -> None:
        for running in reversed(self._services.values()):
            if running.child is not None:
                self._let_end(running.service, running.child)
                running.child.close()
                running.child = None
            self._change(running, Status.STOPPED, "")

    def _let_end(self, service: Service, child: Child) -> None:
        """Stop it; without patience if what it dies with has ended before it, as where everything gets a signal at once."""
        child.terminate()
        deadline = time.monotonic() + service.stop_timeout_s
        while child.poll() is None and time.monotonic() < deadline:
            if any(other.child is not None and other.child.poll() is not None for other in map(self._services.__getitem__, service.dies_with)):
                child.stop(SHORT_STOP_S)
            time.sleep(TICK_S)
        child.kill()

    def _change(self, running: _Running, status: Status, detail: str) -> None:
        with self._changed:
            running.status = status
            self._changed.notify_all()
        try:
            self._listener(running.service.name, status, detail)
        except Exception:  # noqa: BLE001  a terminal that is gone, for example: whoever listens must not be able to stop the services
            _log.exception("a change of %s could not be reported", running.service.name)


def _ending(code: int, log: Path) -> str:
    return f"killed by signal {-code}" if code < 0 else f"exited with code {code} ({tail(log, num_lines=1)})"
