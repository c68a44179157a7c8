"""A run that was stopped at any moment goes on bit for bit; damaged checkpoints cost time, never correctness. Real files, no Ray."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ray_apps.training.checkpoint import MODEL_FILE, OPTIMIZER_FILE
from ray_apps.training.loss_curve import FILE_NAME
from ray_apps.training.parallel import Process
from ray_apps.training.run import TrainingRun, plan_run, run_lock
from ray_apps.training.weights import build_model
from schemas.errors import CheckpointCorrupt, TrainingError
from tests.full_disk import files_no_larger_than
from tests.training_runs import curve, final_files, run_alone, tiny_dataset, tiny_settings, train_until


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainingRun]:
    """A run that nobody stopped."""
    root = tmp_path_factory.mktemp("straight")
    tiny_dataset(root)
    return root, run_alone(tiny_settings(root))


def assert_same(root: Path, run: TrainingRun, straight: tuple[Path, TrainingRun]) -> None:
    assert curve(root, run) == curve(*straight)
    assert final_files(root, run) == final_files(*straight)
    assert (run.folder(root) / "result.json").read_bytes() == (straight[1].folder(straight[0]) / "result.json").read_bytes()


@pytest.mark.parametrize("stop_at", [0, 3, 5, 7])
def test_a_run_stopped_after_any_checkpoint_goes_on_bit_for_bit(tmp_path: Path, straight: tuple[Path, TrainingRun], stop_at: int) -> None:
    tiny_dataset(tmp_path)
    run = plan_run(tiny_settings(tmp_path))
    train_until(run, tmp_path, Process(), stop_at)
    assert_same(tmp_path, run_alone(tiny_settings(tmp_path)), straight)


def test_a_process_killed_at_a_random_step_goes_on_bit_for_bit(tmp_path: Path, straight: tuple[Path, TrainingRun]) -> None:
    """SIGKILL between checkpoints: steps that were done are done again, and recorded once."""
    tiny_dataset(tmp_path)
    run = plan_run(tiny_settings(tmp_path))
    losses = run.folder(tmp_path) / FILE_NAME
    script = "import sys; from pathlib import Path; from tests.training_runs import *; run_alone(tiny_settings(Path(sys.argv[1])))"
    child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], cwd=Path(__file__).parents[2])
    wait_for(lambda: losses.is_file() and losses.read_bytes().count(b"\n") >= 5, child)
    child.kill()
    child.wait()
    assert_same(tmp_path, run_alone(tiny_settings(tmp_path)), straight)


def wait_for(condition: Callable[[], bool], child: "subprocess.Popen[bytes]", timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the child did not get that far"
        assert child.poll() in (None, 0, -signal.SIGKILL), "the child failed"
        time.sleep(0.002)


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


DAMAGES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "flipped byte in weights": (MODEL_FILE, flip_byte),
    "truncated optimizer state": (OPTIMIZER_FILE, truncate),
    "missing weights": (MODEL_FILE, Path.unlink),
    "torn manifest": ("", truncate),
    "emptied manifest": ("", lambda path: os.truncate(path, 0)),
}


@pytest.mark.parametrize("damage", sorted(DAMAGES))
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, straight: tuple[Path, TrainingRun], damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_dataset(tmp_path)
    run = plan_run(tiny_settings(tmp_path))
    train_until(run, tmp_path, Process(), 5)
    store = run.checkpoints(tmp_path)
    assert store.steps() == [3, 6]
    name, spoil = DAMAGES[damage]
    manifest_path = store.folder / "00000006.json"
    spoil(store.folder / store.manifest(6).folder / name if name else manifest_path)
    newest = store.newest()
    assert newest is not None
    assert newest.step == 3
    assert "going back to the checkpoint before" in caplog.text
    assert_same(tmp_path, run_alone(tiny_settings(tmp_path)), straight)


def test_with_every_checkpoint_damaged_the_run_starts_again(tmp_path: Path, straight: tuple[Path, TrainingRun]) -> None:
    tiny_dataset(tmp_path)
    run = plan_run(tiny_settings(tmp_path))
    train_until(run, tmp_path, Process(), 5)
    for weights in run.checkpoints(tmp_path).folder.glob(f"*/{MODEL_FILE}"):
        flip_byte(weights)
    assert run.checkpoints(tmp_path).newest() is None
    assert_same(tmp_path, run_alone(tiny_settings(tmp_path)), straight)


def test_files_without_a_manifest_are_no_checkpoint_and_go_with_the_old_ones(tmp_path: Path, straight: tuple[Path, TrainingRun]) -> None:
    """A crash between writing the files and publishing the manifest."""
    tiny_dataset(tmp_path)
    run = plan_run(tiny_settings(tmp_path))
    train_until(run, tmp_path, Process(), 2)
    store = run.checkpoints(tmp_path)
    orphan = store.folder / f"00000004-{'0' * 12}"
    orphan.mkdir()
    assert store.steps() == [3]
    assert_same(tmp_path, run_alone(tiny_settings(tmp_path)), straight)
    assert not orphan.exists()


def test_only_the_last_checkpoints_are_kept(straight: tuple[Path, TrainingRun]) -> None:
    root, run = straight
    store = run.checkpoints(root)
    assert store.steps() == [6, 8]
    assert sorted(path.name[:8] for path in store.folder.iterdir() if path.is_dir()) == ["00000006", "00000008"]


def test_a_loss_scaler_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    """An fp16 run; the scaler is the same class on CPU."""
    tiny_dataset(tmp_path)
    run = plan_run(tiny_settings(tmp_path))
    model = build_model(run, tmp_path)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scalers = [torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3) for _ in range(2)]
    weight = next(model.parameters())

    def step(scaler: torch.amp.GradScaler) -> dict[str, float]:
        scaler.scale(weight.sum()).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        return dict(scaler.state_dict())

    for _ in range(2):
        step(scalers[0])
    store = run.checkpoints(tmp_path)
    store.save(2, model, optimizer, scalers[0])
    store.restore(store.manifest(2), model, optimizer, scalers[1])
    assert scalers[1].state_dict() == scalers[0].state_dict()
    assert [step(scalers[1]) for _ in range(4)] == [step(scalers[0]) for _ in range(4)]
    assert scalers[1].get_scale() == 4096.0


def test_a_checkpoint_that_does_not_fit_the_disk_leaves_nothing_and_says_how_to_go_on(tmp_path: Path, straight: tuple[Path, TrainingRun]) -> None:
    tiny_dataset(tmp_path)
    run = plan_run(tiny_settings(tmp_path))
    train_until(run, tmp_path, Process(), 2)
    before = sorted(run.checkpoints(tmp_path).folder.rglob("*"))
    with files_no_larger_than(100_000), pytest.raises(TrainingError, match=r"step 6 cannot be written .* goes on from step 3"):
        train_until(run, tmp_path, Process(), None)
    assert sorted(run.checkpoints(tmp_path).folder.rglob("*")) == before
    assert_same(tmp_path, run_alone(tiny_settings(tmp_path)), straight)


def test_the_name_of_every_folder_above_a_checkpoint_is_flushed_before_its_manifest_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the system calls: a power cut takes a folder whose parent was not flushed."""
    tiny_dataset(tmp_path)
    run = plan_run(tiny_settings(tmp_path))
    folder = run.folder(tmp_path)
    flushed: set[Path] = set()
    fsync = os.fsync

    def record(descriptor: int) -> None:
        if not (folder / "checkpoints" / "00000003.json").exists():
            flushed.add(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    with run_lock(folder):
        train_until(run, tmp_path, Process(), 2)
    store = run.checkpoints(tmp_path)
    files = store.folder / store.manifest(3).folder
    assert {tmp_path, tmp_path / "training", folder, store.folder, files, files / MODEL_FILE, files / OPTIMIZER_FILE} <= flushed


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    """The file is whole, but its tensors are not those of this run's model."""
    tiny_dataset(tmp_path)
    run = run_alone(tiny_settings(tmp_path, max_steps=1))
    small = run.model_copy(update={"model": run.model.model_copy(update={"preset": "small"})})
    store = run.checkpoints(tmp_path)
    with pytest.raises(CheckpointCorrupt, match="does not hold this model's tensors"):
        store.restore(store.manifest(1), build_model(small, tmp_path), None, None)


def test_nothing_that_a_checkpoint_holds_can_run_code(straight: tuple[Path, TrainingRun]) -> None:
    """Safetensors (an 8-byte length and a JSON header) and JSON, no pickle."""
    root, run = straight
    for path in run.checkpoints(root).folder.rglob("*"):
        if path.suffix == ".json":
            json.loads(path.read_bytes())
        elif path.is_file():
            data = path.read_bytes()
            json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
