"""The loss curve's file."""

import math
from pathlib import Path

from ray_apps.training.loss_curve import FILE_NAME, LossCurve, LossFollower, LossRecord, read_losses


def record(step: int, loss: float = 1.0) -> LossRecord:
    return LossRecord(step, loss, 0.5, 1e-3, 100, 0.01)


def test_floats_survive_exactly(tmp_path: Path) -> None:
    written = record(0, math.pi / 3)
    curve = LossCurve(tmp_path, 0)
    curve.append(written)
    curve.close()
    assert read_losses(tmp_path / FILE_NAME) == [written]


def test_a_resume_cuts_the_steps_after_the_checkpoint_and_a_torn_line(tmp_path: Path) -> None:
    curve = LossCurve(tmp_path, 0)
    for step in range(5):
        curve.append(record(step))
    curve.close()
    with (tmp_path / FILE_NAME).open("ab") as file:
        file.write(b'{"step": 5, "lo')
    resumed = LossCurve(tmp_path, 3)
    resumed.append(record(3, 7.0))
    resumed.close()
    assert [(line.step, line.loss) for line in read_losses(tmp_path / FILE_NAME)] == [(0, 1.0), (1, 1.0), (2, 1.0), (3, 7.0)]


def test_what_an_abandoned_process_still_appends_is_not_read(tmp_path: Path) -> None:
    abandoned = LossCurve(tmp_path, 0)
    abandoned.append(record(0))
    resumed = LossCurve(tmp_path, 1)
    abandoned.append(record(1, 99.0))
    resumed.append(record(1))
    abandoned.close()
    resumed.close()
    assert [line.loss for line in read_losses(tmp_path / FILE_NAME)] == [1.0, 1.0]


def test_an_overflowed_gradient_norm_is_null(tmp_path: Path) -> None:
    curve = LossCurve(tmp_path, 0)
    curve.append(LossRecord(0, 1.0, math.inf, 1e-3, 100, 0.01))
    curve.close()
    assert read_losses(tmp_path / FILE_NAME)[0].grad_norm is None


def test_a_follower_sees_each_step_and_starts_over_after_a_resume(tmp_path: Path) -> None:
    follower = LossFollower(tmp_path)
    assert follower.poll() == []
    curve = LossCurve(tmp_path, 0)
    curve.append(record(0))
    assert [line.step for line in follower.poll()] == [0]
    curve.append(record(1))
    assert [line.step for line in follower.poll()] == [1]
    assert follower.poll() == []
    curve.close()
    LossCurve(tmp_path, 1).close()
    assert [line.step for line in follower.poll()] == [0]
