"""Signals that ask a command to stop: those that it names, and SIGHUP, which a terminal sends when it is closed.

Invariants: a SIGHUP that is ignored when the command starts (``nohup``) stays ignored. What is written to a terminal that is gone is dropped; else
the first such line would raise OSError, and end an orderly stop half-way.
"""

import errno
import os
import signal
import termios
from collections.abc import Callable
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], None]
_OUTPUTS = (1, 2)


def hears_hangups() -> bool:
    """Whether SIGHUP means something to this process; ``nohup`` has it ignored."""
    return signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN


def handle_stops(handler: Handler, *numbers: int) -> dict[int, Any]:
    """Call ``handler`` at these signals and at SIGHUP from now on; returns what was called before, by signal. Main thread only."""

    def hung_up(number: int, frame: FrameType | None) -> None:
        leave_terminal()
        handler(number, frame)

    before: dict[int, Any] = {number: signal.signal(number, handler) for number in numbers}
    if hears_hangups():
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, hung_up)
    return before


def leave_terminal() -> None:
    """Write to nowhere instead of to a terminal that is gone."""
    for number in _OUTPUTS:
        try:
            termios.tcgetattr(number)
        except termios.error as error:
            if error.args[0] == errno.EIO:  # ENOTTY: it is no terminal
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, number)
                os.close(nowhere)
