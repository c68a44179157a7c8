"""What the loop does next: a pure function of what is on disk.

Nothing here remembers anything, so a loop that was killed goes on where it was: an order to train stands until its model is
registered, a model that was never champion or challenger waits for its trial, and an idle rollout takes the newest that waits, unless a
person decides there. An order that was given up is not given again: the next one of its kind needs as many new tokens as any.
"""

from dataclasses import dataclass

from pydantic import AwareDatetime

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


class GivenUp(Record):
    """An order to train that failed again and again, or was refused. It is not carried out again while nothing that it depends on has changed."""

    order: TrainingOrder
    """What was to be trained."""
    reason: str
    """How it failed, and what a person can do."""
    train_tokens: int
    """Train tokens of the newest dataset version when it was given up."""
    settings_fingerprint: str
    """Of the settings that decide a model's weights: with others the same order is another run."""
    given_up_at: AwareDatetime
    """When, UTC."""
    is_refusal: bool = False
    """Whether settings or files refused it: a person puts that right, and a loop that is started anew tries it again."""


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
    given_up: GivenUp | None = None
    """The order that was given up under the present settings, while its model is not there."""


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
    """The newest model that waits goes first; older ones that waited too are overtaken for good. A person's word holds until it is released."""
    newest_tried = max(view.tried, default=0)
    if view.newest_model <= newest_tried:
        return None
    if view.state is None or view.state.champion is None:
        return Bootstrap(view.newest_model)
    return StartTrial(view.newest_model) if view.state.phase is Phase.IDLE and not view.state.person_decides else None


def _new_order(view: LoopFacts, settings: LoopSettings) -> TrainingOrder | None:
    if view.held is not None or view.train_tokens - view.newest_model_tokens < settings.min_new_tokens:
        return None
    champion = view.state.champion if view.state else None
    order = TrainingOrder(dataset_version=view.dataset_version, parent_model=champion or view.newest_model or None, view=view.view)
    return None if view.given_up is not None and _is_the_same_again(order, view, view.given_up, settings) else order


def _is_the_same_again(order: TrainingOrder, view: LoopFacts, given_up: GivenUp, settings: LoopSettings) -> bool:
    """Whether an order would repeat one that was given up: from the same model, over the same view, with too little that is new."""
    same_kind = (order.parent_model, order.view) == (given_up.order.parent_model, given_up.order.view)
    return same_kind and view.train_tokens - given_up.train_tokens < settings.min_new_tokens
