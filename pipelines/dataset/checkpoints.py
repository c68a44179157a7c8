"""Checkpoints of the dataset's log: the columns of all versions but the newest few, in files that a reader maps instead of parsing manifests.

The log is the truth. A checkpoint holds the columns (dataset/columns.py) of versions FIRST to LAST and is named after them; its length is a power of
GROWTH. When GROWTH of a length are complete, one of the next length stands for them and they are removed. So a log of any length has a handful of
checkpoints (GROWTH - 1 of a length at most) and a tail of at most GROWTH - 1 manifests, and each row is written once per length.

What a checkpoint says is a pure function of its manifests. It is written whole or not at all, and begins with a SHA-256 over its columns and
over the bytes of its last manifest: one that is damaged, of another format or of another log is passed over, and what it said is read from the
log again. Only a writer of the dataset writes them. Removing them costs time, nothing else.

Cost: opening 100,000 versions maps and hashes 20 files of some 60 MB together, 0.1 s; so much memory is the page cache's, not the process's own.
"""

import hashlib
import mmap
import re
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import pyarrow as pa

from pipelines.runtime.crash import crash_point
from pipelines.storage.commit_log import CommitLog
from pipelines.storage.durable import durable_file
from pipelines.storage.store import local, names, refetch, remove
from schemas.arrow import VERSIONS
from schemas.errors import DatasetNotFound

FOLDER = "log/checkpoints"
GROWTH = 16
NUM_LENGTHS = 6
HEADER_BYTES = 64
"""The SHA-256, and zeros up to where Arrow wants its buffers aligned."""
MAX_LISTINGS = 5
"""A writer may remove checkpoints between their listing and their opening: so often they are listed again."""
_NAME = re.compile(r"^(\d{8})-(\d{8})\.arrow\Z")


class Range(NamedTuple):
    """Versions FIRST to LAST."""

    first: int
    last: int

    @property
    def length(self) -> int:
        """How many they are."""
        return self.last - self.first + 1

    def within(self, other: "Range") -> bool:
        """Whether the other range has all of these versions and more."""
        return self != other and other.first <= self.first and self.last <= other.last


class Checkpoint(NamedTuple):
    """A checkpoint that is as it was written."""

    range: Range
    columns: pa.Table
    """Rows of VERSIONS; views of the mapped file."""


def lengths() -> list[int]:
    """Lengths of checkpoints, the longest first."""
    return [GROWTH**power for power in range(NUM_LENGTHS, 0, -1)]


def cover(version: int) -> list[Range]:
    """The checkpoints that a log of so many versions has, in order."""
    found, first = [], 1
    for length in lengths():
        while first + length - 1 <= version:
            found.append(Range(first, first + length - 1))
            first += length
    return found


def checkpoint_path(root: Path, versions: Range) -> Path:
    """File of a checkpoint."""
    return root / FOLDER / f"{versions.first:08d}-{versions.last:08d}.arrow"


def listed(root: Path) -> list[Range]:
    """Checkpoints by their names: in order, the longest of those that begin together first."""
    matches = map(_NAME.match, names(root / FOLDER))
    return sorted((Range(int(match[1]), int(match[2])) for match in matches if match), key=lambda versions: (versions.first, -versions.last))


def newest_listed(root: Path) -> int:
    """A version that was committed: the last that a checkpoint has; 0 if there is none."""
    return max((versions.last for versions in listed(root)), default=0)


def load_checkpoints(root: Path, log: CommitLog, version: int) -> list[Checkpoint]:
    """Checkpoints that have versions 1 to at most this one, in order, none overlapping; the last may have more. There may be gaps."""
    for _ in range(MAX_LISTINGS):
        with suppress(FileNotFoundError):
            return _load_listed(root, log, version)
    return []


def _load_listed(root: Path, log: CommitLog, version: int) -> list[Checkpoint]:
    found: list[Checkpoint] = []
    for versions in listed(root):
        if (found[-1].range.last if found else 0) < versions.first <= version:
            columns = load(root, log, versions)
            found += [Checkpoint(versions, columns)] if columns is not None else []
    return found


def load(root: Path, log: CommitLog, versions: Range) -> pa.Table | None:
    """Columns of a checkpoint; none if it is not what was written for this log. Raises FileNotFoundError."""
    path = local(checkpoint_path(root, versions))
    found = _loaded(path, log, versions)
    if found is None and refetch(path):  # the copy on this host is one of an earlier log
        found = _loaded(path, log, versions)
    return found


def _loaded(path: Path, log: CommitLog, versions: Range) -> pa.Table | None:
    with path.open("rb") as file:
        data = _mapped(file)
    try:
        if bytes(data[:32]) != _digest(data[HEADER_BYTES:], log, versions):
            return None
        columns = _with_merges(pa.ipc.open_file(pa.py_buffer(data[HEADER_BYTES:])).read_all())
    except (DatasetNotFound, pa.ArrowInvalid):
        return None
    return columns if columns.schema.equals(VERSIONS) and len(columns) == versions.length else None


def _with_merges(columns: pa.Table) -> pa.Table:
    """Add an empty ``merged`` column to checkpoints that were written before merges existed."""
    if "merged" in columns.schema.names:
        return columns
    none = pa.array([[]] * len(columns), VERSIONS.field("merged").type)
    return columns.add_column(VERSIONS.get_field_index("merged"), VERSIONS.field("merged"), none)


def _mapped(file: IO[Any]) -> memoryview:
    try:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except ValueError:  # an empty file cannot be mapped
        return memoryview(b"")


def _digest(body: memoryview, log: CommitLog, versions: Range) -> bytes:
    hashed = hashlib.sha256(body)
    hashed.update(log.read(versions.last))
    return hashed.digest()


def save_checkpoint(root: Path, log: CommitLog, versions: Range, columns: pa.Table) -> None:
    """Write a checkpoint, durably. ``columns`` are those of its versions."""
    with durable_file(checkpoint_path(root, versions)) as file:
        file.write(bytes(HEADER_BYTES))
        with pa.ipc.new_file(file, VERSIONS) as writer:
            writer.write_table(columns.combine_chunks())
        file.flush()
        digest = _digest(_mapped(file)[HEADER_BYTES:], log, versions)
        file.seek(0)
        file.write(digest)
    crash_point("checkpoint_written")


def remove_covered(root: Path, kept: list[Range]) -> None:
    """Remove checkpoints whose versions one of the kept ones has."""
    for versions in listed(root):
        if any(versions.within(longer) for longer in kept):
            remove(checkpoint_path(root, versions))
            crash_point("checkpoint_removed")
