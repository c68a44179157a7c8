"""What Ray Train runs in each worker.

Nothing is imported before it is needed: Ray's own controller loads this module too, only to hand it on, and need not wait for torch and
transformers.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray_apps.training.loss_curve import LossRecord


def train_worker(config: dict[str, str]) -> Any:
    """One worker of Ray Train. Returns a sentence if the run cannot succeed, which Ray would otherwise try again and again."""
    import ray.train.torch

    from ray_apps.training.loop import TrainingLoop
    from ray_apps.training.parallel import joined_process, prepare_device
    from ray_apps.training.run import TrainingRun
    from schemas.errors import TrainingError

    run = TrainingRun.model_validate_json(config["run"])
    device = ray.train.torch.get_device()
    prepare_device(device, run.training.threads_per_worker)
    try:
        TrainingLoop(run, Path(config["root"]), joined_process(device)).run(on_checkpoint=_report)
    except TrainingError as error:
        return str(error)
    return None


def _report(record: "LossRecord") -> None:
    """Show the step in Ray's dashboard."""
    import ray.train

    ray.train.report({"step": record.step, "loss": record.loss, "tokens_per_s": record.num_tokens / max(record.duration_s, 1e-9)})
