"""One ``up`` per root, and where its Kafka is. Imports little, because every command asks for it first."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.runtime import locks
from pipelines.runtime.up_note import LOCK_FILE, UpNote, read_up_note
from pipelines.storage.durable import check_root
from schemas.errors import ServiceFailed


@contextmanager
def root_lock(root: Path) -> Iterator[int]:
    """Be the only ``up`` under this root; yields the descriptor to write a note with. Raises ServiceFailed."""
    check_root(root)
    handle = locks.take(root / LOCK_FILE)
    if handle is None:
        other = note.pid if (note := read_up_note(root)) else ""
        raise ServiceFailed(f"process {other or 'unknown'} runs `headrace up` under {root} already; stop it, or choose another --root")
    try:
        UpNote(str(os.getpid())).write(handle)
        yield handle
    finally:
        os.close(handle)


def kafka_of_running_up(root: Path) -> str | None:
    """The Kafka that the ``up`` running under this root uses; None if none runs, or it has not said so yet."""
    note = read_up_note(root)
    return note.kafka or None if note else None
