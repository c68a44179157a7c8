"""Training on Ray: ``train`` takes a dataset version to a registered model version.

Ray Train places the workers and starts them again when one dies; what they do is ``loop.py``. The truth about how far a run is lies in
the run's own checkpoints (Ray collects reports on a poll and may miss the newest), so that a killed worker, a killed ``headrace train``
and a killed machine all recover the same way: run it again. The order, which makes registration happen exactly once:
(1) plan the run: its name follows from the data, the settings and the parent; (2) lock the run; (3) a run that was registered is
returned as it is; (4) train, unless the last step is done; (5) register.
"""

import importlib
import logging
import secrets
import shutil
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
from pipelines.storage.mirror import root_name
from ray_apps.models.registry import Registry
from ray_apps.training import announce
from ray_apps.training.failure import read_failure
from ray_apps.training.files import FAILURE_FILE, RUN_FILE
from ray_apps.training.loss_curve import LossFollower, LossRecord
from ray_apps.training.run import TrainingRun, is_complete, plan_run, run_lock
from ray_apps.training.worker import train_worker
from schemas.errors import SettingsError, TrainingError
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
    with run_lock(run.folder(root)):
        # Step 3: perhaps it is done.
        made = Registry(root).find_run(run.run_id)
        if made is not None:
            return made
        with announce.announcer(settings) as say, span("training.run", _planned(run), parent=_trace_of_the_data(run, root)) as traced:
            manifest = _train_and_register(run, settings, say, on_progress)
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


def _train_and_register(run: TrainingRun, settings: Settings, say: announce.Announce, on_progress: OnProgress | None) -> ModelManifest:
    root = Path(settings.root)
    try:
        # Step 4: every step, and the evaluation.
        if not is_complete(run, root):
            say(announce.started(run), run.run_id)
            _train_on_ray(run, settings, on_progress)
        # Step 5: the model exists.
        manifest = _register(run, root)
    except Exception as error:
        say(announce.failed(run, error), run.run_id)
        raise
    say(announce.finished(manifest), run.run_id)
    say(announce.registered(manifest), f"model/{manifest.version}")
    return manifest


def _register(run: TrainingRun, root: Path) -> ModelManifest:
    from ray_apps.training.export import register_run  # loads transformers: not before the workers have been started

    return register_run(run, root, lambda: datetime.now(UTC), current_traceparent())


def _train_on_ray(run: TrainingRun, settings: Settings, on_progress: OnProgress | None) -> None:
    folder = run.folder(Path(settings.root))
    shutil.rmtree(folder / RAY_FOLDER, ignore_errors=True)
    (folder / FAILURE_FILE).unlink(missing_ok=True)
    replace_durably(folder / RUN_FILE, run.model_dump_json(indent=2).encode())
    _check_resources(settings)
    with ray_session(settings.ray, f"train {root_name(settings.root)}: {run.told}"):
        fit = _Fit(run, settings)
        fit.start()
        follower = LossFollower(folder)
        loading = threading.Thread(target=importlib.import_module, args=(EXPORT,), name="load-export", daemon=True)
        while fit.is_alive():
            fit.join(PROGRESS_INTERVAL_S)
            records = follower.poll()
            if records and loading.ident is None:
                loading.start()
            if records and on_progress:
                on_progress(run, records[-1])
        fit.check()
    shutil.rmtree(folder / RAY_FOLDER, ignore_errors=True)


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

    def __init__(self, run: TrainingRun, settings: Settings) -> None:
        super().__init__(name="ray-train", daemon=True)
        self._run_spec = run
        self._settings = settings
        self._error: Exception | None = None

    def run(self) -> None:
        """Run the trainer to its end."""
        try:
            _trainer(self._run_spec, self._settings).fit()
        except Exception as error:  # noqa: BLE001 - handed to the main thread
            self._error = error

    def check(self) -> None:
        """Raise what the workers found that cannot succeed, or TrainingError if Ray gave up."""
        failure = read_failure(self._run_spec.folder(Path(self._settings.root)))
        if failure is not None:
            raise failure.exception() from self._error
        if self._error is not None:
            reason = str(self._error).strip().splitlines()[-1:] or [type(self._error).__name__]
            name = self._run_spec.run_id
            raise TrainingError(f"run {name} was given up: {reason[0]}; `headrace train` goes on from its newest checkpoint") from self._error


def _trainer(run: TrainingRun, settings: Settings) -> Any:
    """The TorchTrainer of one attempt. Its name is new each time: Ray would otherwise restore its own idea of the run."""
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    training = settings.training
    resources: dict[str, float] = {"CPU": 1, "GPU": 1} if training.use_gpu else {"CPU": training.threads_per_worker}
    resources |= node_resources(settings.ray.training_nodes, "ray.training_nodes")
    return TorchTrainer(
        train_worker,
        train_loop_config={"root": settings.root, "run": run.model_dump_json()},
        scaling_config=ScalingConfig(num_workers=training.num_workers, use_gpu=training.use_gpu, resources_per_worker=resources),
        torch_config=TorchConfig(backend="nccl" if training.use_gpu else "gloo"),
        run_config=RunConfig(  # type: ignore[call-arg]  # mypy sees Ray's older class
            name="-".join((root_name(settings.root), run.run_id, run.origin.replace(" ", "-"), secrets.token_hex(4))),
            storage_path=str(run.folder(Path(settings.root)) / RAY_FOLDER),
            failure_config=FailureConfig(max_failures=training.max_failures),
            logging_config=LoggingConfig(log_level=_log_level(settings)),
        ),
    )


def _log_level(settings: Settings) -> str:
    """Ray Train's log: what goes wrong, unless more was asked for; the progress is ours to show."""
    return "DEBUG" if settings.telemetry.log_level == "DEBUG" else "WARNING"
