"""An append-only log of numbered JSON documents: the commit primitive of datasets, models and rollouts.

Invariant: entry N+1 is created once, whole, by exactly one writer, and never changes. A writer that lost the race gets
CommitConflict and has published nothing. Costs one fsync of the file and one of the folder per entry; ``latest`` lists the folder, unless it is
told where to begin: then it takes a look at each entry that came after, and a few beyond them. On an object store an entry is one conditional
request after one that looks for its predecessor, ``latest`` is one listing from where it begins, and entries are never read from a copy.
"""

import re
from itertools import count
from pathlib import Path

from pipelines.storage.durable import create_durably
from pipelines.storage.mirror import mirror_of
from pipelines.storage.store import is_there, names, read_bytes
from schemas.errors import CommitConflict, DatasetNotFound

_ENTRY = re.compile(r"^(\d{8})\.json\Z")
LOOKS_BEYOND = 10
"""So many entries, at distances that double, are looked for behind one that seems to be the newest: if one is there, the log has a hole."""


class CommitLog:
    """Numbered entries ``00000001.json …`` in one folder; the folder need not exist yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, number: int) -> Path:
        """File of an entry."""
        return self.folder / f"{number:08d}.json"

    def latest(self, known: int = 0) -> int:
        """Number of the newest entry; 0 if there is none. ``known``: an entry that was there, to begin looking at.

        Of a log with a hole this is the entry behind it, as long as the hole is seen: nobody may publish what is missing a second time.
        """
        if mirror_of(self.folder) is None and known and self.path(known).exists():
            newest = next(number for number in count(known) if not self.path(number + 1).exists())
            if not any(self.path(newest + 2**step).exists() for step in range(1, LOOKS_BEYOND + 1)):
                return newest
        return (known and self._listed(known)) or self._listed(0)

    def _listed(self, known: int) -> int:
        found = names(self.folder, after=self.path(known - 1).name if known else None)
        return max((int(match[1]) for name in found if (match := _ENTRY.match(name))), default=0)

    def read(self, number: int) -> bytes:
        """Bytes of an entry. Raises DatasetNotFound if it is not there."""
        try:
            return read_bytes(self.path(number))
        except FileNotFoundError as error:
            raise DatasetNotFound(f"{self.folder} has no entry {number}; its newest is {self.latest()}") from error

    def publish(self, number: int, data: bytes) -> None:
        """Create entry ``number`` durably. Raises CommitConflict if another writer was first, or if its predecessor is missing."""
        if number > 1 and not is_there(self.path(number - 1)):
            raise CommitConflict(f"{self.folder}: entry {number} cannot be published before entry {number - 1}; read the log again")
        try:
            create_durably(self.path(number), data)
        except FileExistsError as error:
            raise CommitConflict(
                f"{self.path(number)} was published by another writer; nothing of this attempt is visible, start again from it"
            ) from error
