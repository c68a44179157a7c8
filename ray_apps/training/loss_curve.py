"""The loss curve of a run: one JSON line per step in ``losses.jsonl``.

Invariant: after a resume the file holds each step once. Steps after the checkpoint that a run resumes from are cut off first; they
are computed again and give the same numbers. The file is replaced, not edited: a process that a crash left behind appends to a
file that nobody reads any more. Lines are flushed per step (for progress) and forced to disk with each checkpoint. On an object store the file is
of the host that writes it, and each checkpoint holds the curve up to its step.
"""

import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self

from pipelines.storage.durable import replace_durably
from pipelines.storage.mirror import replace_on_host
from pipelines.storage.store import is_local, read_bytes
from schemas.errors import StoreUnavailable

if TYPE_CHECKING:
    from ray_apps.training.checkpoint import CheckpointStore

FILE_NAME = "losses.jsonl"


@dataclass(frozen=True)
class LossRecord:
    """What is recorded of a step."""

    step: int
    """From 0."""
    loss: float
    """Mean over the global batch, nats per token."""
    grad_norm: float | None
    """Before clipping; null where fp16 overflowed."""
    learning_rate: float
    """Used by this step."""
    num_tokens: int
    """Tokens predicted in this step."""
    duration_s: float
    """Wall time of the step."""

    def line(self) -> str:
        """As one JSON line; floats survive exactly."""
        finite = {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in asdict(self).items()}
        return json.dumps(finite, allow_nan=False) + "\n"


def read_losses(path: Path) -> list[LossRecord]:
    """Records in the order of steps, each step once; a torn last line is left out. Empty if there is no file."""
    try:
        return parse_losses(read_bytes(path))
    except FileNotFoundError:
        return []


def parse_losses(data: bytes) -> list[LossRecord]:
    """Records in the order of steps, each step once; a torn last line is left out."""
    records: dict[int, LossRecord] = {}
    for line in data.splitlines(keepends=True):
        if line.endswith(b"\n"):
            record = LossRecord(**json.loads(line))
            records[record.step] = record
    return [records[step] for step in sorted(records)]


class LossFollower:
    """Reads what has been appended since the last poll; starts over when a resumed run replaces the file."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE_NAME
        self._inode = 0
        self._position = 0

    def poll(self) -> list[LossRecord]:
        """New records; after a resume the old ones come again."""
        try:
            with self._path.open("rb") as file:
                return self._read(file)
        except FileNotFoundError:
            return []

    def _read(self, file: IO[bytes]) -> list[LossRecord]:
        inode = os.fstat(file.fileno()).st_ino
        if inode != self._inode:
            self._inode, self._position = inode, 0
        file.seek(self._position)
        lines = [line for line in file.readlines() if line.endswith(b"\n")]
        self._position += sum(map(len, lines))
        return [LossRecord(**json.loads(line)) for line in lines]


class StoredLosses:
    """The same where the root is on an object store: the records up to each checkpoint, once it is committed."""

    def __init__(self, checkpoints: "CheckpointStore") -> None:
        self._checkpoints = checkpoints
        self._step = 0

    def poll(self) -> list[LossRecord]:
        """See ``LossFollower``. Asks the store only when there is a checkpoint that was not seen."""
        newest = max(self._checkpoints.steps(), default=0)
        if newest <= self._step:
            return []
        try:
            records = self._checkpoints.losses(newest)
        except (OSError, StoreUnavailable):  # replaced by a newer one meanwhile, or the store does not answer: the next poll may see more
            return []
        before, self._step = self._step, newest
        return [record for record in records if record.step >= before]


class LossCurve:
    """The file, open for the steps from ``next_step`` on."""

    def __init__(self, folder: Path, next_step: int, earlier: list[LossRecord] | None = None) -> None:
        """``earlier``: the records of the steps before, where they are not those of the file."""
        path = folder / FILE_NAME
        kept = (record for record in (read_losses(path) if earlier is None else earlier) if record.step < next_step)
        if is_local(path):
            replace_durably(path, _lines(kept))
        else:
            replace_on_host(path, _lines(kept))
        self._file: IO[bytes] = path.open("ab")

    def append(self, record: LossRecord) -> None:
        """Add a step; readers see it at once, a power cut may lose it."""
        self._file.write(record.line().encode())
        self._file.flush()

    def sync(self) -> None:
        """Force everything appended to disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _lines(records: Iterable[LossRecord]) -> bytes:
    return "".join(record.line() for record in records).encode()
