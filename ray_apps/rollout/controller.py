"""Watches a trial and moves it on: reads ``inference.completed`` events, adds them up, asks the policy, publishes.

Order of ``poll``, which is why nothing is missed: (1) read events, (2) read the rollout log, (3) count the events for the state that
is in force now, (4) decide and publish. An event of state n exists only after n was published, so (2) is never older than (1).
Each state records the inference topic's positions at its publication; a restarted controller reads on from there and arrives
at the same tally. Events inform, they are not the truth: lost ones only make a trial longer.
"""

import logging
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.kafka.events import EventProducer, EventReader, read_events
from pipelines.kafka.topics import topic_names
from pipelines.runtime.tracing import Attributes, current_traceparent, span
from ray_apps.models.registry import Registry
from ray_apps.rollout.evidence import Evidence, LossComparison
from ray_apps.rollout.log import RolloutLog
from ray_apps.rollout.policy import Author, decide
from ray_apps.rollout.tally import TrialTally
from schemas.errors import BrokerError, CommitConflict, HeadraceError, SourceError
from schemas.events import RolloutChanged, new_event
from schemas.rollout import Phase, RolloutState
from schemas.settings import Settings

POSITIONS = "inference_positions"
"""Key in a state's evidence: partition -> next offset of the inference topic when the state was published."""
SOURCE = "/headrace/rollout"
_log = logging.getLogger(__name__)


def new_salt() -> str:
    """Salt of a new trial."""
    return secrets.token_hex(4)


def announce(state: RolloutState, events: EventProducer, root: Path) -> None:
    """Tell the world about a transition; the event's id follows from the number, so a second delivery is recognised.

    The transition goes on with the trace of the model that it is about, which the registry under ``root`` knows.
    """
    data = RolloutChanged.model_validate(state.model_dump(include=set(RolloutChanged.model_fields)))
    event_id = f"rollout-{state.number}-{state.created_at:%Y%m%dT%H%M%S%f}"
    subject = f"rollout/{state.number}"
    with span("rollout.change", _told(state), parent=_trace_of_the_model(state, root)):
        traceparent = current_traceparent()
        event = new_event(data, id=event_id, source=SOURCE, time=state.created_at, subject=subject, traceparent=traceparent)
        events.publish(event, topic="events", key=subject)


def _told(state: RolloutState) -> Attributes:
    versions = {"headrace.champion": state.champion, "headrace.challenger": state.challenger}
    attributes = {name: version for name, version in versions.items() if version is not None}
    return attributes | {
        "headrace.rollout_number": state.number,
        "headrace.phase": state.phase.value,
        "headrace.decision": state.decision.value,
        "headrace.automatic": state.automatic,
    }


def _trace_of_the_model(state: RolloutState, root: Path) -> str | None:
    """Of the model on trial, or the one whose trial ended here, or the champion; a model that cannot be read has none."""
    with suppress(HeadraceError):
        before = RolloutLog(root).read(state.number - 1) if state.number > 1 else state
        version = state.challenger or before.challenger or state.champion
        return Registry(root).manifest(version).traceparent if version else None
    return None


def start_positions(state: RolloutState) -> dict[int, int] | None:
    """Where the events about a state begin; None if it was made without a broker: then from the topic's first record."""
    positions = state.evidence.get(POSITIONS)
    return {int(partition): int(offset) for partition, offset in positions.items()} if isinstance(positions, Mapping) else None


class RolloutController:
    """One trial after the other. ``validation`` says what is known about both models' losses."""

    def __init__(self, settings: Settings, log: RolloutLog, validation: Callable[[RolloutState], LossComparison]) -> None:
        self._settings = settings
        self._log = log
        self._validation = validation
        self._reader: EventReader | None = None
        self._tally: TrialTally | None = None

    def poll(self, timeout_s: float) -> RolloutState | None:
        """One round; returns the state that it published, if any. Without a broker it waits for the next round."""
        try:
            return self._round(timeout_s)
        except (BrokerError, SourceError) as error:
            _log.warning("no evidence at the moment: %s", error)
            self.close()
            return None

    def evidence(self) -> dict[str, Any]:
        """Positions to put into the evidence of a state that is published now; empty without a broker."""
        try:
            state = self._log.latest()
            reader = self._open(start_positions(state) if state else None)
            return {POSITIONS: {str(partition): offset for partition, offset in reader.positions().items()}}
        except (BrokerError, SourceError) as error:
            _log.warning("the topic's positions are not known: %s", error)
            self.close()
            return {}

    def close(self) -> None:
        """Forget the connection and the tally; the next round reads both anew."""
        if self._reader is not None:
            self._reader.close()
        self._reader, self._tally = None, None

    def _round(self, timeout_s: float) -> RolloutState | None:
        state = self._log.latest()
        if state is None:
            return None
        # Step 1: what was answered.
        reader = self._open(start_positions(state))
        events = reader.poll(timeout_s)
        # Step 2: the state in force, which is at least as new as the events.
        state = self._log.latest()
        if state is None or state.phase is Phase.IDLE:
            self._tally = None
            return None
        # Step 3: what that says about it.
        if self._tally is None or self._tally.state.number != state.number:
            self._tally = TrialTally(state)
        for event in events:
            self._tally.add(event)
        # Step 4: decide.
        return self._decide(state, self._tally.evidence(self._validation(state)), reader)

    def _decide(self, state: RolloutState, evidence: Evidence, reader: EventReader) -> RolloutState | None:
        after = decide(state, evidence, self._settings.rollout, datetime.now(UTC))
        if after is None:
            return None
        positions = {POSITIONS: {str(partition): offset for partition, offset in reader.positions().items()}}
        after = after.model_copy(update={"evidence": {**after.evidence, **positions}})
        try:
            self._log.publish(after)
        except CommitConflict:  # a person was faster: the next round looks at what they did
            return None
        return after

    def _open(self, start: Mapping[int, int] | None) -> EventReader:
        if self._reader is None:
            self._reader = read_events(self._settings, topic_names(self._settings).inference, start)
        return self._reader


def read_tally(state: RolloutState, settings: Settings, timeout_s: float) -> TrialTally:
    """What the events say about a state, read in one go up to now, for at most ``timeout_s``. Raises BrokerError, SourceError."""
    tally = TrialTally(state)
    deadline = time.monotonic() + timeout_s
    with read_events(settings, topic_names(settings).inference, start_positions(state)) as reader:
        while (now := time.monotonic()) < deadline and (events := reader.poll(min(1.0, deadline - now))):
            for event in events:
                tally.add(event)
    return tally


def by_the_loop() -> Author:
    """The loop, now."""
    return Author(datetime.now(UTC), automatic=True)


def by_hand() -> Author:
    """A person, now."""
    return Author(datetime.now(UTC), automatic=False)
