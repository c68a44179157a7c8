"""Ray Train for real: a killed worker, a killed command, Ctrl-C; the curve is that of a run that nobody disturbed.

The workers of `headrace train` are suspended at a random step (a crash point), one is SIGKILLed, another goes on, and Ray starts all again: one
worker in every run, two in the slow one. So each kill lands where it is meant to, and few steps are enough. The slow scenario then suspends the
new workers so many steps behind their checkpoint, and SIGKILLs the whole command; the same command finishes the run. The reference comes from as
many processes without Ray.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from ops.cli.main import main
from pipelines.dataset.dataset import Dataset
from pipelines.runtime.crash import VARIABLE
from ray_apps.models.registry import Registry
from ray_apps.training.files import FAILURE_FILE
from ray_apps.training.loss_curve import FILE_NAME, read_losses
from ray_apps.training.run import TrainingRun, is_complete, plan_run
from schemas.arrow import Split
from tests.processes import descendants, parents, read_proc
from tests.training_runs import curve, run_alone, run_together, tiny_dataset, tiny_settings

pytestmark = pytest.mark.timeout(900)  # a minute on two idle cores; deadlines are for busy ones
REPOSITORY = Path(__file__).parents[2]
STEPS = 60
CHECKPOINT_EVERY = 17
SETTINGS = {"max_steps": STEPS, "checkpoint_every_steps": CHECKPOINT_EVERY}
TRAIN_ONLY = """
import argparse, sys
from ops.cli import main, train
parser = argparse.ArgumentParser()
train.add_parser(parser.add_subparsers(dest="command"), main.common_flags())
main.build_parser = lambda: parser
sys.exit(main.main())
"""


class Command:
    """`headrace train` as a child process, in a session of its own so that Ctrl-C can be sent to all of it."""

    def __init__(self, root: Path, crash_at: str | None = None, num_workers: int = 2) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", TRAIN_ONLY, *arguments(root, num_workers)],
            cwd=REPOSITORY,
            env=os.environ | ({VARIABLE: crash_at} if crash_at else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def workers(self) -> list[int]:
        """Process ids of Ray Train's workers among the descendants."""
        return [pid for pid in descendants(self.process.pid) if b"RayTrainWorker" in read_proc(pid, "cmdline")]

    def raylets(self) -> list[int]:
        """Process ids of Ray's node."""
        return [pid for pid in descendants(self.process.pid) if b"raylet/raylet" in read_proc(pid, "cmdline").split(b"\0")[0]]

    def stopped_workers(self) -> list[int]:
        """Those of them that are suspended at the crash point; Ray's workers inherit it from the command."""
        return [pid for pid in self.workers() if read_proc(pid, "stat").rpartition(b")")[2].split()[:1] == [b"T"]]

    def finish(self, timeout_s: float = 240.0) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        try:
            out, err = self.process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        return self.process.returncode, out, err

    def kill(self) -> None:
        """SIGKILL the command; Ray's processes notice."""
        self.process.kill()
        self.process.communicate()


def all_gone(pids: list[int]) -> bool:
    return not set(pids) & parents().keys()


def go_on(pids: list[int]) -> None:
    """Resume what is suspended."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def arguments(root: Path, num_workers: int) -> list[str]:
    """Of the tiny run under this root."""
    values = {**tiny_settings(Path()).training.model_dump(exclude_unset=True), **SETTINGS, "num_workers": num_workers}
    return [
        "train",
        "--json",
        "--root",
        str(root),
        "--set=ray.dashboard_port=0",
        *(f"--set=training.{name}={value}" for name, value in values.items()),
    ]


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 240.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for: {what}"
        time.sleep(0.1)  # looking costs something, too: it reads what /proc says of every process


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainingRun]:
    """An undisturbed run of two processes."""
    root = tmp_path_factory.mktemp("reference")
    tiny_dataset(root)
    run_together([root], [None], num_processes=2, **SETTINGS)
    return root, plan_run(tiny_settings(root, **SETTINGS))


@pytest.fixture
def undisturbed(num_workers: int, request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, TrainingRun]:
    """An undisturbed run of so many processes."""
    if num_workers > 1:
        found: tuple[Path, TrainingRun] = request.getfixturevalue("reference")
        return found
    root = tmp_path / "undisturbed"
    tiny_dataset(root)
    return root, run_alone(tiny_settings(root, **SETTINGS))


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_killed_worker_leaves_the_curve_of_an_undisturbed_run_and_the_model_is_registered_once(
    num_workers: int, undisturbed: tuple[Path, TrainingRun], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """So late that the new workers, which count their steps from the checkpoint, do not come to the crash point again."""
    root = tmp_path / "killed"
    tiny_dataset(root)
    run = plan_run(tiny_settings(root, **SETTINGS))
    step = random.randrange(2 * CHECKPOINT_EVERY + 1, 3 * CHECKPOINT_EVERY)
    command = Command(root, f"stop@step_taken:{step}", num_workers)
    try:
        wait_for(lambda: len(command.stopped_workers()) == num_workers, f"all workers to stop at step {step}")
        assert len(read_losses(run.folder(root) / FILE_NAME)) == step
        victim, *others = random.sample(command.stopped_workers(), num_workers)
        os.kill(victim, signal.SIGKILL)
        go_on(others)
        code, out, err = command.finish()
    finally:
        command.kill()
    assert code == 0, err[-3000:]
    manifest = json.loads(out)
    assert curve(root, run) == curve(*undisturbed), f"killed at step {step}"
    assert (manifest["version"], manifest["training"]["run_id"], manifest["training"]["steps"]) == (1, run.run_id, STEPS)
    assert f"step {STEPS}/{STEPS}" in err
    assert main(arguments(root, num_workers)) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == manifest
    assert "registered before as model version 1" in said.err
    assert Registry(root).versions() == [1]


@pytest.mark.slow
def test_a_killed_worker_and_a_killed_command_leave_the_curve_of_an_undisturbed_run(tmp_path: Path, reference: tuple[Path, TrainingRun]) -> None:
    tiny_dataset(tmp_path)
    run = plan_run(tiny_settings(tmp_path, **SETTINGS))
    losses = run.folder(tmp_path) / FILE_NAME
    behind = random.randrange(CHECKPOINT_EVERY + 1, 2 * CHECKPOINT_EVERY)
    kills = (behind, CHECKPOINT_EVERY + behind)

    # Step 1: a worker dies; Ray starts the group again.
    command = Command(tmp_path, crash_at=f"stop@step_taken:{behind}")
    try:
        wait_for(lambda: len(command.stopped_workers()) == 2, f"both workers to stop at step {kills[0]}")
        assert len(read_losses(losses)) == kills[0]
        victim, *others = random.sample(first := command.stopped_workers(), 2)
        os.kill(victim, signal.SIGKILL)
        go_on(others)
        wait_for(lambda: len(set(command.stopped_workers()) - set(first)) == 2, f"two new workers to stop at step {kills[1]}")
    finally:
        # Step 2: the command dies.
        orphans, ray = command.workers(), command.raylets()
        command.kill()
        wait_for(lambda: all_gone(ray), "Ray of the killed command ends")
        go_on(orphans)
    wait_for(lambda: all_gone(orphans), "the workers of the killed command end")
    assert kills[1] <= len(read_losses(losses)) < STEPS
    assert not is_complete(run, tmp_path)
    # Step 3: the same command finishes the run.
    code, out, err = Command(tmp_path).finish()
    assert code == 0, err[-3000:]
    assert json.loads(out)["training"]["steps"] == STEPS
    assert curve(tmp_path, run) == curve(*reference), f"killed at steps {kills}"


@pytest.mark.slow
def test_ctrl_c_ends_with_130_and_says_how_to_go_on(tmp_path: Path) -> None:
    tiny_dataset(tmp_path)
    run = plan_run(tiny_settings(tmp_path, **SETTINGS))
    command = Command(tmp_path)
    try:
        wait_for(lambda: len(read_losses(run.folder(tmp_path) / FILE_NAME)) >= 20, "step 20, behind the first checkpoint")
        workers = command.workers()
        os.killpg(command.process.pid, signal.SIGINT)
        code, out, err = command.finish()
    finally:
        command.kill()
    assert (code, out) == (130, "")
    assert "run the same command again to continue" in err
    assert not any(line.startswith("Traceback") for line in err.splitlines())  # of ours: Ray's actors may log what they like
    wait_for(lambda: all_gone(workers), "the workers end")
    assert run.checkpoints(tmp_path).steps()
    assert Registry(tmp_path).versions() == []


@pytest.mark.slow
def test_a_corrupt_shard_ends_the_run_at_once_with_one_line(tmp_path: Path) -> None:
    """Every attempt would find it again: the workers are not started eight times."""
    tiny_dataset(tmp_path)
    run = plan_run(tiny_settings(tmp_path, **SETTINGS))
    shard = tmp_path / Dataset(tmp_path, 1).shards(Split.TRAIN)[0].path
    os.truncate(shard, shard.stat().st_size // 2)
    code, out, err = Command(tmp_path).finish()
    assert (code, out) == (1, "")
    lines = [line for line in err.splitlines() if line.startswith("headrace train:")]
    assert len(lines) == 1
    assert shard.name in lines[0]
    assert "Traceback" not in lines[0]
    assert (run.folder(tmp_path) / FAILURE_FILE).is_file()
    assert Registry(tmp_path).versions() == []
