"""The rollout state that the gateway acts on: the newest entry of ``<root>/rollout`` whose models answer.

Invariant: only what answers replaces what answers. A new state comes into force once every version that it names answers, so that a
challenger is not judged while it loads, and a promotion never points at an engine that is not up. A challenger that does not come up holds
its state back for CHALLENGER_TIMEOUT_S, counted for each state from when it was first seen; then the state comes into force with the champion
alone, and the trial sees that the challenger does not answer. A champion that does not come up holds its state back for ever. Where
nothing that is in force answers, the newest state whose champion answers is taken. Costs one directory listing per poll, and up to MAX_EARLIER
small files while nothing answers.
"""

import logging
from collections.abc import Iterator
from pathlib import Path

from ray_apps.rollout.log import RolloutLog
from schemas.errors import DatasetError
from schemas.rollout import RolloutState

_log = logging.getLogger(__name__)
CHALLENGER_TIMEOUT_S = 120.0
"""Loading a model takes seconds; a challenger that takes longer is taken as broken."""
MAX_EARLIER = 50
"""Entries of the log that are looked back on for a champion that answers."""


def versions_of(state: RolloutState | None) -> frozenset[int]:
    """Champion and challenger."""
    return frozenset(version for version in (state.champion, state.challenger) if version is not None) if state else frozenset()


class RolloutFollower:
    """Follows the log by polling."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._rollouts = RolloutLog(root)
        self._first_seen: tuple[int, float] = (0, 0.0)
        """Number of the newest state, and when it was seen first."""
        self.newest: RolloutState | None = None
        self.active: RolloutState | None = None

    def poll(self) -> None:
        """Read the log again; what does not parse is reported and left out."""
        try:
            self.newest = self._rollouts.latest()
        except DatasetError as error:
            _log.error("the rollout log cannot be read; going on with the last state: %s", error)

    def activate(self, ready: frozenset[int], now_s: float) -> None:
        """Bring into force what ``ready``, the versions that answer, allow."""
        newest = self.newest
        if newest is None:
            return
        if newest.number != self._first_seen[0]:
            self._first_seen = (newest.number, now_s)
        waited = now_s - self._first_seen[1] > CHALLENGER_TIMEOUT_S
        if versions_of(newest) <= ready or (waited and newest.champion in ready):
            self.active = newest
        elif self.active is None or self.active.champion not in ready:
            self.active = next((state for state in self.states() if state.champion in ready), self.active or newest)

    def states(self) -> Iterator[RolloutState]:
        """The newest state and those before it, newest first; at most MAX_EARLIER of them."""
        if self.newest is None:
            return
        yield self.newest
        for number in range(self.newest.number - 1, max(0, self.newest.number - 1 - MAX_EARLIER), -1):
            try:
                yield self._rollouts.read(number)
            except DatasetError as error:
                _log.error("an earlier entry of the rollout log cannot be read: %s", error)
                return
