"""``headrace train``: train a model on a dataset version and register it. Run again after an interruption, it goes on."""

import argparse
import signal
import threading
import time
from collections import deque
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from ops.cli.arguments import positive_int
from ops.cli.output import print_json, progress_bar, say, tell
from schemas.settings import Settings

if TYPE_CHECKING:
    from ray_apps.training.loss_curve import LossRecord
    from ray_apps.training.run import TrainingRun
    from schemas.manifest import ModelManifest

LINES_PER_RUN = 10
"""Progress lines where standard error is not a terminal."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser) -> None:
    """Define the command."""
    parser = subparsers.add_parser("train", parents=[common], help="train a model on a dataset version and register it")
    parser.add_argument("--dataset", type=positive_int, metavar="N", help="dataset version (default: the newest)")
    parser.add_argument("--view", metavar="NAME[@N]", help="train on this view of the dataset version (headrace datasets view)")
    parser.add_argument("--parent", metavar="MODEL", help="model version or alias whose weights to start from (default: random weights)")
    parser.add_argument("--json", action="store_true", help="print the model's manifest as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Train and print what came out."""
    from pipelines.views.store import parse_label, read_view
    from ray_apps.models.registry import Registry

    registry = Registry(Path(settings.root))
    known = registry.versions()
    parent = registry.resolve(args.parent) if args.parent else None
    if args.view:
        read_view(registry.root, *parse_label(args.view))

    from ray_apps.training.app import train  # brings torch: seconds in which a wrong name is told already

    shown = _Progress()
    interrupted = _interruptions()
    try:
        with shown.bar:
            manifest = train(settings, dataset_version=args.dataset, view=args.view, parent_model=parent, on_progress=shown.update)
    except BaseException:
        if not interrupted.is_set():
            raise
        say("headrace train: interrupted; run the same command again to continue from the newest checkpoint")
        return 130
    if manifest.version in known:
        say(f"this run was registered before as model version {manifest.version}; nothing was trained")
    if args.json:
        print_json(manifest.model_dump(mode="json"))
    else:
        tell(describe(manifest))
    return 0


def _interruptions() -> threading.Event:
    """Set by Ctrl-C, which also raises KeyboardInterrupt. A terminal sends it to Ray's processes too: their failure may come up first."""
    interrupted = threading.Event()

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    return interrupted


def describe(manifest: "ModelManifest") -> str:
    """One line about a new model version."""
    result, training = manifest.evaluation, manifest.training
    quality = f"validation loss {result.loss:.4f}, perplexity {result.perplexity:.2f}" if result else "not evaluated: no validation rows"
    return (
        f"model version {manifest.version}: {manifest.num_parameters:,} parameters, dataset version {manifest.dataset.version}{_view(manifest)}, "
        f"loss {training.first_loss:.4f} -> {training.last_loss:.4f}, {quality}"
    )


def _view(manifest: "ModelManifest") -> str:
    view = manifest.dataset.view
    return f" (view {view.name}@{view.version})" if view else ""


class _Progress:
    """A progress bar on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self.bar = progress_bar()
        self._task = self.bar.add_task("starting Ray", total=None)
        self._recent: deque[tuple[float, int]] = deque(maxlen=40)
        self._next_line = 0

    def update(self, run: "TrainingRun", record: "LossRecord") -> None:
        """Show the newest step."""
        done, total = record.step + 1, run.training.max_steps
        self._recent.append((time.monotonic(), record.step))
        text = f"loss {record.loss:.4f}  {record.num_tokens / max(record.duration_s, 1e-9):,.0f} tok/s{self._eta(total - done)}"
        self.bar.update(self._task, description=text, completed=done, total=total)
        if self.bar.disable and (done >= self._next_line or done == total):
            say(f"step {done}/{total}  {text}")
            self._next_line = done + max(1, total // LINES_PER_RUN)

    def _eta(self, remaining: int) -> str:
        (first_s, first_step), (last_s, last_step) = self._recent[0], self._recent[-1]
        if last_step <= first_step:
            return ""
        return f"  ETA {remaining * (last_s - first_s) / (last_step - first_step):.0f} s"
