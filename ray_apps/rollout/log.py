"""The rollout log: ``<root>/rollout/00000001.json …``, one immutable RolloutState per transition; the newest is in force.

Writers may race (the loop and a person at the command line). ``transition`` decides on the newest entry and publishes by
create-if-absent; whoever loses reads the log again and decides anew, so every entry was decided on its predecessor.
"""

from collections.abc import Callable
from pathlib import Path

from pipelines.storage.commit_log import CommitLog
from pipelines.storage.entries import parse_entry
from schemas.errors import CommitConflict, ManifestCorrupt
from schemas.rollout import RolloutState

MAX_CONFLICTS = 100
"""Lost races in a row after which something else is wrong: each means that another writer got through."""


class RolloutLog:
    """Rollout states under one root."""

    def __init__(self, root: Path) -> None:
        self._log = CommitLog(root / "rollout")

    def latest(self) -> RolloutState | None:
        """The state in force; None before the first model. Raises ManifestCorrupt."""
        number = self._log.latest()
        return self.read(number) if number else None

    def read(self, number: int) -> RolloutState:
        """One entry. Raises DatasetNotFound, ManifestCorrupt, ManifestNewer."""
        state = parse_entry(RolloutState, self._log.read(number), self._log.path(number), "rollout state")
        if state.number != number:
            raise ManifestCorrupt(f"{self._log.path(number)} says that its number is {state.number}; restore it from a backup")
        return state

    def after(self, number: int) -> list[RolloutState]:
        """Entries ``number + 1`` up to the newest, oldest first."""
        return [self.read(entry) for entry in range(number + 1, self._log.latest() + 1)]

    def publish(self, state: RolloutState) -> None:
        """Put a state in force. Raises CommitConflict if its number is taken."""
        self._log.publish(state.number, state.model_dump_json(indent=2).encode())

    def transition(self, decide: Callable[[RolloutState | None], RolloutState | None]) -> RolloutState | None:
        """Publish what ``decide`` makes of the newest state, and return it; None if it makes nothing of it."""
        for _ in range(MAX_CONFLICTS):
            state = decide(self.latest())
            if state is None:
                return None
            try:
                self.publish(state)
            except CommitConflict:
                continue
            return state
        raise CommitConflict(f"{self._log.folder}: {MAX_CONFLICTS} transitions in a row lost to another writer; is a second `headrace up` running?")
