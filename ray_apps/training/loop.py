"""The training loop: plain PyTorch, runs in one process or in each of several, knows nothing of Ray.

Invariant: everything that a step does is a function of (weights, optimizer state, step), and a checkpoint holds all three. A run that
is killed at any moment and started again goes through the same numbers, bit for bit, as one that was not (same number of processes).

(1) build the model, (2) let DDP settle, and evaluate the parent whose weights these still are, once per run, (3) restore the newest good checkpoint,
(4) cut the loss curve there, (5) step and record, (6) checkpoint, the loss curve forced to disk before it, (7) evaluate and leave the result.
A node that is about to be taken away costs no step: grace.py.
"""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from pipelines.dataset.dataset import Dataset
from pipelines.runtime.crash import crash_point
from pipelines.storage.leases import Lease
from ray_apps.training.batches import StepBatches
from ray_apps.training.evaluate import ValidationRows, evaluate
from ray_apps.training.files import PARENT_FILE, RESULT_FILE
from ray_apps.training.grace import GraceSaves
from ray_apps.training.loss_curve import LossCurve, LossRecord
from ray_apps.training.optimizer import build_optimizer
from ray_apps.training.parallel import Process, parallelize, prime
from ray_apps.training.precision import resolve_precision
from ray_apps.training.run import RunResult, TrainingRun, read_result, write_result
from ray_apps.training.schedule import learning_rate
from ray_apps.training.step import Stepper, SummedLoss, seed_step, train_step
from ray_apps.training.weights import build_model
from schemas.errors import TrainingDiverged
from schemas.manifest import Evaluation
from schemas.settings import TrainingSettings

OnStep = Callable[[LossRecord], None]
LeavesAt = Callable[[], float | None]
"""When the first of the run's nodes is taken away (UNIX time); None if none is."""


def never() -> None:
    """No node is taken away."""


class TrainingLoop:
    """One process of a run. ``run()`` starts where the newest checkpoint ends. ``lease``: of the run, for the first process, on an object store."""

    def __init__(self, run: TrainingRun, root: Path, process: Process, lease: Lease | None = None) -> None:
        self.spec = run
        self.lease = lease
        self.root = root
        self.process = process
        self.folder = run.folder(root)
        self.store = run.checkpoints(root, lease)
        self.model = build_model(run, root)
        self.loss_module = SummedLoss(self.model).to(process.device)
        self.optimizer = build_optimizer(self.model, run.training, process.device)
        self.precision = resolve_precision(run.training, process.device)
        self.stepper = Stepper(
            module=parallelize(self.loss_module, process),
            optimizer=self.optimizer,
            scaler=self.precision.scaler(),
            precision=self.precision,
            process=process,
            accumulation_steps=run.training.accumulation_steps,
            clip_norm=run.training.clip_norm,
        )
        self._save_s = 0.0
        """How long the last checkpoint took."""
        self.batches = StepBatches(root, run.dataset, run.tokenizer, run.training, rank=process.rank, world_size=process.world_size)

    def run(self, on_checkpoint: OnStep | None = None, leaves_at: LeavesAt = never) -> None:
        """Train to the last step and leave ``result.json``. ``on_checkpoint`` is called in every process with the step before each checkpoint.
        ``leaves_at`` is asked after each step.

        Raises TrainingDiverged, in every process alike, if the loss or the weights stop being numbers.
        """
        prime(self.stepper.module, self._dummy_loss)
        parent_evaluation = None if self.spec.parent_model is None else self._evaluate_parent()
        step = self.resume()
        self.loss_module.train()
        grace = GraceSaves()
        with LossCurve(self.folder, step, self.store.losses(step)) if self.process.is_first else nullcontext() as curve:
            while step < self.spec.training.max_steps:
                record = self._step(step)
                step += 1
                if curve:
                    curve.append(record)
                crash_point("step_taken")
                if self._is_due(step):
                    self._checkpoint(step, curve)
                    if on_checkpoint:
                        on_checkpoint(record)
                elif curve and grace.is_due(leaves_at(), time.time(), record.duration_s + self._save_s):
                    self._checkpoint(step, curve)
        self._finish(parent_evaluation)

    def resume(self) -> int:
        """Restore the newest good checkpoint, the same one in every process; returns the next step to run."""
        newest = self.store.newest() if self.process.is_first else None
        step = self.process.from_first(newest.step if newest else 0)
        if step:
            manifest = self.store.manifest(step)
            if manifest.precision not in (None, self.precision.name):
                self._go_on_in(manifest.precision)
            self.store.restore(manifest, self.model, self.optimizer, self.stepper.scaler)
        self.process.barrier()
        return step

    def _go_on_in(self, precision: str) -> None:
        """Use the arithmetic that the run began in, on a device for which ``auto`` stands for another one."""
        chosen = TrainingSettings.model_validate({"precision": precision})
        self.precision = resolve_precision(chosen, self.process.device)
        self.stepper = replace(self.stepper, precision=self.precision, scaler=self.precision.scaler())

    def _step(self, step: int) -> LossRecord:
        settings = self.spec.training
        started = time.perf_counter()
        seed_step(settings.seed, step, self.process.rank)
        rate = learning_rate(settings, step)
        result = train_step(self.stepper, self.batches[step], rate)
        if not math.isfinite(result.loss):
            raise TrainingDiverged(
                f"the loss of step {step} is {result.loss}; lower training.learning_rate ({settings.learning_rate}) or raise training.warmup_steps"
            )
        return LossRecord(step, result.loss, result.grad_norm, rate, result.num_targets, time.perf_counter() - started)

    def _is_due(self, next_step: int) -> bool:
        settings = self.spec.training
        return next_step % settings.checkpoint_every_steps == 0 or next_step == settings.max_steps

    def _checkpoint(self, next_step: int, curve: LossCurve | None) -> None:
        if curve:
            started = time.perf_counter()
            curve.sync()
            self.store.save(next_step, self.model, self.optimizer, self.stepper.scaler, self.precision.name)
            self._save_s = time.perf_counter() - started

    def _finish(self, parent_evaluation: Evaluation | None) -> None:
        self._check_weights()
        result = RunResult(evaluation=self._evaluate(), parent_evaluation=parent_evaluation, precision=self.precision.name)
        if self.process.is_first:
            write_result(self.folder / RESULT_FILE, result, self.lease)
        self.process.barrier()

    def _check_weights(self) -> None:
        """The loss of a step is that before its update, so what the last update has spoilt shows in the weights only."""
        spoilt = [name for name, parameter in self.model.named_parameters() if not bool(torch.isfinite(parameter).all())]
        if spoilt:
            settings = self.spec.training
            raise TrainingDiverged(
                f"after the last step {len(spoilt)} of the model's tensors hold values that are no numbers, {spoilt[0]} for example; "
                f"lower training.learning_rate ({settings.learning_rate}) or raise training.warmup_steps"
            )

    def _evaluate(self) -> Evaluation | None:
        self.loss_module.eval()
        validation = ValidationRows(Dataset(self.root, self.spec.dataset.version), self.spec.training.evaluate_rows)
        return evaluate(self.loss_module, validation, self.precision, self.process)

    def _evaluate_parent(self) -> Evaluation | None:
        """Of the weights before a checkpoint is restored; what an earlier start of the run has measured is read, by the first process."""
        path = self.folder / PARENT_FILE
        known = _parsed(read_result(path, self.lease)) if self.process.is_first else None
        if self.process.from_first(int(known is not None)):
            return known
        found = self._evaluate()
        if found is not None and self.process.is_first:
            write_result(path, found, self.lease)
        return found

    def _dummy_loss(self) -> Tensor:
        ids_BT = torch.zeros((1, 2), dtype=torch.int64, device=self.process.device)
        loss: Tensor = self.stepper.module(ids_BT, ids_BT)
        return loss


def _parsed(data: bytes | None) -> Evaluation | None:
    """None if there is none that can be read."""
    try:
        return None if data is None else Evaluation.model_validate_json(data)
    except ValidationError:
        return None
