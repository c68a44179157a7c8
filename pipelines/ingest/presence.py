"""Whether somebody ingests into a root: a lock that a command holds while it does.

It keeps nobody away. Of two who ingest the commit fences one; the second is here without the lock.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.runtime import locks
from pipelines.storage.durable import check_root

LOCK_FILE = "ingest.lock"


@contextmanager
def ingesting(root: Path) -> Iterator[None]:
    """Be seen to ingest inside the block. Raises SettingsError if the root cannot be written."""
    check_root(root)
    handle = locks.take(root / LOCK_FILE)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def somebody_ingests(root: Path) -> bool:
    """Whether any command does now."""
    return locks.note_of_holder(root / LOCK_FILE) is not None
