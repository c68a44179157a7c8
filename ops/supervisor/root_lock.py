"""One ``up`` per root, and where its Kafka is. Imports little, because every command asks for it first.

On a host a lock of the kernel says so. Where the root is on an object store, a lease (pipelines/storage/leases.py) keeps other hosts out.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.runtime import locks
from pipelines.runtime.up_note import LOCK_FILE, UpNote, read_up_note
from pipelines.storage.durable import check_root
from pipelines.storage.store import is_local
from schemas.errors import ServiceFailed

if TYPE_CHECKING:
    from pipelines.storage.leases import Holder, Lease


@contextmanager
def root_lock(root: Path) -> Iterator[int]:
    """Be the only ``up`` of this host under this root; yields the descriptor to write a note with. Raises ServiceFailed."""
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


def lease_of_up(root: Path, on_lost: Callable[[], None]) -> "AbstractContextManager[Lease | None]":
    """Be the only ``up`` of all hosts in the block, where the root is on an object store. ``on_lost`` is called when that is no longer so.

    Raises ServiceFailed if another one lives.
    """
    if is_local(root):
        return nullcontext()
    from pipelines.storage.leases import held
    from ray_apps.loop.disk import LEASE

    def refusal(holder: "Holder") -> ServiceFailed:
        return ServiceFailed(f"{holder} runs `headrace up` under {root} already; stop it, or choose another --root")

    return held(root / LEASE, refusal, on_lost)


def kafka_of_running_up(root: Path) -> str | None:
    """The Kafka that the ``up`` running under this root uses; None if none runs, or it has not said so yet."""
    note = read_up_note(root)
    return note.kafka or None if note else None
