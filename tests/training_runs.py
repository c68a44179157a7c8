"""Tiny training runs over committed datasets, for tests: a few hundred thousand parameters, milliseconds per step."""

import tempfile
from pathlib import Path

import torch
import torch.multiprocessing

from ray_apps.training.loop import TrainingLoop
from ray_apps.training.losses import FILE_NAME, LossRecord, read_losses
from ray_apps.training.parallel import Process, joined_process, prepare_device
from ray_apps.training.run import TrainingRun, plan_run
from schemas.manifest import TokenizerRef
from schemas.settings import Settings, load_settings
from tests.factories import make_dataset
from tests.model_factory import make_tokenizer


def tiny_settings(root: Path, **training: object) -> Settings:
    """Settings of a run that takes a second: 8 rows of 16 tokens per step."""
    chosen: dict[str, object] = {
        "max_steps": 8,
        "global_batch_rows": 8,
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
    root = Path(settings.root)
    run.folder(root).mkdir(parents=True, exist_ok=True)
    TrainingLoop(run, root, Process()).run()
    return run


def curve(root: Path, run: TrainingRun) -> list[tuple[int, float, float | None]]:
    """(step, loss, gradient norm) of every step: what must be the same bit for bit."""
    return [(record.step, record.loss, record.grad_norm) for record in records(root, run)]


def records(root: Path, run: TrainingRun) -> list[LossRecord]:
    """The recorded steps."""
    return read_losses(run.folder(root) / FILE_NAME)


def run_together(settings: Settings, num_processes: int) -> TrainingRun:
    """Train in several gloo processes on this machine, without Ray."""
    run = plan_run(settings)
    folder = run.folder(Path(settings.root))
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as meeting:
        torch.multiprocessing.spawn(_member, (num_processes, f"file://{meeting}/group", settings.root, run.model_dump_json()), nprocs=num_processes)
    return run


def _member(rank: int, num_processes: int, meeting: str, root: str, run: str) -> None:
    prepare_device(torch.device("cpu"), num_threads=1)
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=num_processes)
    try:
        TrainingLoop(TrainingRun.model_validate_json(run), Path(root), joined_process(torch.device("cpu"))).run()
    finally:
        torch.distributed.destroy_process_group()
