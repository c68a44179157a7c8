"""A node that is about to be taken away: when the run saves, and that this changes nothing else."""

import math
import time
from pathlib import Path

import pytest

from ray_apps.training.grace import MARGIN_S, UNKNOWN_GRACE_S, GraceSaves
from ray_apps.training.loop import TrainingLoop
from ray_apps.training.parallel import Process
from ray_apps.training.run import plan_run
from tests.training_runs import curve, final_files, run_alone, tiny_dataset, tiny_settings


def saves(times_s: list[float], leaves_at_s: float | None, work_s: float = 1.0) -> list[float]:
    grace = GraceSaves()
    return [now_s for now_s in times_s if grace.is_due(leaves_at_s, now_s, work_s)]


def test_a_run_saves_when_it_hears_of_it_and_shortly_before_the_node_goes() -> None:
    seconds = [float(second) for second in range(0, 60)]
    assert saves(seconds, None) == []
    assert saves(seconds, 30.0) == [0.0, 30.0 - MARGIN_S - 1]
    assert saves(seconds, 30.0, work_s=5.0) == [0.0, 30.0 - MARGIN_S - 9], "slow steps and checkpoints are begun earlier"


def test_one_save_is_all_where_there_is_time_for_one() -> None:
    assert saves([0.0, 1.0, 2.0], MARGIN_S) == [0.0]
    assert saves([5.0, 6.0], 1.0) == [5.0], "the time is over and the node is still there"


def test_where_nobody_says_how_long_it_takes_it_is_as_long_as_ray_waits() -> None:
    from ray.train.v2._internal.constants import DEFAULT_PREEMPTION_DEADLINE_S

    assert UNKNOWN_GRACE_S == DEFAULT_PREEMPTION_DEADLINE_S
    assert saves([10.0, 11.0, 10.0 + UNKNOWN_GRACE_S - 1], math.inf) == [10.0, 10.0 + UNKNOWN_GRACE_S - 1]


def test_a_node_that_goes_earlier_than_another_has_its_own_saves() -> None:
    grace = GraceSaves()
    assert grace.is_due(100.0, 0.0, 1.0) and not grace.is_due(100.0, 1.0, 1.0)
    assert grace.is_due(50.0, 2.0, 1.0) and not grace.is_due(50.0, 3.0, 1.0)


class Taken(Exception):
    """The node is gone."""


def test_a_run_whose_node_was_taken_away_goes_on_from_the_step_at_which_it_heard_and_has_the_curve_of_an_undisturbed_one(tmp_path: Path) -> None:
    settings = {"max_steps": 9, "checkpoint_every_steps": 100}
    for name in ("undisturbed", "taken"):
        tiny_dataset(tmp_path / name)
    undisturbed = run_alone(tiny_settings(tmp_path / "undisturbed", **settings))
    root = tmp_path / "taken"
    run = plan_run(tiny_settings(root, **settings))
    run.folder(root).mkdir(parents=True)
    asked = 0

    def leaves_at() -> float | None:
        nonlocal asked
        asked += 1
        if asked == 7:
            raise Taken
        return time.time() + 3600 if asked == 5 else None

    with pytest.raises(Taken):
        TrainingLoop(run, root, Process()).run(leaves_at=leaves_at)
    assert run.checkpoints(root).steps() == [5]
    loop = TrainingLoop(run, root, Process())
    assert loop.resume() == 5
    run_alone(tiny_settings(root, **settings))
    assert curve(root, run) == curve(tmp_path / "undisturbed", undisturbed)
    assert final_files(root, run) == final_files(tmp_path / "undisturbed", undisturbed)


def test_what_ray_tells_a_worker_of_its_node_is_read_without_waiting_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own context, and what its watcher does with a node that is drained."""
    from ray.train.v2._internal.execution import context
    from ray.train.v2._internal.execution.preemption import PreemptionContext
    from ray.train.v2.api.preemption import PreemptionInfo

    from ray_apps.training.worker import _leaves_at

    assert "preemption_context" in context.TrainContext.__dataclass_fields__
    told = PreemptionContext()

    class Context:
        preemption_context = told

    monkeypatch.setattr(context, "_train_context", Context)
    assert _leaves_at() is None
    told.preemption_info = PreemptionInfo(deadline_ms=5_500, preempted_node_to_ranks={"n": [1]})
    assert _leaves_at() == 5.5
    told.preemption_info = PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={"n": [1]})
    assert _leaves_at() == math.inf
