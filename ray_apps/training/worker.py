"""What Ray Train runs in each worker.

Nothing is imported before it is needed: Ray's own controller loads this module too, only to hand it on, and need not wait for torch and
transformers.
"""

import logging
import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray_apps.training.loss_curve import LossRecord
    from ray_apps.training.run import TrainingRun

_log = logging.getLogger(__name__)


def train_worker(config: dict[str, str]) -> None:
    """One worker of Ray Train: trains, or leaves in the run's folder why that cannot succeed.

    It raises then too, and Ray ends the others, who would wait for this one for ever; the workers of Ray's next attempt find the failure and end.
    """
    import ray.train.torch

    from pipelines.storage.leases import join
    from pipelines.text.log_lines import log_about
    from ray_apps.training.failure import lasting_error, read_failure, record_failure
    from ray_apps.training.files import LOG_FOLDER
    from ray_apps.training.loop import TrainingLoop
    from ray_apps.training.parallel import joined_process, prepare_device
    from ray_apps.training.run import TrainingRun

    run, root, lease_number = TrainingRun.model_validate_json(config["run"]), Path(config["root"]), int(config["lease"])
    context = ray.train.get_context()
    log_about(f"run {run.run_id}, {run.told}, worker {context.get_world_rank()} of {context.get_world_size()}")
    if read_failure(run.folder(root), lease_number) is not None:
        return
    try:
        device = ray.train.torch.get_device()
        prepare_device(device, run.training.threads_per_worker)
        process = joined_process(device)
        lease = join(run.folder(root) / LOG_FOLDER, lease_number) if lease_number and process.is_first else None
        TrainingLoop(run, root, process, lease).run(on_checkpoint=partial(_report, run), leaves_at=_leaves_at)
    except Exception as error:
        lasting = lasting_error(error)
        if lasting is not None:
            record_failure(run.folder(root), lasting, lease_number)
        raise


def _report(run: "TrainingRun", record: "LossRecord") -> None:
    """Give the step to Ray Train, whose own line about it does not name the run, and say it in the log."""
    import ray.train

    tokens_per_s = record.num_tokens / max(record.duration_s, 1e-9)
    _log.info("step %d of %d: loss %.4f, %s tokens/s", record.step + 1, run.training.max_steps, record.loss, f"{tokens_per_s:,.0f}")
    ray.train.report({"step": record.step, "loss": record.loss, "tokens_per_s": tokens_per_s})


def _leaves_at() -> float | None:
    """When the first of the run's nodes is taken away; infinity if nobody has said when.

    It is read from where Ray keeps it: the public function, ``ray.train.get_preemption_info``, makes all workers wait for each other at each call.
    """
    from ray.train.v2._internal.execution.context import get_train_context

    info = get_train_context().preemption_context.preemption_info
    if info is None:
        return None
    return math.inf if info.deadline_ms is None else info.deadline_ms / 1000
