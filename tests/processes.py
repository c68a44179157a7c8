"""Processes of this machine, as /proc tells of them."""

from pathlib import Path


def read_proc(pid: int, name: str) -> bytes:
    """A file of /proc; empty for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def command_line(pid: int) -> str:
    """With spaces between its words; empty for a process that is gone."""
    return read_proc(pid, "cmdline").replace(b"\0", b" ").decode(errors="replace")


def parents() -> dict[int, int]:
    """Process id -> parent's id, of all processes that are no zombies."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            state, parent, *_ = read_proc(int(entry.name), "stat").rpartition(b")")[2].split() or [b"Z", b"0"]
            if state != b"Z":
                found[int(entry.name)] = int(parent)
    return found


def descendants(*pids: int) -> list[int]:
    """Their children, the children's children, and so on."""
    parent_of, found = parents(), set(pids)
    while more := {child for child, parent in parent_of.items() if parent in found} - found:
        found |= more
    return sorted(found - set(pids))
