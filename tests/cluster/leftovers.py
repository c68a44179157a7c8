"""What hosts leave on the machine when their site has ended, in whatever way: it must be nothing but the folder that was given for them."""

import time
from pathlib import Path

from tests.cluster.hosts import NAMESPACES, SPACES, link_of, pids
from tests.processes import command_line

TIMEOUT_S = 30.0
"""The kernel ends what runs on a host when its first process is killed; on a busy machine this takes some seconds."""


def leftovers(site: Path) -> list[str]:
    """Network links, mounts and processes of a site that has ended, by its folder. A namespace lives as long as a process in it, or a mount of it."""
    names = {"switch", *(path.name for path in site.iterdir() if path.is_dir())}
    links = [f"link {path.name}" for path in Path("/sys/class/net").iterdir() if path.name in names]
    marks = [str(site), *((site / NAMESPACES).read_text().split() if (site / NAMESPACES).exists() else [])]
    mounts = [f"mount {line}" for line in Path("/proc/self/mountinfo").read_text().splitlines() if any(mark in line for mark in marks)]
    return links + mounts + [f"process {pid}: {command_line(pid)[:120]}" for pid in pids() if _is_in(pid, marks)]


def left_in_the_end(site: Path) -> list[str]:
    """What is still there after TIMEOUT_S; returns as soon as nothing is."""
    deadline = time.monotonic() + TIMEOUT_S
    while (found := leftovers(site)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def _is_in(pid: int, marks: list[str]) -> bool:
    """Whether a process is in one of the namespaces, or sees a mount of the folder."""
    try:
        return any(link_of(pid, kind) in marks for kind in SPACES) or marks[0] in Path(f"/proc/{pid}/mountinfo").read_text()
    except OSError:
        return False
