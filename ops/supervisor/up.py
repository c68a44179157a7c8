"""``run_up`` keeps the services alive and runs the loop, until it gets a signal to stop.

Two threads: one supervises the services and never touches Kafka, so that a broker that hangs cannot keep itself from being
restarted; this one runs the loop. (1) Lock the root, (2) start the services, (3) create the topics as soon as the broker answers,
(4) turn the loop; at the end (5) stop the loop's jobs, (6) stop the services in reverse order, (7) release the lock.
A SIGKILL leaves nothing running (``bound``) and nothing to repair.
"""

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ops.supervisor.ray_head import AUTHENTICATED, head_folder, prepare
from ops.supervisor.root_lock import lease_of_up, root_lock
from ops.supervisor.services import Stack, build_stack
from ops.supervisor.supervisor import Status, Supervisor
from pipelines.kafka.events import EventProducer
from pipelines.kafka.topics import ensure_topics
from pipelines.runtime.tracing import start_tracing
from pipelines.runtime.up_note import UpNote
from pipelines.storage.leases import Lease
from pipelines.storage.mirror import host_folder
from ray_apps.loop.controller import LoopController
from schemas.settings import Settings

Tell = Callable[[str], None]
"""Called with one line about everything that happens, from two threads."""
OnReady = Callable[[Stack, Supervisor], None]
"""Called once, when everything is ready for the first time."""


def run_up(settings: Settings, stop: threading.Event, tell: Tell, on_ready: OnReady) -> None:
    """Run everything until ``stop`` is set. Raises ServiceFailed if a part does not start or refuses its settings."""
    # Step 1: the only one under this root.
    with root_lock(Path(settings.root)) as lock, lease_of_up(Path(settings.root), stop.set) as lease:
        stack = build_stack(settings)
        note = UpNote(str(os.getpid()), stack.settings.kafka.bootstrap_servers)
        note.write(lock)
        if stack.starts_ray:
            os.environ.update(AUTHENTICATED)  # for whatever we start
            prepare(head_folder(Path(stack.settings.root)))

        def write_down_services(names: tuple[str, ...]) -> None:
            replace(note, down=names).write(lock)

        _Up(stack, stop, tell, on_ready, write_down_services, lease).run()
        if lease is not None:
            lease.check()


class _Up:
    """One run of the stack."""

    def __init__(
        self,
        stack: Stack,
        stop: threading.Event,
        tell: Tell,
        on_ready: OnReady,
        write_down_services: Callable[[tuple[str, ...]], None],
        lease: Lease | None,
    ) -> None:
        self._stack = stack
        self._stop = stop
        self._tell = tell
        self._on_ready = on_ready
        self._write_down_services = write_down_services
        self._lease = lease
        self._down: tuple[str, ...] = ()
        self._told_ready = False
        self._controller: LoopController | None = None
        logs = host_folder(Path(stack.settings.root)) / "logs"
        self._supervisor = Supervisor(stack.services, logs, stack.settings.loop.restart_backoff_s, self._changed)

    def run(self) -> None:
        """Steps 2 to 6."""
        # Step 2: the services, watched by a thread of their own.
        thread = threading.Thread(target=self._supervise, name="supervisor")
        thread.start()
        try:
            # Step 3: the topics.
            if not self._supervisor.wait_ready([name for name in self._stack.names if name == "broker"], self._stop):
                return
            ensure_topics(self._stack.settings)
            start_tracing(self._stack.settings.telemetry, "headrace-loop")
            # Step 4 and 5: the loop, until the end.
            with EventProducer(self._stack.settings) as events:
                self._controller = LoopController(self._stack.settings, events, self._tell, self._has_ray, self._lease)
                self._controller.run(self._stop)
        finally:
            # Step 6: the services.
            self._supervisor.stop()
            thread.join()
        self._supervisor.raise_failure()

    def _supervise(self) -> None:
        try:
            self._supervisor.run()
        finally:
            self._stop.set()

    def _has_ray(self) -> bool:
        return "ray" not in self._stack.names or self._supervisor.status("ray") is Status.READY

    def _changed(self, name: str, status: Status, detail: str) -> None:
        self._tell(f"{name}: {status.value}{f' ({detail})' if detail else ''}")
        if status is Status.DOWN:
            self._tell_down(name, detail)
        if name == "ray" and status is Status.WAITING and self._controller is not None:
            self._controller.compute_lost.set()
        if not self._told_ready and all(self._supervisor.status(each) is Status.READY for each in self._stack.names):
            self._told_ready = True
            self._on_ready(self._stack, self._supervisor)

    def _tell_down(self, name: str, detail: str) -> None:
        """Write the service into the note that /health reads. If the loop runs, it sends an alert."""
        self._down += (name,)
        self._write_down_services(self._down)
        if self._controller is not None:
            self._controller.alarms.put(f"{name} is down: {detail}")
