"""Why a run cannot succeed, written once by the worker that finds out.

Ray starts the workers again when one fails, which helps when a worker or a device was lost, and costs time when the next attempt must fail alike. So
what would come again is written to ``failure.json`` in the run's folder first: workers that find it there end at once, and ``headrace train`` raises
it. A new ``headrace train`` removes the file and tries anew. One failure is kept, the first.
"""

import errno
from contextlib import suppress
from pathlib import Path

import torch

from pipelines.storage.durable import create_durably
from pipelines.storage.store import read_bytes
from ray_apps.training.files import failure_file
from schemas import errors
from schemas.errors import HeadraceError, LeaseLost, StoreUnavailable, TrainingError
from schemas.record import Record

_LASTING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR})

_FAULTS = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, TypeError, ValueError)
"""Of the program or of its input: no other attempt changes them."""


class Failure(Record):
    """Content of ``failure.json``."""

    error: str
    """Name of the class in schemas.errors."""
    message: str
    """What happened and what to do."""

    def exception(self) -> HeadraceError:
        """The error to raise."""
        known = getattr(errors, self.error, None)
        if isinstance(known, type) and issubclass(known, HeadraceError) and known.__init__ is HeadraceError.__init__:
            return known(self.message)
        return TrainingError(self.message)


def lasting_error(error: Exception) -> HeadraceError | None:
    """The error to stop the run with; None where the same step may succeed in another attempt, because a worker or a device was lost."""
    if isinstance(error, StoreUnavailable | LeaseLost):
        return None  # the store may answer by then; and who was overtaken says nothing about the run
    if isinstance(error, HeadraceError):
        return error
    if isinstance(error, torch.OutOfMemoryError):
        return TrainingError(f"the device has too little memory: {_first_line(error)}; raise training.accumulation_steps, or choose a smaller model")
    if isinstance(error, OSError):
        return TrainingError(f"{error}; mend that and run `headrace train` again") if error.errno in _LASTING else None
    if isinstance(error, _FAULTS):
        return TrainingError(f"{type(error).__name__}: {_first_line(error)}; another attempt would fail alike")
    return None  # RuntimeError, torch's word for a peer that is gone and a device that is lost, and what Ray raises


def record_failure(folder: Path, error: HeadraceError, lease_number: int = 0) -> None:
    """Leave the failure in the run's folder; the first one stays. If it cannot be written, that costs Ray's attempts, nothing else."""
    failure = Failure(error=type(error).__name__, message=str(error))
    with suppress(OSError, StoreUnavailable):
        create_durably(folder / failure_file(lease_number), failure.model_dump_json(indent=2).encode())


def read_failure(folder: Path, lease_number: int = 0) -> Failure | None:
    """The failure that a worker has left; None if there is none."""
    try:
        return Failure.model_validate_json(read_bytes(folder / failure_file(lease_number)))
    except FileNotFoundError:
        return None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
