"""Leases: a lock between hosts that share nothing but the object store, and the log of what its holders commit.

    <folder>/00000007.json          an entry, made once: who holds the lease, since which entry, and the state that is committed
    <folder>/renewed-00000005.json  written by the holder every RENEW_S: the newest entry that it has seen, and how often it has written

Invariant: who was overtaken commits nothing, however long it was paused. Taking the lease is an entry of the log, and a commit is the entry after the
newest that the holder has seen, made by a conditional request. So the number that an overtaken holder asks for is taken: it gets LeaseLost. The
number of the entry that took the lease (``Lease.number``) is the fencing number. Entries are never removed: a number that is free again could be
taken by one who was overtaken. No commit rests on a clock: renewals only say when others may take over, EXPIRES_S after the last one by the clock of
the store, or at once if the holder was a process of this host that is gone. Cost: a request a commit, three every RENEW_S, a few to take it.
"""

import contextlib
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import Field

from pipelines.storage.commit_log import CommitLog
from pipelines.storage.entries import parse_entry
from pipelines.storage.mirror import mirror_of
from pipelines.storage.store import is_there, modified_at, names, read_bytes, remove, write_bytes
from pipelines.storage.version import code_version
from schemas.errors import CommitConflict, HeadraceError, LeaseLost, StoreUnavailable
from schemas.record import Record

_log = logging.getLogger(__name__)
RENEW_S = 5.0
EXPIRES_S = 30.0
"""A holder that was not heard of for so long may be replaced. Its renewals are six times as frequent."""
LOOK_S = 1.0
"""Between two looks of one who waits."""
FORMAT = 1
_RENEWED = "renewed-"
_BEHIND_ENTRIES = "9"
"""Sorts behind the names of entries, and before those of renewals."""


class Holder(Record):
    """A process."""

    host: str
    """Name of its machine, for people."""
    pid: int
    """Its number there."""
    machine: str
    """Boot of the machine and pid namespace; empty where the system does not say."""
    started: str
    """When it started, in the system's ticks."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @property
    def is_gone(self) -> bool:
        """Whether it was a process of this machine, and has ended."""
        return bool(self.machine) and self.machine == _machine() and self.started != _started(self.pid)


class Entry(Record):
    """An entry of the log of a lease."""

    format: int = Field(FORMAT, ge=1, le=FORMAT)
    """Version of this file format."""
    held_since: int = Field(ge=1)
    """Number of the entry with which the holder took the lease."""
    holder: Holder | None
    """Who holds it; none: it was given back."""
    attempt: str
    """Different in every entry, so that no two writers' are equal."""
    state: dict[str, Any]
    """What the holders have committed up to now."""
    code_version: str = ""
    """Which Headrace wrote it."""


class Lease:
    """Held by this process. ``on_lost`` is called, in another thread, when that is no longer so."""

    def __init__(self, folder: Path, number: int, entry: Entry, on_lost: Callable[[], None] | None = None) -> None:
        self._log = CommitLog(folder)
        self._newest, self._entry = number, entry
        self._lock = threading.Lock()
        self._lost: str | None = None
        self._unsure: Entry | None = None
        """The entry of a commit whose answer never came: it may be there."""
        self._on_lost = on_lost
        self._renewals = 0
        self._closing = threading.Event()
        self.number = entry.held_since
        """The fencing number."""

    @property
    def state(self) -> dict[str, Any]:
        """What is committed, as far as this process has seen."""
        return self._entry.state

    def check(self) -> None:
        """Raise LeaseLost if this process knows that it was overtaken."""
        if self._lost is not None:
            raise LeaseLost(self._lost)

    def commit(self, state: dict[str, Any]) -> None:
        """Replace what is committed. Raises LeaseLost if another process, or another attempt of this one's work, was faster."""
        with self._lock:
            self.check()
            self._append(self._entry.model_copy(update={"state": state}))

    def look(self) -> None:
        """See what was committed under this lease by others (``join``). Raises LeaseLost."""
        with self._lock:
            self.check()
            newest = self._log.latest(self._newest)
            if newest > self._newest:
                entry = _read(self._log, newest)
                if entry.held_since != self.number:
                    self._lose(entry)
                self._newest, self._entry = newest, entry

    def release(self) -> None:
        """Give it back, so that the next one need not wait; harmless if it was lost."""
        self._closing.set()
        with contextlib.suppress(HeadraceError):
            self.look()
            with self._lock:
                self._append(self._entry.model_copy(update={"holder": None}))

    def keep(self) -> None:
        """Renew it from now on, in a thread of its own."""
        self._renew()
        threading.Thread(target=self._keep, name="lease", daemon=True).start()

    def _keep(self) -> None:
        while not self._closing.wait(RENEW_S):
            try:
                self.look()
                self._renew()
            except LeaseLost:
                if self._on_lost is not None:
                    self._on_lost()
                return
            except HeadraceError as error:
                _log.warning("a lease could not be renewed, trying again: %s", error)

    def _renew(self) -> None:
        self._renewals += 1
        write_bytes(_renewal(self._log.folder, self.number), f"{self._newest} {self._renewals}".encode())

    def _append(self, entry: Entry) -> None:
        entry = entry.model_copy(update={"attempt": secrets.token_hex(8), "code_version": code_version()})
        try:
            self._publish(entry)
        except CommitConflict:
            there = _read(self._log, self._newest + 1)
            if there != self._unsure:
                self._lose(there)
            self._newest, self._unsure = self._newest + 1, None
            self._append(entry)
            return
        self._newest, self._entry = self._newest + 1, entry

    def _publish(self, entry: Entry) -> None:
        try:
            _publish(self._log, self._newest + 1, entry)
        except StoreUnavailable:
            self._unsure = entry
            raise

    def _lose(self, entry: Entry) -> None:
        other = entry.holder or "another process"
        self._lost = (
            f"{other} took over {self._log.folder.parent}, because this process had not been heard of for {EXPIRES_S:g} s, or its work was begun "
            "again: nothing that this process does there is committed any more"
        )
        raise LeaseLost(self._lost)


@contextmanager
def held(folder: Path, refusal: Callable[[Holder], HeadraceError], on_lost: Callable[[], None] | None = None) -> Iterator[Lease]:
    """Hold the lease in the block. Raises what ``refusal`` makes of the holder, if that lives; to see it takes RENEW_S at most, and EXPIRES_S to see
    that it does not.
    """
    lease = take(folder, refusal, on_lost)
    lease.keep()
    try:
        yield lease
    finally:
        lease.release()


def take(folder: Path, refusal: Callable[[Holder], HeadraceError], on_lost: Callable[[], None] | None = None) -> Lease:
    """Take the lease without renewing it. Raises what ``refusal`` makes of a holder that lives."""
    log = CommitLog(folder)
    while True:
        newest = _newest(log)
        before = _read(log, newest) if newest else None
        if before is not None and before.holder is not None and _lives(folder, newest, before):
            raise refusal(before.holder)
        entry = Entry(
            format=FORMAT,
            held_since=newest + 1,
            holder=_this_process(),
            attempt=secrets.token_hex(8),
            state=before.state if before else {},
            code_version=code_version(),
        )
        with contextlib.suppress(CommitConflict):  # another one was faster, or the holder lives after all
            _publish(log, newest + 1, entry)
            if before is not None:
                with contextlib.suppress(StoreUnavailable):  # nobody reads it any more
                    remove(_renewal(folder, before.held_since))
            return Lease(folder, newest + 1, entry, on_lost)


def join(folder: Path, number: int) -> Lease:
    """Commit, from this process, under the lease that another one holds with this fencing number and renews.

    Whoever joined before cannot commit from now on. Raises LeaseLost if somebody else holds the lease.
    """
    log = CommitLog(folder)
    while True:
        newest = log.latest(number)
        entry = _read(log, newest)
        lease = Lease(folder, newest, entry)
        if entry.held_since != number or entry.holder is None:
            lease._lose(entry)
        try:
            lease.commit(entry.state)
        except LeaseLost:
            continue
        return lease


def committed(folder: Path) -> dict[str, Any]:
    """What is committed now, whoever holds the lease; empty if nobody ever held it."""
    log = CommitLog(folder)
    newest = _newest(log)
    return _read(log, newest).state if newest else {}


def _newest(log: CommitLog) -> int:
    """Number of the newest entry; renewals say where to begin looking."""
    known = 0
    for name in names(log.folder, after=_BEHIND_ENTRIES):
        if name.startswith(_RENEWED):
            with contextlib.suppress(FileNotFoundError, ValueError):
                known = max(known, int(read_bytes(log.folder / name).split()[0]))
    return log.latest(known)


def _read(log: CommitLog, number: int) -> Entry:
    return parse_entry(Entry, log.read(number), log.path(number), "entry of a lease")


def _publish(log: CommitLog, number: int, entry: Entry) -> None:
    log.publish(number, entry.model_dump_json(indent=2).encode())


def _renewal(folder: Path, number: int) -> Path:
    return folder / f"{_RENEWED}{number:08d}.json"


def _lives(folder: Path, newest: int, entry: Entry) -> bool:
    """Whether the holder renews its lease; waits until that is known."""
    assert entry.holder is not None
    if entry.holder.is_gone:
        return False
    renewal = _renewal(folder, entry.held_since)
    pulse = _bytes_of(renewal)
    last = max(time_s for time_s in (modified_at(CommitLog(folder).path(newest)), modified_at(renewal)) if time_s != float("inf"))
    deadline = time.monotonic() + EXPIRES_S - (_store_time(folder) - last)
    while time.monotonic() < deadline:
        time.sleep(min(LOOK_S, RENEW_S / 2))
        if entry.holder.is_gone or is_there(CommitLog(folder).path(newest + 1)):  # it ended, or gave the lease back
            return False
        if _bytes_of(renewal) != pulse:
            return True
    return False


def _bytes_of(path: Path) -> bytes | None:
    try:
        return read_bytes(path)
    except FileNotFoundError:
        return None


def _store_time(folder: Path) -> float:
    """What the store's clock says now."""
    probe = folder / f"clock-{secrets.token_hex(8)}"
    write_bytes(probe, b"")
    try:
        return modified_at(probe)
    finally:
        remove(probe)


def _this_process() -> Holder:
    return Holder(host=socket.gethostname(), pid=os.getpid(), machine=_machine(), started=_started(os.getpid()))


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Empty if there is no such process, or the system does not say."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[19]
    except OSError:
        return ""


def needs_lease(folder: Path) -> bool:
    """Whether processes on other hosts may want the folder: the root is on an object store. In a folder a lock of the kernel is enough."""
    return mirror_of(folder) is not None
