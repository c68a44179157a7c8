"""A training run: what is trained on what, under a name that follows from exactly that.

The name is a hash of the dataset version, of the view of it if there is one, of the settings that decide the weights (identity.py) and of the parent
model, so that the same command after a crash finds its checkpoints, and a run that was registered is not trained again. How many
processes share the work, how often they save and how often they may fail change the weights by rounding at most: they are left out,
and a run can go on with fewer workers.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import Field

from pipelines.dataset.dataset import Dataset
from pipelines.storage.durable import make_folder, replace_durably
from pipelines.storage.leases import Holder, Lease, held
from pipelines.storage.store import is_folder, is_local
from ray_apps.models.registry import Registry
from ray_apps.training.checkpoint import Binding, CheckpointStore
from ray_apps.training.files import FOLDER, LOG_FOLDER, RESULT_FILE
from ray_apps.training.identity import former_fingerprint, model_fingerprint, run_name
from ray_apps.training.stored import StoredCheckpoints, keep, kept
from schemas.arrow import Split
from schemas.errors import NotEnoughData, SettingsError, TokenizerMismatch, TrainingError
from schemas.manifest import DatasetRef, Evaluation, TokenizerRef
from schemas.record import Record
from schemas.settings import ModelSettings, Settings, TrainingSettings


class TrainingRun(Record):
    """Everything that a worker needs to know; ``run.json`` in the run's folder."""

    run_id: str = Field(pattern=r"^[a-z0-9-]+$")
    """Name of the run's folder under ``<root>/training``."""
    dataset: DatasetRef
    """What it reads."""
    tokenizer: TokenizerRef
    """The dataset's tokenizer."""
    sequence_length: int
    """Tokens per row, S."""
    parent_model: int | None
    """Model version whose weights it starts from."""
    model: ModelSettings
    """The shape of the model."""
    training: TrainingSettings
    """How it is trained."""
    settings_fingerprint: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Fingerprint of the settings that decide the weights."""

    @property
    def origin(self) -> str:
        """Which weights it starts from, in words."""
        return "from scratch" if self.parent_model is None else f"from model {self.parent_model}"

    @property
    def told(self) -> str:
        """What it is about, in words."""
        view = f"view {self.dataset.view.name}@{self.dataset.view.version} of " if self.dataset.view else ""
        return f"{view}dataset {self.dataset.version} {self.origin}"

    def folder(self, root: Path) -> Path:
        """Where checkpoints, losses and the result are."""
        return root / FOLDER / self.run_id

    def checkpoints(self, root: Path, lease: Lease | None = None) -> CheckpointStore:
        """The run's checkpoints. ``lease``: under which to commit others, where the root is on an object store."""
        binding, folder = Binding(self.dataset.data_sha256, self.training.seed, self.settings_fingerprint), self.folder(root)
        if is_local(root):
            return CheckpointStore(folder, binding, self.training.keep_checkpoints)
        return StoredCheckpoints(folder, binding, self.training.keep_checkpoints, lease)


class RunResult(Record):
    """What the workers leave when the last step and the evaluation are done."""

    evaluation: Evaluation | None
    """None if the dataset version has no validation rows."""
    parent_evaluation: Evaluation | None = None
    """Of the model that the run started from, on the same rows."""
    precision: str | None = None
    """fp32, bf16 or fp16: what the run was trained in; none in results of versions that did not say."""


def write_result(path: Path, result: Record, lease: Lease | None = None) -> None:
    """Leave a small result of a run at ``path``; on an object store it is committed under the run's lease."""
    data = result.model_dump_json(indent=2).encode()
    if is_local(path):
        replace_durably(path, data)
    else:
        keep(lease, path, data)


def read_result(path: Path, lease: Lease | None = None) -> bytes | None:
    """What ``write_result`` has left; None if there is nothing."""
    if not is_local(path):
        return kept(lease, path)
    return path.read_bytes() if path.is_file() else None


def is_complete(run: TrainingRun, root: Path) -> bool:
    """Whether the workers have nothing left to do: the last step's checkpoint is there and whole, and so is the result."""
    if read_result(run.folder(root) / RESULT_FILE) is None:
        return False
    newest = run.checkpoints(root).newest()
    return newest is not None and newest.step == run.training.max_steps


def plan_run(settings: Settings, dataset_version: int | None = None, parent_model: int | None = None, *, view: str | None = None) -> TrainingRun:
    """Decide what to train; the newest dataset version by default, or the one that the view ``NAME[@N]`` is bound to.

    Raises DatasetNotFound, ViewNotFound, NotEnoughData, ModelNotFound, TokenizerMismatch, or SettingsError if the workers cannot share a batch.
    """
    dataset, ref = _data(settings, dataset_version, view)
    if parent_model is not None:
        _check_parent(settings, dataset, parent_model)
    run_id, model_sha256 = _identity(settings, ref, parent_model)
    return TrainingRun(
        run_id=run_id,
        dataset=ref,
        tokenizer=dataset.tokenizer,
        sequence_length=dataset.manifest.sequence_length,
        parent_model=parent_model,
        model=settings.model,
        training=settings.training,
        settings_fingerprint=model_sha256,
    )


def _identity(settings: Settings, ref: DatasetRef, parent_model: int | None) -> tuple[str, str]:
    """Name and settings fingerprint of the run: those of an earlier version of Headrace if that has begun or registered it."""
    root, former = Path(settings.root), former_fingerprint(settings)
    if former is not None:
        known_as = run_name(ref.version, ref.data_sha256, parent_model, former)
        if is_folder(root / FOLDER / known_as) or Registry(root).find_run(known_as) is not None:
            return known_as, former
    model_sha256 = model_fingerprint(settings)
    return run_name(ref.version, ref.data_sha256, parent_model, model_sha256), model_sha256


def _data(settings: Settings, dataset_version: int | None, view: str | None) -> tuple[Dataset, DatasetRef]:
    """What the run reads, pinned: a view that follows the newest dataset version means this one from here on."""
    root = Path(settings.root)
    if view is None:
        dataset = Dataset(root, dataset_version)
        _check_batches(f"dataset version {dataset.version}", dataset.num_rows(Split.TRAIN), settings.training)
        return dataset, dataset.ref()
    from pipelines.views.rows import ViewRows  # a second to load, which a run without a view does not need
    from pipelines.views.selection import open_view

    opened = open_view(root, view, dataset_version)
    rows = ViewRows(opened)
    _check_batches(f"{opened.label} ({rows.num_documents:,} documents, {rows.num_tokens:,} tokens)", rows.num_rows, settings.training)
    rows.mixture.check()
    return opened.dataset, opened.dataset.ref().model_copy(update={"view": opened.ref()})


def _check_batches(name: str, num_rows: int, training: TrainingSettings) -> None:
    if num_rows < training.global_batch_rows:
        raise NotEnoughData(
            f"{name} has {num_rows} training rows, one step takes {training.global_batch_rows}; "
            f"ingest more documents, or lower training.global_batch_rows"
        )
    if training.global_batch_rows % training.num_workers:
        raise SettingsError(
            f"training.global_batch_rows ({training.global_batch_rows}) cannot be shared evenly by training.num_workers ({training.num_workers})"
        )


def _check_parent(settings: Settings, dataset: Dataset, parent_model: int) -> None:
    parent = Registry(Path(settings.root)).manifest(parent_model)
    if parent.tokenizer.sha256 != dataset.tokenizer.sha256:
        raise TokenizerMismatch(
            f"model version {parent_model} uses tokenizer {parent.tokenizer.sha256[:12]}, dataset version {dataset.version} uses "
            f"{dataset.tokenizer.sha256[:12]}; train without a parent model"
        )


@contextmanager
def run_lock(folder: Path) -> Iterator[Lease | None]:
    """Hold the run for this process. Raises TrainingError if another one holds it.

    In a folder the kernel drops the lock when the process dies. On an object store it is a lease, which the block gets.
    """
    if not is_local(folder):

        def refusal(holder: Holder) -> TrainingError:
            return TrainingError(f"{holder} is training run {folder.name} already; wait for it")

        with held(folder / LOG_FOLDER, refusal) as lease:
            yield lease
        return
    make_folder(folder)
    with (folder / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise TrainingError(f"process {file.read().strip() or 'unknown'} is training run {folder.name} already; wait for it") from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield None
