"""What a running ``headrace up`` says of itself in the file of its root that it locks: its process, its Kafka, what stays down.

Three lines: process id, address of Kafka, services that are down (with spaces between them). Without the lock the text is ignored.
"""

from dataclasses import dataclass
from pathlib import Path

from pipelines.runtime import locks

LOCK_FILE = "up.lock"


@dataclass(frozen=True)
class UpNote:
    """Empty where nothing is said yet."""

    pid: str
    kafka: str = ""
    down: tuple[str, ...] = ()
    """Services that `up` no longer starts."""

    def write(self, handle: int) -> None:
        """Into the file that this process holds."""
        locks.write_note(handle, "\n".join([self.pid, self.kafka, " ".join(self.down)]))


def read_up_note(root: Path) -> UpNote | None:
    """None if no ``up`` runs under this root."""
    text = locks.note_of_holder(root / LOCK_FILE)
    if text is None:
        return None
    pid, kafka, down, *_ = [*text.split("\n"), "", ""]
    return UpNote(pid, kafka, tuple(down.split()))
