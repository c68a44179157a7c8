"""What the person sees while the demo runs: numbered stages with their time, one moving line on a terminal, plain lines elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.status import Status

PLAIN_INTERVAL_S = 10.0
"""Between two lines about the same stage where standard error is not a terminal."""


class Screen:
    """All output goes to standard error; standard output is for the summary."""

    def __init__(self, num_stages: int) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._num_stages = num_stages
        self._started = time.monotonic()
        self._stage = 0
        self._status: Status | None = None
        self._next_plain = 0.0
        self.title = "the start"
        """The stage that runs, for the report of a failure."""

    @property
    def elapsed_s(self) -> float:
        """Seconds since the demo began."""
        return time.monotonic() - self._started

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """A numbered stage."""
        self._stage += 1
        self.title = title
        self.line(f"{self._stage}/{self._num_stages} {title}", "bold")
        self._next_plain = time.monotonic() + PLAIN_INTERVAL_S
        if self._console.is_terminal:
            with self._console.status("…") as self._status:
                yield
            self._status = None
        else:
            yield

    def line(self, text: str, style: str = "") -> None:
        """Something that happened."""
        self._console.print(f"{self.elapsed_s:4.0f} s  {text}", style=style, markup=False, soft_wrap=True)

    def now(self, text: str) -> None:
        """How the stage stands: replaces the moving line, or is said now and then."""
        if self._status is not None:
            self._status.update(escape(text))
        elif time.monotonic() >= self._next_plain:
            self._next_plain = time.monotonic() + PLAIN_INTERVAL_S
            self.line(f"  … {text}")
