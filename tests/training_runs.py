"""Tiny training runs over committed datasets, for tests: a few hundred thousand parameters, milliseconds per step."""

import importlib
import json
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import torch
from torch.multiprocessing.spawn import start_processes

from ray_apps.training.loop import TrainingLoop
from ray_apps.training.loss_curve import FILE_NAME, LossRecord, read_losses
from ray_apps.training.parallel import CPU, Process, joined_process, prepare_device
from ray_apps.training.run import TrainingRun, plan_run
from schemas.manifest import TokenizerRef
from schemas.settings import Settings
from schemas.settings_sources import load_settings
from tests.factories import make_dataset
from tests.model_factory import make_tokenizer

torch.set_num_threads(1)  # two threads that wait for each other are slower than one on a busy machine


def tiny_settings(root: Path, **training: object) -> Settings:
    """Settings of a run that takes a second: 12 rows of 16 tokens per step."""
    chosen: dict[str, object] = {
        "max_steps": 8,
        "global_batch_rows": 12,
        "warmup_steps": 2,
        "checkpoint_every_steps": 3,
        "evaluate_rows": 8,
    }
    overrides = {f"training.{name}": value for name, value in (chosen | training).items()}
    return load_settings("", {}, {"root": str(root), "ray.dashboard_port": 0, **overrides})


def tiny_dataset(root: Path, num_rows: int = 40, sequence_length: int = 16) -> TokenizerRef:
    """One more committed version, with a tokenizer that transformers can load."""
    written = make_tokenizer(root / "tokenizer" / "new")
    folder = root / written.path
    if not folder.exists():
        (root / "tokenizer" / "new").rename(folder)
    make_dataset(root, num_rows=num_rows, sequence_length=sequence_length, tokenizer=written)
    return written


def run_alone(settings: Settings, dataset_version: int | None = None) -> TrainingRun:
    """Train in this process, without Ray, from the newest checkpoint to the end."""
    run = plan_run(settings, dataset_version)
    train_until(run, Path(settings.root), Process(), None)
    return run


def curve(root: Path, run: TrainingRun) -> list[tuple[int, float, float | None]]:
    """(step, loss, gradient norm) of every step: what must be the same bit for bit."""
    return [(record.step, record.loss, record.grad_norm) for record in records(root, run)]


def records(root: Path, run: TrainingRun) -> list[LossRecord]:
    """The recorded steps."""
    return read_losses(run.folder(root) / FILE_NAME)


def final_files(root: Path, run: TrainingRun) -> dict[str, str]:
    """SHA-256 of the last checkpoint's weights and optimizer state."""
    store = run.checkpoints(root)
    return store.manifest(store.steps()[-1]).files


class Interrupted(Exception):
    """Stands for whatever stopped a process in the middle of a run."""


def train_until(run: TrainingRun, root: Path, process: Process, stop_at: int | None) -> None:
    """Train to the end, or stop dead when the checkpoint at or after step ``stop_at`` is written."""

    def stop(record: LossRecord) -> None:
        if stop_at is not None and record.step >= stop_at:
            raise Interrupted

    run.folder(root).mkdir(parents=True, exist_ok=True)
    with suppress(Interrupted):
        TrainingLoop(run, root, process).run(on_checkpoint=stop)


def run_together(roots: list[Path], stops: list[int | None], num_processes: int, **training: object) -> None:
    """Train in several gloo processes, without Ray: for each root the tiny run of these settings, up to each of its stops.

    All of it happens in one group of processes, forked from an interpreter of its own that imports torch and transformers once.
    """
    with tempfile.TemporaryDirectory() as meeting:
        work = {"meeting": f"file://{meeting}/group", "roots": list(map(str, roots)), "stops": stops, "training": training}
        command = [sys.executable, "-m", "tests.training_runs", str(num_processes), json.dumps(work)]
        subprocess.run(command, cwd=Path(__file__).parents[1], check=True, timeout=240)


def main() -> None:
    """The group of ``run_together``."""
    num_processes, work = int(sys.argv[1]), json.loads(sys.argv[2])
    importlib.import_module("transformers.models.llama.modeling_llama")
    arguments = (num_processes, work["meeting"], list(map(Path, work["roots"])), work["stops"], work["training"])
    start_processes(_member, arguments, nprocs=num_processes, start_method="fork")  # type: ignore[no-untyped-call]


def _member(rank: int, num_processes: int, meeting: str, roots: list[Path], stops: list[int | None], training: dict[str, object]) -> None:
    prepare_device(CPU, num_threads=1)
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=num_processes)
    try:
        for root, stop_at in zip(roots, stops, strict=True):
            train_until(plan_run(tiny_settings(root, **training)), root, joined_process(CPU), stop_at)
    finally:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
