"""Run a command that cannot outlive the process that asked for it: ``python -m pipelines.runtime.bound PARENT_PID COMMAND…``.

On Linux the kernel kills the command (SIGKILL) when the thread that started it ends, even by SIGKILL (prctl PR_SET_PDEATHSIG survives
exec). Elsewhere the command runs unbound: a killed parent leaves it behind. Doing it here, before exec, and not in
``preexec_fn``, keeps forking safe in a process with threads. Costs one start of a bare interpreter, about 30 ms.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1


def bound(command: Sequence[str]) -> list[str]:
    """The command line that runs ``command`` bound to this process."""
    return [sys.executable, "-P", "-m", "pipelines.runtime.bound", str(os.getpid()), *command]


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends; does nothing elsewhere than on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def main(arguments: Sequence[str]) -> None:
    """Bind, then become the command. Does not return."""
    parent, *command = arguments
    die_with_parent()
    if os.getppid() != int(parent):  # it died before the kernel knew
        sys.exit(1)
    os.execvp(command[0], command)  # noqa: S606 - the command line is our own


if __name__ == "__main__":
    main(sys.argv[1:])
