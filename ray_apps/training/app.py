"""Training on Ray: ``train`` takes a dataset version to a registered model version.

Ray Train places the workers and starts them again when one dies; what they do is ``loop.py``. The truth about how far a run is lies in
the run's own checkpoints (Ray collects reports on a poll and may miss the newest), so that a killed worker, a killed ``headrace train``
and a killed machine all recover the same way: run it again. The order, which makes registration happen exactly once:
(1) plan the run: its name follows from the data, the settings and the parent; (2) lock the run; (3) a run that was registered is
returned as it is; (4) train, unless the last step is done; (5) register.
"""

import importlib
import logging
import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.dataset.dataset import Dataset
from pipelines.runtime.cluster import ray_session
from pipelines.runtime.roles import node_resources
from pipelines.runtime.tracing import Attributes, current_traceparent, span, start_tracing
from pipelines.storage.durable import check_root, replace_durably
from pipelines.storage.leases import Lease
from pipelines.storage.mirror import root_name
from pipelines.storage.store import is_local, remove
from ray_apps.models.registry import Registry
from ray_apps.training import announce
from ray_apps.training.failure import read_failure
from ray_apps.training.files import FAILURE_FILE, RUN_FILE
from ray_apps.training.loss_curve import LossFollower, LossRecord, StoredLosses
from ray_apps.training.run import TrainingRun, is_complete, plan_run, run_lock
from ray_apps.training.worker import train_worker
from schemas.errors import LeaseLost, SettingsError, TrainingError
from schemas.manifest import ModelManifest
from schemas.settings import Settings

log = logging.getLogger(__name__)

PROGRESS_INTERVAL_S = 0.25
EXPORT = "ray_apps.training.export"
"""What registers the model. Loading it takes seconds, which this process has while the workers train."""
RAY_FOLDER = "ray"
"""Ray Train's own files, in the run's folder; worth nothing once the run is done."""

OnProgress = Callable[[TrainingRun, LossRecord], None]
"""Called in the caller's thread with the newest step."""


def train(
    settings: Settings,
    *,
    dataset_version: int | None = None,
    view: str | None = None,
    parent_model: int | None = None,
    on_progress: OnProgress | None = None,
) -> ModelManifest:
    """Train on a dataset version (the newest by default), or on a view ``NAME[@N]`` of it, and register the model.

    Goes on with the run if it was interrupted. A run that was registered before is not trained again: its manifest is returned. Raises
    NotEnoughData, DatasetNotFound, ViewNotFound, ModelNotFound, TokenizerMismatch, SettingsError; whatever error a worker found that would come
    again (TrainingDiverged, ShardCorrupt …), at its first time; TrainingError if workers were lost more often than ``training.max_failures``.
    """
    settings = settings.model_copy(update={"root": str(Path(settings.root).resolve())})  # workers run in other folders
    root = Path(settings.root)
    start_tracing(settings.telemetry, "headrace-training")
    # Step 1: what to do, and its name.
    run = plan_run(settings, dataset_version, parent_model, view=view)
    # Step 2: nobody else does it.
    check_root(root)
    with run_lock(run.folder(root)) as lease:
        # Step 3: perhaps it is done.
        registry = Registry(root)
        if (made := registry.find_run(run.run_id)) is not None:
            registry.remove_other_attempts(made)
            return made
        with announce.announcer(settings) as say, span("training.run", _planned(run), parent=_trace_of_the_data(run, root)) as traced:
            manifest = _train_and_register(run, settings, say, on_progress, lease)
            traced.set_attributes(_trained(manifest))
            return manifest


def _trace_of_the_data(run: TrainingRun, root: Path) -> str | None:
    """The run goes on with the trace of the dataset version, so that it leads from offsets to the model; also when it is done again."""
    return Dataset(root, run.dataset.version).manifest.traceparent


def _planned(run: TrainingRun) -> Attributes:
    attributes: dict[str, str | int] = {"headrace.run_id": run.run_id, "headrace.dataset_version": run.dataset.version}
    if run.dataset.view is not None:
        attributes["headrace.view"] = f"{run.dataset.view.name}@{run.dataset.view.version}"
    return attributes | ({} if run.parent_model is None else {"headrace.parent_model": run.parent_model})


def _trained(manifest: ModelManifest) -> Attributes:
    training = manifest.training
    counts = {"headrace.steps": training.steps, "headrace.tokens": training.tokens, "headrace.last_loss": training.last_loss}
    return counts | {"headrace.model_version": manifest.version, "headrace.parameters": manifest.num_parameters}


def _train_and_register(
    run: TrainingRun, settings: Settings, say: announce.Announce, on_progress: OnProgress | None, lease: Lease | None
) -> ModelManifest:
    root = Path(settings.root)
    try:
        # Step 4: every step, and the evaluation.
        if not is_complete(run, root):
            say(announce.started(run), run.run_id)
            _train_on_ray(run, settings, on_progress, lease)
        # Step 5: the model exists.
        if lease is not None:
            lease.look()
        manifest = _register(run, root)
    except LeaseLost:
        raise  # the other one goes on with the run
    except Exception as error:
        say(announce.failed(run, error), run.run_id)
        raise
    say(announce.finished(manifest), run.run_id)
    say(announce.registered(manifest), f"model/{manifest.version}")
    return manifest


def _register(run: TrainingRun, root: Path) -> ModelManifest:
    from ray_apps.training.export import register_run  # loads transformers: not before the workers have been started

    return register_run(run, root, lambda: datetime.now(UTC), current_traceparent())


def _train_on_ray(run: TrainingRun, settings: Settings, on_progress: OnProgress | None, lease: Lease | None) -> None:
    folder, ray_folder = run.folder(Path(settings.root)), _ray_folder(run, settings)
    shutil.rmtree(ray_folder, ignore_errors=True)
    remove(folder / FAILURE_FILE)
    replace_durably(folder / RUN_FILE, run.model_dump_json(indent=2).encode())
    _check_resources(settings)
    with ray_session(settings.ray, f"train {root_name(settings.root)}: {run.told}"):
        fit = _Fit(run, settings, lease.number if lease else 0)
        fit.start()
        follower = LossFollower(folder) if lease is None else StoredLosses(run.checkpoints(Path(settings.root), lease))
        loading = threading.Thread(target=importlib.import_module, args=(EXPORT,), name="load-export", daemon=True)
        while fit.is_alive():
            fit.join(PROGRESS_INTERVAL_S)
            if lease is not None:
                lease.check()
            records = follower.poll()
            if records and loading.ident is None:
                loading.start()
            if records and on_progress:
                on_progress(run, records[-1])
        fit.check()
    shutil.rmtree(ray_folder, ignore_errors=True)


def _ray_folder(run: TrainingRun, settings: Settings) -> Path:
    """Where Ray Train's controller writes its own files; beside the run's, or on an object store for this host alone."""
    folder = run.folder(Path(settings.root))
    if is_local(folder):
        return folder / RAY_FOLDER
    return Path(tempfile.gettempdir(), f"headrace-train-{os.getuid()}", f"{run.run_id}-{os.getpid()}")


def _check_resources(settings: Settings) -> None:
    """A private Ray with fewer CPUs than the workers want would wait for ever."""
    wanted = settings.training.num_workers * settings.training.threads_per_worker
    if settings.ray.address == "local" and not settings.training.use_gpu and wanted > settings.ray.num_cpus:
        raise SettingsError(
            f"{settings.training.num_workers} workers with {settings.training.threads_per_worker} threads need {wanted} CPUs, but "
            f"ray.num_cpus is {settings.ray.num_cpus}; raise it, or lower training.num_workers"
        )


class _Fit(threading.Thread):
    """Runs Ray Train beside the main thread, which stays free to show progress and to be interrupted (Ray would take SIGINT over)."""

    def __init__(self, run: TrainingRun, settings: Settings, lease_number: int) -> None:
        super().__init__(name="ray-train", daemon=True)
        self._lease_number = lease_number
        self._run_spec = run
        self._settings = settings
        self._error: Exception | None = None

    def run(self) -> None:
        """Run the trainer to its end."""
        try:
            _trainer(self._run_spec, self._settings, self._lease_number).fit()
        except Exception as error:  # noqa: BLE001 - handed to the main thread
            self._error = error

    def check(self) -> None:
        """Raise what the workers found that cannot succeed, or TrainingError if Ray gave up."""
        failure = read_failure(self._run_spec.folder(Path(self._settings.root)), self._lease_number)
        if failure is not None:
            raise failure.exception() from self._error
        if self._error is not None:
            reason = str(self._error).strip().splitlines()[-1:] or [type(self._error).__name__]
            name = self._run_spec.run_id
            raise TrainingError(f"run {name} was given up: {reason[0]}; `headrace train` goes on from its newest checkpoint") from self._error


def _trainer(run: TrainingRun, settings: Settings, lease_number: int) -> Any:
    """The TorchTrainer of one attempt. Its name is new each time: Ray would otherwise restore its own idea of the run."""
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    training = settings.training
    resources: dict[str, float] = {"CPU": 1, "GPU": 1} if training.use_gpu else {"CPU": training.threads_per_worker}
    resources |= node_resources(settings.ray.training_nodes, "ray.training_nodes")
    return TorchTrainer(
        train_worker,
        train_loop_config={"root": settings.root, "run": run.model_dump_json(), "lease": str(lease_number)},
        scaling_config=ScalingConfig(num_workers=training.num_workers, use_gpu=training.use_gpu, resources_per_worker=resources),
        torch_config=TorchConfig(backend="nccl" if training.use_gpu else "gloo"),
        run_config=RunConfig(  # type: ignore[call-arg]  # mypy sees Ray's older class
            name="-".join((root_name(settings.root), run.run_id, run.origin.replace(" ", "-"), secrets.token_hex(4))),
            storage_path=str(_ray_folder(run, settings)),
            failure_config=FailureConfig(max_failures=training.max_failures),
            logging_config=LoggingConfig(log_level=_log_level(settings)),
        ),
    )


def _log_level(settings: Settings) -> str:
    """Ray Train's log: what goes wrong, unless more was asked for; the progress is ours to show."""
    return "DEBUG" if settings.telemetry.log_level == "DEBUG" else "WARNING"
