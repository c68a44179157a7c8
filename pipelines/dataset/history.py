"""What a writer has to know of every version before the newest: 17 bytes each, instead of its manifest.

Which attempt committed it, how many documents it kept, and what else it holds: whoever needs more reads the manifest of the few versions that
have it. So neither the memory of a writer nor the time it takes to open grows with the manifests of months.

The log is the truth; chunks of the history lie beside it, in ``history/``, one for every CHUNK versions, so that opening reads at most
CHUNK - 1 manifests in whole. A chunk is a pure function of its manifests, written whole or not at all, and begins with a SHA-256 over its rows
and over the bytes of its last manifest: one that is damaged or belongs to another log is passed over, and what it said is read from the log
again. Only a writer writes them. Removing them costs time, nothing else.
"""

import hashlib
from collections.abc import Iterable
from enum import IntFlag
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipelines.runtime.crash import crash_point
from pipelines.storage.commit_log import CommitLog
from pipelines.storage.durable import replace_durably
from schemas.arrow import Outcome
from schemas.errors import DatasetNotFound
from schemas.manifest import DatasetManifest

FOLDER = "history"
CHUNK = 256
"""Versions in a file."""
ROW = np.dtype([("attempt", "<u8"), ("num_kept", "<i8"), ("holds", "u1")])
"""Of one version: its attempt as a number, its kept documents, and what else it has (Holds)."""
Rows = npt.NDArray[np.void]


class Holds(IntFlag):
    """What a version may have."""

    SEGMENT = 1
    """Fingerprints of kept documents."""
    MASKS = 2
    """Spans that its retractions took out."""
    RETRACTIONS = 4
    """Rows of the audit trail that are retractions."""
    BASE = 8
    """A compacted index of duplicates."""
    BOILERPLATE = 16
    """Counts of lines."""


def rows_of(manifests: Iterable[DatasetManifest]) -> Rows:
    """One row per manifest, in order."""
    return np.fromiter(map(_row, manifests), ROW)


def _row(manifest: DatasetManifest) -> tuple[int, int, int]:
    holds = Holds.SEGMENT if manifest.dedup_segments else Holds(0)
    holds |= Holds.MASKS if manifest.masks else 0
    holds |= Holds.RETRACTIONS if manifest.outcomes.get(Outcome.RETRACTED) else 0
    holds |= Holds.BASE if manifest.dedup_base else 0
    holds |= Holds.BOILERPLATE if manifest.boilerplate else 0
    return int(manifest.attempt, 16), manifest.outcomes.get(Outcome.KEPT, 0), int(holds)


def chunk_path(root: Path, last: int) -> Path:
    """File of the chunk that ends with this version."""
    return root / FOLDER / f"{last:08d}.bin"


def load_chunks(root: Path, log: CommitLog, version: int) -> Rows:
    """Rows of versions 1 to at most this one: as many as there are chunks in order that are as they were written."""
    parts = [np.empty(0, ROW)]
    for last in range(CHUNK, version + 1, CHUNK):
        rows = _load(root, log, last)
        if rows is None:
            break
        parts.append(rows)
    return np.concatenate(parts)


def _load(root: Path, log: CommitLog, last: int) -> Rows | None:
    try:
        data = chunk_path(root, last).read_bytes()
        manifest = log.read(last)
    except (OSError, DatasetNotFound):
        return None
    digest, rows = data[:32], data[32:]
    is_whole = len(rows) == CHUNK * ROW.itemsize and digest == hashlib.sha256(rows + manifest).digest()
    return np.frombuffer(rows, ROW) if is_whole else None


def save_chunks(root: Path, log: CommitLog, rows: Rows, num_saved: int) -> int:
    """Write the chunks that are complete, beyond the first ``num_saved`` rows; returns how many rows lie in chunks now."""
    for first in range(num_saved, len(rows) - CHUNK + 1, CHUNK):
        last = first + CHUNK
        data = rows[first:last].tobytes()
        replace_durably(chunk_path(root, last), hashlib.sha256(data + log.read(last)).digest() + data)
        crash_point("history_written")
        num_saved = last
    return num_saved
