"""What the loop does next: a pure function of what is on disk.

Nothing here remembers anything, so a loop that was killed goes on where it was: an order to train stands until its model is
registered, a model that was never champion or challenger waits for its trial, and an idle rollout takes the newest that waits.
"""

from dataclasses import dataclass

from schemas.record import Record
from schemas.rollout import Phase, RolloutState
from schemas.settings import LoopSettings


class TrainingOrder(Record):
    """What to train. The same order gives the same run: a repeated one resumes from its checkpoints."""

    dataset_version: int
    """Dataset version to train on."""
    parent_model: int | None
    """Model version to start from; none: from scratch."""
    view: str | None = None
    """View ``NAME@N`` of the dataset version; none: all of it as it is."""


@dataclass(frozen=True)
class LoopFacts:
    """What is on disk."""

    dataset_version: int = 0
    """Newest dataset version; 0 without one."""
    train_tokens: int = 0
    """Train tokens of that version and all before it."""
    newest_model: int = 0
    """Newest model version; 0 without one."""
    newest_model_tokens: int = 0
    """Train tokens of the dataset version that the newest model was trained on."""
    state: RolloutState | None = None
    """Rollout state in force."""
    tried: frozenset[int] = frozenset()
    """Model versions that were champion or challenger at some time."""
    order: TrainingOrder | None = None
    """The order whose model is not registered yet."""
    view: str | None = None
    """View ``NAME@N`` that the next order is for; none: the dataset version as it is."""
    held: str | None = None
    """Why no training run may be ordered: a dataset version drifted that nobody released, or the view that is asked for is not there."""


@dataclass(frozen=True)
class Bootstrap:
    """Make the first model champion."""

    model_version: int


@dataclass(frozen=True)
class StartTrial:
    """Put a model on trial."""

    model_version: int


Step = Bootstrap | StartTrial | TrainingOrder


def plan(view: LoopFacts, settings: LoopSettings) -> list[Step]:
    """Steps to take now, in this order: at most one about the rollout, and the order to train that should be running."""
    steps: list[Step] = []
    rollout = _rollout_step(view)
    if rollout is not None:
        steps.append(rollout)
    order = view.order or _new_order(view, settings)
    if order is not None:
        steps.append(order)
    return steps


def _rollout_step(view: LoopFacts) -> Bootstrap | StartTrial | None:
    """The newest model that waits goes first; older ones that waited too are overtaken for good."""
    newest_tried = max(view.tried, default=0)
    if view.newest_model <= newest_tried:
        return None
    if view.state is None or view.state.champion is None:
        return Bootstrap(view.newest_model)
    return StartTrial(view.newest_model) if view.state.phase is Phase.IDLE else None


def _new_order(view: LoopFacts, settings: LoopSettings) -> TrainingOrder | None:
    if view.held is not None or view.train_tokens - view.newest_model_tokens < settings.min_new_tokens:
        return None
    champion = view.state.champion if view.state else None
    return TrainingOrder(dataset_version=view.dataset_version, parent_model=champion or view.newest_model or None, view=view.view)
