"""Checkpoints: everything that a run needs to go on as if nothing had happened.

    <run>/checkpoints/00000040.json            the manifest: files with SHA-256, loader state, loss scaler, what run it belongs to
    <run>/checkpoints/00000040-3fa1…/          model.safetensors, optimizer.safetensors

A checkpoint exists when its manifest does: (1) files written and flushed in a folder with a unique name, (2) the folder flushed,
(3) the manifest published by rename, (4) older checkpoints removed, manifest first. Weights and optimizer state are safetensors and
the rest is JSON: nothing here can execute code when it is read. Random numbers are a function of (seed, step, rank), so there is no
generator state to keep. "Step 40" means: steps 0..39 are done. Costs three times the model's bytes per checkpoint. On an object store the manifests
are elsewhere: ray_apps/training/stored.py.
"""

import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipelines.dataset.loader import LoaderState
from pipelines.runtime.crash import crash_point
from pipelines.storage.durable import make_folder, replace_durably, sha256_file, sync_folder
from pipelines.storage.store import all_local, refetch
from ray_apps.training.loss_curve import FILE_NAME, LossRecord, read_losses
from schemas.errors import CheckpointCorrupt, LeaseLost, StoreUnavailable, TrainingError
from schemas.manifest import FORMAT
from schemas.record import Record

log = logging.getLogger(__name__)

FOLDER = "checkpoints"
MODEL_FILE, OPTIMIZER_FILE = "model.safetensors", "optimizer.safetensors"
CRASH_POINTS = (
    "run_checkpoint_written",  # its files are there, no manifest says so
    "run_checkpoint_published",  # those that it replaces are still there
)
"""Every step of a checkpoint, in its order; the recovery tests kill the process there."""
_MANIFEST = re.compile(r"^(\d{8})\.json\Z")
_FILES = re.compile(r"^(\d{8})-[0-9a-f]{12}\Z")


class CheckpointManifest(Record):
    """What makes a checkpoint real."""

    format: int = Field(FORMAT, ge=1, le=FORMAT)
    """Version of this file format."""
    step: int = Field(ge=0)
    """Steps that are done; the next one to run."""
    folder: str = Field(pattern=r"^\d{8}-[0-9a-f]{12}$")
    """Folder with the files, beside this one."""
    files: dict[str, str]
    """File name -> SHA-256, hex."""
    dataset_sha256: str
    """Manifest hash of the dataset version that the run reads."""
    seed: int
    """Seed of the order of rows."""
    settings_fingerprint: str
    """Fingerprint of the model and training settings."""
    scaler: dict[str, float]
    """State of the loss scaler; empty unless the run is fp16. Its counts are whole numbers, which JSON does not tell apart."""
    precision: str | None = None
    """fp32, bf16 or fp16: the arithmetic of the run; none in checkpoints of versions that did not say."""


@dataclass(frozen=True)
class Binding:
    """The run that a checkpoint must belong to."""

    dataset_sha256: str
    seed: int
    settings_fingerprint: str

    def check(self, manifest: CheckpointManifest, path: Path) -> None:
        """Raise CheckpointCorrupt if the checkpoint was made by another run."""
        loader = LoaderState(manifest.dataset_sha256, manifest.seed, manifest.step)
        loader.check(dataset_sha256=self.dataset_sha256, seed=self.seed)
        if manifest.settings_fingerprint != self.settings_fingerprint:
            raise CheckpointCorrupt(
                f"{path} was made with settings {manifest.settings_fingerprint[:12]}, this run has {self.settings_fingerprint[:12]}; "
                f"remove the folder {path.parent} to start the run again"
            )


class CheckpointStore:
    """The checkpoints of one run; ``keep`` of them are kept."""

    def __init__(self, run_folder: Path, binding: Binding, keep: int) -> None:
        self.run_folder = run_folder
        self.folder = run_folder / FOLDER
        self.binding = binding
        self.keep = keep

    def losses(self, step: int) -> list[LossRecord]:
        """The loss curve up to a checkpoint's step, not included."""
        return [record for record in read_losses(self.run_folder / FILE_NAME) if record.step < step]

    def steps(self) -> list[int]:
        """Steps that have a manifest, ascending; whether their bytes are good is not looked at."""
        if not self.folder.is_dir():
            return []
        return sorted(int(match[1]) for entry in self.folder.iterdir() if (match := _MANIFEST.match(entry.name)))

    def save(
        self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, precision: str | None = None
    ) -> CheckpointManifest:
        """Publish a checkpoint; durable when this returns. One process calls it. Raises TrainingError if the disk refuses; nothing is left then."""
        files = self.folder / f"{step:08d}-{secrets.token_hex(6)}"
        try:
            manifest = self._publish(step, files, model, optimizer, scaler, precision)
        except LeaseLost:
            with suppress(StoreUnavailable):  # where the store does not answer, nobody knows whether a manifest lists the files
                self._forget(step, files)
            raise
        except (OSError, SafetensorError) as error:
            self._forget(step, files)
            before = self.steps()
            going_on = f"goes on from step {before[-1]}" if before else "starts again"
            raise TrainingError(
                f"the checkpoint of step {step} cannot be written to {self.folder}: {error}; free some space, then `headrace train` {going_on}"
            ) from error
        crash_point("run_checkpoint_published")
        # Step 4: what is older than the kept ones goes.
        self._prune()
        return manifest

    def _publish(
        self, step: int, files: Path, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, precision: str | None
    ) -> CheckpointManifest:
        # Step 1 and 2: the files, each forced to disk, and their names.
        with self._written(files) as place:
            hashes = {
                MODEL_FILE: _write_tensors(place / MODEL_FILE, model_tensors(model)),
                OPTIMIZER_FILE: _write_tensors(place / OPTIMIZER_FILE, optimizer_tensors(model, optimizer)),
                **self._write_more(place),
            }
        crash_point("run_checkpoint_written")
        # Step 3: the manifest makes them a checkpoint.
        manifest = CheckpointManifest(
            step=step,
            folder=files.name,
            files=hashes,
            dataset_sha256=self.binding.dataset_sha256,
            seed=self.binding.seed,
            settings_fingerprint=self.binding.settings_fingerprint,
            scaler=dict(scaler.state_dict()),
            precision=precision,
        )
        self._commit(manifest)
        return manifest

    @contextmanager
    def _written(self, files: Path) -> Iterator[Path]:
        """Where to write what is to lie in ``files`` at the end of the block."""
        make_folder(files)
        yield files
        sync_folder(files)

    def _write_more(self, place: Path) -> dict[str, str]:  # noqa: ARG002
        """Whatever else belongs to a checkpoint: name and SHA-256."""
        return {}

    def _commit(self, manifest: CheckpointManifest) -> None:
        replace_durably(self._path(manifest.step), manifest.model_dump_json(indent=2).encode())

    def _forget(self, step: int, files: Path) -> None:
        """Remove what a checkpoint that was not published has left."""
        self._path(step).unlink(missing_ok=True)
        shutil.rmtree(files, ignore_errors=True)

    def newest(self) -> CheckpointManifest | None:
        """The newest checkpoint whose bytes are those that were written; damaged ones are skipped with a warning.

        Raises CheckpointCorrupt if the checkpoint is whole but belongs to another run.
        """
        for step in reversed(self.steps()):
            try:
                manifest = self._verified(step)
            except CheckpointCorrupt as error:
                log.warning("%s; going back to the checkpoint before", error)
                continue
            self.binding.check(manifest, self._path(step))
            return manifest
        return None

    def manifest(self, step: int) -> CheckpointManifest:
        """The manifest of a step. Raises CheckpointCorrupt if it is missing or does not parse."""
        try:
            return CheckpointManifest.model_validate_json(self._path(step).read_bytes())
        except (OSError, ValidationError) as error:
            raise CheckpointCorrupt(f"{self._path(step)} cannot be read: {error}") from error

    def restore(
        self, manifest: CheckpointManifest, model: nn.Module, optimizer: torch.optim.Optimizer | None, scaler: torch.amp.GradScaler | None
    ) -> None:
        """Load a checkpoint in place. Raises CheckpointCorrupt if the tensors are not those of this model."""
        files = self.folder / manifest.folder
        load_model_tensors(model, _read_tensors(files / MODEL_FILE), files)
        if optimizer is not None:
            load_optimizer_tensors(model, optimizer, _read_tensors(files / OPTIMIZER_FILE), files)
        if scaler is not None and manifest.scaler:
            scaler.load_state_dict(_scaler_state(manifest.scaler, scaler))

    def _path(self, step: int) -> Path:
        return self.folder / f"{step:08d}.json"

    def _verified(self, step: int) -> CheckpointManifest:
        manifest = self.manifest(step)
        self._verify(manifest)
        return manifest

    def _verify(self, manifest: CheckpointManifest) -> None:
        """Raise CheckpointCorrupt unless the files are those that were written."""
        paths = {self.folder / manifest.folder / name: sha256 for name, sha256 in manifest.files.items()}
        try:
            all_local(paths)
            for path, sha256 in paths.items():
                if sha256_file(path) != sha256 and not (refetch(path) and sha256_file(path) == sha256):
                    raise CheckpointCorrupt(f"checkpoint file {path} does not have the bytes that were written")
        except FileNotFoundError as error:
            raise CheckpointCorrupt(f"checkpoint file {error.filename} is missing") from error

    def _prune(self) -> None:
        steps = self.steps()
        oldest_kept = steps[-self.keep :][0]
        for step in steps[: -self.keep]:
            self._path(step).unlink(missing_ok=True)
        for entry in self.folder.iterdir():
            match = _FILES.match(entry.name)
            if match and int(match[1]) < oldest_kept:
                shutil.rmtree(entry, ignore_errors=True)


def _scaler_state(stored: dict[str, float], scaler: torch.amp.GradScaler) -> dict[str, float]:
    """The stored state with the types that the scaler has itself: it refuses to count in floats."""
    return {name: type(value)(stored[name]) for name, value in scaler.state_dict().items() if name in stored}


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters by name, a tied one once."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def load_model_tensors(model: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """Copy tensors into the parameters; names and shapes must agree. Raises CheckpointCorrupt."""
    parameters = dict(model.named_parameters())
    if parameters.keys() != tensors.keys():
        raise CheckpointCorrupt(f"{source} does not hold this model's tensors: {sorted(parameters.keys() ^ tensors.keys())[:4]} differ")
    with torch.no_grad():
        for name, parameter in parameters.items():
            if parameter.shape != tensors[name].shape:
                raise CheckpointCorrupt(f"{source}: {name} has shape {tuple(tensors[name].shape)}, the model's is {tuple(parameter.shape)}")
            parameter.copy_(tensors[name])


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """State tensors as ``<parameter name>|<state name>``; independent of the order of parameter groups."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {f"{names[id(parameter)]}|{key}": value.detach().cpu() for parameter, state in optimizer.state.items() for key, value in state.items()}


def load_optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], source: Path) -> None:
    """Put state tensors back. Raises CheckpointCorrupt if they are for other parameters."""
    parameters = dict(model.named_parameters())
    states: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        parameter_name, _, key = name.rpartition("|")
        states.setdefault(parameter_name, {})[key] = tensor
    unknown = states.keys() - parameters.keys()
    if unknown:
        raise CheckpointCorrupt(f"{source} holds optimizer state of parameters that this model does not have: {sorted(unknown)[:4]}")
    names = {id(parameter): name for name, parameter in parameters.items()}
    order = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    state = {index: states[name] for index, name in enumerate(order) if name in states}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> str:
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return sha256_file(path)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointCorrupt(f"{path} cannot be read: {error}; remove it to go back to the checkpoint before") from error
