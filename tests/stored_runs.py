"""What ``headrace train`` does, in one process and without Ray: ``python -m tests.stored_runs ROOT``; the root may be on an object store."""

import sys
from datetime import UTC, datetime
from pathlib import Path

from pipelines.storage.leases import join
from ray_apps.models.registry import Registry
from ray_apps.training.export import register_run
from ray_apps.training.files import LOG_FOLDER
from ray_apps.training.loop import TrainingLoop
from ray_apps.training.parallel import Process
from ray_apps.training.run import is_complete, plan_run, run_lock
from schemas.manifest import ModelManifest
from tests.training_runs import tiny_settings


def train_alone(root: Path) -> ModelManifest:
    """Train the tiny run on the newest dataset version, from where it stands, and register it."""
    run = plan_run(tiny_settings(root))
    with run_lock(run.folder(root)) as lease:
        registry = Registry(root)
        if (made := registry.find_run(run.run_id)) is not None:
            registry.remove_other_attempts(made)
            return made
        if not is_complete(run, root):
            worker = join(run.folder(root) / LOG_FOLDER, lease.number) if lease else None
            TrainingLoop(run, root, Process(), worker).run()
        return register_run(run, root, lambda: datetime.now(UTC))


if __name__ == "__main__":
    train_alone(Path(sys.argv[1]))
