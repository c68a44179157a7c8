"""The two kinds of child processes that the loop starts, one of each kind at a time: training runs and evaluations.

A job is started only when nothing of its kind runs, is tried again with growing pauses when it fails, and leaves its result on disk:
a child that is killed at any moment costs time, never a model or a number. One whose exit code says that it would fail in
the same way again (``LASTING_FAILURES``) is not tried again.
"""

import json
import time
from pathlib import Path

from pydantic import ValidationError

from pipelines.runtime.backoff import pause_s
from pipelines.runtime.child import Child, tail
from pipelines.storage.mirror import host_folder
from ray_apps.loop.commands import child_environment, headrace
from ray_apps.loop.plan import TrainingOrder
from schemas.errors import LASTING_FAILURES
from schemas.manifest import Evaluation
from schemas.settings import Settings

MAX_PAUSE_S = 300.0
STOP_TIMEOUT_S = 10.0
MAX_EVALUATION_ATTEMPTS = 3


class Job:
    """A command that is run to its end, again after a pause if it fails."""

    def __init__(self, settings: Settings, name: str) -> None:
        self._settings = settings
        self.log = host_folder(Path(settings.root)) / "logs" / f"{name}.log"
        self._child: Child | None = None
        self._not_before = 0.0
        self.failures = 0
        """Failures since the last success."""
        self._is_lasting = False

    @property
    def is_running(self) -> bool:
        """Whether it was started and its end was not collected yet."""
        return self._child is not None

    def start(self, command: str, *arguments: str) -> bool:
        """Start the command unless one runs or the pause after a failure is not over; says whether it was started."""
        if self._child is not None or time.monotonic() < self._not_before:
            return False
        line = headrace(self._settings, command, *arguments, "--json")
        self._child = Child(line, self.log, environment=child_environment(self._settings), capture_output=True)
        return True

    def collect(self) -> tuple[int, bytes] | None:
        """Exit code and output of a command that has ended since the last call."""
        if self._child is None or (code := self._child.poll()) is None:
            return None
        output = self._child.output()
        self._child.close()
        self._child = None
        self.failures = self.failures + 1 if code else 0
        self._is_lasting = code in LASTING_FAILURES
        pause = pause_s(2 * self._settings.loop.restart_backoff_s, self.failures, MAX_PAUSE_S) if code else 0.0
        self._not_before = time.monotonic() + pause
        return code, output

    def has_failed(self, attempts: int) -> bool:
        """Whether it failed this often in a row, or in a way that would repeat."""
        return self._is_lasting or self.failures >= attempts

    def forget_failures(self) -> None:
        """Count failures from zero, for what is started next."""
        self.failures, self._is_lasting = 0, False

    def stop(self) -> None:
        """End the command now, if one runs; it counts neither as done nor as failed."""
        if self._child is not None:
            self._child.stop(STOP_TIMEOUT_S)
            self._child.close()
            self._child = None

    def failure(self, code: int) -> str:
        """The command's last line, if it reports the failure; else the end of its log."""
        if (last := tail(self.log, 1)).startswith("headrace "):
            return f"exit code {code}: {last} ({self.log})"
        return f"exit code {code}; the end of {self.log}:\n{tail(self.log)}"


def train_arguments(order: TrainingOrder) -> list[str]:
    """Arguments of ``headrace train`` for an order."""
    parent = [] if order.parent_model is None else ["--parent", str(order.parent_model)]
    view = [] if order.view is None else ["--view", order.view]
    return ["--dataset", str(order.dataset_version), *parent, *view]


def parse_evaluation(output: bytes) -> Evaluation | None:
    """What ``headrace models evaluate --json`` printed; None if that is no evaluation."""
    try:
        value = json.loads(output)
        return Evaluation.model_validate({name: value[name] for name in Evaluation.model_fields if name in value})
    except (ValueError, KeyError, TypeError, ValidationError):
        return None
