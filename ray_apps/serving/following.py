"""The rollout state that the gateway acts on: the newest entry of ``<root>/rollout`` whose models are there.

A new state comes into force once every version it names answers, so that a challenger is not judged while it loads, and a promotion
never points at an engine that is not up. If that takes longer than ACTIVATION_TIMEOUT_S, it comes into force anyway: a model
that cannot be loaded must be seen to fail. Costs one directory listing per poll.
"""

import logging
from pathlib import Path

from ray_apps.rollout.log import RolloutLog
from schemas.errors import DatasetError
from schemas.rollout import RolloutState

_log = logging.getLogger(__name__)
ACTIVATION_TIMEOUT_S = 120.0
"""Loading a model takes seconds; after this it is taken as broken."""


def versions_of(state: RolloutState | None) -> frozenset[int]:
    """Champion and challenger."""
    return frozenset(version for version in (state.champion, state.challenger) if version is not None) if state else frozenset()


class RolloutFollower:
    """Follows the log by polling."""

    def __init__(self, root: Path) -> None:
        self._rollouts = RolloutLog(root)
        self._seen_at_s = 0.0
        self.newest: RolloutState | None = None
        self.active: RolloutState | None = None

    def poll(self) -> None:
        """Read the log again; what does not parse is reported and left out."""
        try:
            self.newest = self._rollouts.latest()
        except DatasetError as error:
            _log.error("the rollout log cannot be read; going on with the last state: %s", error)

    def activate(self, ready: frozenset[int], now_s: float) -> None:
        """Bring the newest state into force if its models answer, or have had their time."""
        if self.newest is None or (self.active is not None and self.active.number == self.newest.number):
            self._seen_at_s = now_s
            return
        waited = now_s - self._seen_at_s > ACTIVATION_TIMEOUT_S
        is_first = self.active is None
        champion_lost = not is_first and self.active is not None and self.active.champion not in ready
        if is_first or champion_lost or waited or versions_of(self.newest) <= ready:
            self.active, self._seen_at_s = self.newest, now_s
