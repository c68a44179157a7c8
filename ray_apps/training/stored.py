"""What a run commits where the root is on an object store: its checkpoints, its losses, its results, under the run's lease.

    <run>/log/00000007.json          an entry of the lease (pipelines/storage/leases.py): who trains, and what is committed
    <run>/checkpoints/00000040-3fa1…/  model.safetensors, optimizer.safetensors, losses.jsonl

Order of a checkpoint: (1) its files, with the loss curve up to its step, under a name that nobody else writes to, (2) an entry of the log that lists
it, (3) the files of those that it replaces go. So the newest entry names the newest checkpoint, and nothing is listed to find it; a crash before (2)
leaves files that no entry names. Each start of the workers joins the lease with an entry of its own: workers that were lost, and live on a host
that nobody reaches, commit nothing. Costs a request for each file of a checkpoint and one for the entry.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from pipelines.storage.durable import durable_folder, sha256_file
from pipelines.storage.leases import Lease, committed
from pipelines.storage.store import local, names, remove_folder, write_bytes
from ray_apps.training.checkpoint import Binding, CheckpointManifest, CheckpointStore
from ray_apps.training.files import LOG_FOLDER
from ray_apps.training.loss_curve import FILE_NAME, LossRecord, parse_losses
from schemas.errors import CheckpointCorrupt

CHECKPOINTS = "checkpoints"
"""In the state of the lease: the manifests of the checkpoints that are kept, oldest first."""
_FILES = re.compile(r"^(\d{8})-[0-9a-f]{12}\Z")


class StoredCheckpoints(CheckpointStore):
    """The checkpoints of a run on an object store. Without a lease it only reads."""

    def __init__(self, run_folder: Path, binding: Binding, keep: int, lease: Lease | None = None) -> None:
        super().__init__(run_folder, binding, keep)
        self._lease = lease

    def steps(self) -> list[int]:
        """See ``CheckpointStore``."""
        return [int(entry["step"]) for entry in self._entries()]

    def manifest(self, step: int) -> CheckpointManifest:
        """See ``CheckpointStore``."""
        for entry in self._entries():
            if entry["step"] == step:
                return _parsed(entry, self.run_folder)
        raise CheckpointCorrupt(f"{self.run_folder} has no checkpoint of step {step}")

    def restore(
        self, manifest: CheckpointManifest, model: nn.Module, optimizer: torch.optim.Optimizer | None, scaler: torch.amp.GradScaler | None
    ) -> None:
        """See ``CheckpointStore``. It may be the first on this host to fetch the files, so it verifies them."""
        self._verify(manifest)
        super().restore(manifest, model, optimizer, scaler)

    def losses(self, step: int) -> list[LossRecord]:
        """See ``CheckpointStore``."""
        if not step:
            return []
        return parse_losses(local(self.folder / self.manifest(step).folder / FILE_NAME).read_bytes())

    @contextmanager
    def _written(self, files: Path) -> Iterator[Path]:
        with durable_folder(files) as place:
            yield place

    def _write_more(self, place: Path) -> dict[str, str]:
        """The loss curve, of which this host has the newest lines."""
        (place / FILE_NAME).write_bytes((self.run_folder / FILE_NAME).read_bytes())
        return {FILE_NAME: sha256_file(place / FILE_NAME)}

    def _commit(self, manifest: CheckpointManifest) -> None:
        assert self._lease is not None
        others = [entry for entry in self._entries() if entry["step"] < manifest.step]
        kept = [*others, manifest.model_dump(mode="json")][-self.keep :]
        self._lease.commit({**self._lease.state, CHECKPOINTS: kept})

    def _forget(self, step: int, files: Path) -> None:  # noqa: ARG002
        remove_folder(files)

    def _prune(self) -> None:
        """Remove the files of older checkpoints, and of those that a crash kept from being committed; a writer that still lives is fenced."""
        kept = {entry["folder"] for entry in self._entries()}
        newest = self.steps()[-1]
        for name in names(self.folder):
            if name not in kept and (match := _FILES.match(name)) and int(match[1]) <= newest:
                remove_folder(self.folder / name)

    def _entries(self) -> list[dict[str, Any]]:
        state = self._lease.state if self._lease is not None else committed(self.run_folder / LOG_FOLDER)
        found: list[dict[str, Any]] = state.get(CHECKPOINTS, [])
        return found


def _parsed(entry: dict[str, Any], folder: Path) -> CheckpointManifest:
    try:
        return CheckpointManifest.model_validate(entry)
    except ValidationError as error:
        raise CheckpointCorrupt(f"the newest entry of {folder / LOG_FOLDER} names a checkpoint that cannot be read: {error}") from error


def keep(lease: Lease | None, path: Path, data: bytes) -> None:
    """Commit a small result of a run under the name of its file, and write the file, for people."""
    assert lease is not None
    lease.commit({**lease.state, path.name: data.decode()})
    write_bytes(path, data)


def kept(lease: Lease | None, path: Path) -> bytes | None:
    """A result that was committed; none if there is none."""
    state = lease.state if lease is not None else committed(path.parent / LOG_FOLDER)
    found: str | None = state.get(path.name)
    return None if found is None else found.encode()
