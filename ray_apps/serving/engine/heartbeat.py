"""Whether an engine's steps succeed and go on, which is what its health is judged by: a process that lives says nothing about answers."""

import time
from collections.abc import Callable

from ray_apps.serving.engine.interface import EngineHealth

STALLED_S = 30.0
"""A step takes milliseconds, a first one on a GPU some seconds."""
FAILED_STEPS = 3
"""Failures without a success between them: one request can break one step, a broken device breaks all."""


class Heartbeat:
    """Written by the thread that steps, read by any."""

    def __init__(self, stalled_s: float = STALLED_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._stalled_s = stalled_s
        self._clock = clock
        self._beat_s = clock()
        self._num_failed = 0
        self._error = ""

    def beat(self, *, succeeded: bool = False) -> None:
        """A step has ended, or the wait for one begins."""
        self._beat_s = self._clock()
        if succeeded:
            self._num_failed = 0

    def fail(self, error: Exception) -> None:
        """A step has raised."""
        self.beat()
        self._num_failed += 1
        self._error = f"{type(error).__name__}: {str(error)[:200]}"

    def health(self, num_pending: int) -> EngineHealth:
        """``num_pending``: sequences that run or wait."""
        if self._num_failed >= FAILED_STEPS:
            return EngineHealth(ok=False, reason=f"the last {self._num_failed} steps failed; the last one with {self._error}")
        silent_s = self._clock() - self._beat_s
        if num_pending and silent_s > self._stalled_s:
            return EngineHealth(ok=False, reason=f"no step has ended for {silent_s:.0f} s while {num_pending} sequences wait")
        return EngineHealth(ok=True)
