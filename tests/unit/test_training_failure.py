"""Which failures end a run at once, and how the one who started it is told."""

import errno
from pathlib import Path

import pytest
import torch
from ray.exceptions import RayActorError

from ray_apps.training.failure import Failure, lasting_error, read_failure, record_failure
from schemas.errors import HeadraceError, ManifestCorrupt, ShardCorrupt, TrainingDiverged, TrainingError

LASTING = [
    (ShardCorrupt("shards/a.arrow is not what its manifest promised"), ShardCorrupt),
    (TrainingDiverged("the loss of step 3 is nan"), TrainingDiverged),
    (ManifestCorrupt("log/1.json"), ManifestCorrupt),
    (KeyError("weight"), TrainingError),
    (ValueError("a program error"), TrainingError),
    (OSError(errno.ENOSPC, "No space left on device"), TrainingError),
    (FileNotFoundError(errno.ENOENT, "No such file"), TrainingError),
    (torch.OutOfMemoryError("CUDA out of memory"), TrainingError),
]


@pytest.mark.parametrize(("error", "kind"), LASTING, ids=lambda value: getattr(value, "__name__", type(value).__name__))
def test_what_would_come_again_is_raised_as_itself_by_whoever_started_the_run(tmp_path: Path, error: Exception, kind: type[HeadraceError]) -> None:
    lasting = lasting_error(error)
    assert lasting is not None
    record_failure(tmp_path, lasting)
    record_failure(tmp_path, TrainingError("what another worker saw because of it"))
    failure = read_failure(tmp_path)
    assert failure is not None
    assert type(failure.exception()) is kind
    assert str(failure.exception()) == str(lasting)
    assert "\n" not in str(lasting)


@pytest.mark.parametrize(
    "error", [RuntimeError("Connection closed by peer"), ConnectionResetError(errno.ECONNRESET, "reset"), TimeoutError(), RayActorError()]
)
def test_a_lost_worker_or_device_is_worth_another_attempt(error: Exception) -> None:
    assert lasting_error(error) is None


@pytest.mark.parametrize("name", ["ClassVar", "FromALaterVersion", "ApiError"])
def test_a_failure_whose_class_takes_no_single_message_is_a_training_error(name: str) -> None:
    failure = Failure(error=name, message="what happened").exception()
    assert (type(failure), str(failure)) == (TrainingError, "what happened")
