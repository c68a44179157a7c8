"""From ``inference.completed`` events to evidence about the rollout state in force.

An event counts when it was routed under exactly this state (``rollout_number``) and says what the state says: the champion's
own answers, the challenger's shadow answers in the shadow phase, its visible answers in the canary phase. So events of earlier
trials, of copies that came late and of another life of the topic count for nothing, and the topic can be read again from the
start at any time with the same result. Answers of a version that the client named (``pinned``) count for nothing either: nobody routed
them, and who asks for a version by name is not the traffic that the trial is about.
"""

from datetime import timedelta

from ray_apps.rollout.evidence import ArmCounts, Evidence, LossComparison
from schemas.events import Event, InferenceCompleted
from schemas.rollout import Phase, RolloutState

MAX_CLOCK_SKEW = timedelta(minutes=1)
"""An event that claims to be older than the state by more than this belongs to a root that was wiped and begun again."""


class TrialTally:
    """Evidence about one rollout state, added up event by event."""

    def __init__(self, state: RolloutState) -> None:
        self.state = state
        self._champion = ArmCounts()
        self._challenger = ArmCounts()
        self._unanswered = 0

    def add(self, event: Event) -> None:
        """Count the event if it is about this state."""
        data = event.data
        if not isinstance(data, InferenceCompleted) or data.rollout_number != self.state.number or data.pinned:
            return
        if event.time < self.state.created_at - MAX_CLOCK_SKEW:
            return
        tally = self._tally_of(data)
        if tally is None:
            return
        if data.status == "ok":
            tally.add_answer(data.latency_s, data.completion_tokens)
        else:
            tally.add_error()
        self._unanswered = 0 if tally is self._challenger else self._unanswered + (data.status == "ok")

    def _tally_of(self, data: InferenceCompleted) -> ArmCounts | None:
        if data.model_version == self.state.champion and not data.shadow:
            return self._champion
        if data.model_version == self.state.challenger and data.shadow == (self.state.phase is Phase.SHADOW):
            return self._challenger
        return None

    def evidence(self, validation: LossComparison) -> Evidence:
        """What there is so far. The tallies are live: read, do not keep."""
        return Evidence(self._champion, self._challenger, self._unanswered, validation)
