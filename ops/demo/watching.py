"""How the demo sees what goes on: by the dataset, model and rollout logs under its root, the training runs' loss curves, and the API.

Nothing is reported by the parts to the demo; it looks at what any user can look at.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ops.demo.screen import Screen
from pipelines.runtime.child import Child, tail
from pipelines.storage.commit_log import CommitLog
from ray_apps.loop.disk import Disk
from ray_apps.training.files import RUN_FILE
from ray_apps.training.loss_curve import FILE_NAME, LossRecord, read_losses
from schemas.errors import HeadraceError
from schemas.manifest import DatasetManifest, ModelManifest
from schemas.rollout import RolloutState

POLL_S = 0.3
TAIL_LINES = 12
ResultT = TypeVar("ResultT")


class StageFailed(HeadraceError):
    """A stage of the demo did not come to its end."""


class Watch:
    """Waits for things to happen while ``headrace up`` lives."""

    def __init__(self, root: Path, up: Child, screen: Screen) -> None:
        self.root = root
        self.screen = screen
        self._up = up
        self._disk = Disk(root)

    def until(self, look: Callable[[], ResultT | None], doing: str, timeout_s: float, log: str = "up") -> ResultT:
        """What ``look`` finds as soon as it finds something. Raises StageFailed with the end of the log ``log`` if it does not."""
        deadline = time.monotonic() + timeout_s
        while (found := look()) is None:
            code = self._up.poll()
            if code is not None:
                raise StageFailed(f"{self.screen.title}: `headrace up` ended with exit code {code} while {doing}{self._tail('up')}")
            if time.monotonic() > deadline:
                raise StageFailed(f"{self.screen.title}: {doing} took more than {timeout_s:.0f} s{self._tail(log)}")
            time.sleep(POLL_S)
        return found

    def addresses(self) -> dict[str, Any] | None:
        """What ``headrace up --json`` printed, once everything is ready."""
        try:
            return dict(json.loads(self._up.output()))
        except ValueError:
            return None

    def datasets(self, after: int) -> list[DatasetManifest]:
        """Dataset versions newer than ``after``."""
        log = CommitLog(self.root / "log")
        return [DatasetManifest.model_validate_json(log.read(version)) for version in range(after + 1, log.latest() + 1)]

    def model(self, version: int) -> ModelManifest | None:
        """A model version, once it is registered."""
        return self._disk.model(version) if self._disk.registry.log.latest() >= version else None

    def rollout(self) -> RolloutState | None:
        """The rollout state in force."""
        return self._disk.rollouts.latest()

    def rollouts(self) -> list[RolloutState]:
        """All rollout states, oldest first."""
        return self._disk.rollouts.after(0)

    def training(self, number: int) -> tuple[list[LossRecord], int]:
        """The loss curve so far of the run number ``number`` (from 1, by age), and the steps that are planned."""
        runs = sorted((self.root / "training").glob(f"*/{RUN_FILE}"), key=lambda path: path.stat().st_mtime)
        if len(runs) < number:
            return [], 0
        path = runs[number - 1]
        return read_losses(path.parent / FILE_NAME), int(json.loads(path.read_bytes())["training"]["max_steps"])

    def check_training(self) -> None:
        """Raise StageFailed if a training run failed: ``up`` would go on trying, the person in front of a demo need not wait for that."""
        if b"training failed" in (self.root / "logs" / "up.log").read_bytes():
            raise StageFailed(f"{self.screen.title}: the training run failed{self._tail('train')}")

    def _tail(self, log: str) -> str:
        path = self.root / "logs" / f"{log}.log"
        return f"; the end of {path}:\n{tail(path, TAIL_LINES)}"
