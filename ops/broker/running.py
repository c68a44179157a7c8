"""Where a running broker listens. Imports little, because every command asks for it first."""

from pathlib import Path

from pipelines.runtime import locks

LOCK_FILE = "lock"
"""In the broker's folder: held by the broker that works in it."""


def running_broker(data_dir: Path) -> str | None:
    """Address of the broker that works in the folder; None if none does, or it does not listen yet."""
    return locks.note_of_holder(data_dir / LOCK_FILE) or None
