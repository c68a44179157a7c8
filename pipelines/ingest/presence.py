"""Whether somebody ingests into a root: a lock that a command holds while it does.

The lock excludes nobody. A second ingest runs without it and is not seen after the first has ended.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.runtime import locks
from pipelines.storage.durable import check_root

LOCK_FILE = "ingest.lock"


@contextmanager
def ingest_lock(root: Path) -> Iterator[None]:
    """Hold the lock inside the block if it is free. Raises SettingsError if the root cannot be written, DatasetError if the disk is full."""
    check_root(root)
    handle = locks.take(root / LOCK_FILE)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def is_ingest_running(root: Path) -> bool:
    """Whether a command holds the ingest lock now."""
    return locks.note_of_holder(root / LOCK_FILE) is not None
