"""From ``inference.completed`` events to evidence about the rollout state in force.

An event counts when it was routed under exactly this state (``rollout_number``) and says what the state says: the champion's
own answers, the challenger's shadow answers in the shadow phase, its visible answers in the canary phase. So events of earlier
trials, of copies that came late and of another life of the topic count for nothing, and the topic can be read again from the
start at any time with the same result. Answers of a version that the client named (``pinned``) count for nothing either: nobody routed
them, and who asks for a version by name is not the traffic that the trial is about.

A refusal may be the request's own fault (a prompt that is too long) or the model's (no chat template, a full queue). The champion tells
them apart: it is asked too, before or after, and a refusal counts against the challenger once the champion has answered the same request.
Both events have the request's id as their key, so they lie in one partition, in order. Requests that wait for the other's word
are remembered up to MAX_OPEN_REQUESTS.
"""

from datetime import timedelta

from ray_apps.rollout.evidence import ArmCounts, Evidence, LossComparison
from schemas.events import Event, InferenceCompleted
from schemas.rollout import Phase, RolloutState

MAX_CLOCK_SKEW = timedelta(minutes=1)
"""An event that claims to be older than the state by more than this belongs to a root that was wiped and begun again."""
MAX_OPEN_REQUESTS = 10_000
"""Requests of which the other model's word is awaited: many times as many as are under way at once. The oldest are forgotten."""


class TrialTally:
    """Evidence about one rollout state, added up event by event."""

    def __init__(self, state: RolloutState) -> None:
        self.state = state
        self._champion = ArmCounts()
        self._challenger = ArmCounts()
        self._unanswered = 0
        self._refused: dict[str, None] = {}
        """Requests that the challenger refused, and of which the champion has said nothing yet."""
        self._answered: dict[str, None] = {}
        """Requests that the champion answered, for a refusal of their shadow copy that comes later."""

    def add(self, event: Event) -> None:
        """Count the event if it is about this state."""
        data = event.data
        if not isinstance(data, InferenceCompleted) or data.rollout_number != self.state.number or data.pinned:
            return
        if event.time < self.state.created_at - MAX_CLOCK_SKEW:
            return
        arm = self._arm_of(data)
        if arm is None:
            return
        judged = self._challenger.measured + self._challenger.failures
        if data.status == "ok":
            arm.add_answer(data.engine_s, data.completion_tokens, data.user_hash)
        elif data.status == "error":
            arm.errors += 1
        elif data.status == "cancelled":
            arm.cancellations += 1
        self._compare(data, arm)
        if self._challenger.measured + self._challenger.failures > judged:
            self._unanswered = 0
        elif arm is self._champion and data.status == "ok":
            self._unanswered += 1

    def _compare(self, data: InferenceCompleted, arm: ArmCounts) -> None:
        """Count a refusal of the challenger against it once it is known that the champion answers the same request."""
        request_id = data.request_id
        if arm is self._challenger and data.status == "refused":
            if request_id in self._answered:
                arm.refusals += 1
            else:
                _remember(self._refused, request_id)
        elif arm is self._champion and data.status == "ok":
            if request_id in self._refused:
                self._challenger.refusals += 1
                del self._refused[request_id]
            elif self.state.phase is Phase.SHADOW:
                _remember(self._answered, request_id)

    def _arm_of(self, data: InferenceCompleted) -> ArmCounts | None:
        if data.model_version == self.state.champion and not data.shadow:
            return self._champion
        if data.model_version == self.state.challenger and data.shadow == (self.state.phase is Phase.SHADOW):
            return self._challenger
        return None

    def evidence(self, validation: LossComparison) -> Evidence:
        """What there is so far. The counts are live: read, do not keep."""
        return Evidence(self._champion, self._challenger, self._unanswered, validation)


def _remember(requests: dict[str, None], request_id: str) -> None:
    requests[request_id] = None
    if len(requests) > MAX_OPEN_REQUESTS:
        del requests[next(iter(requests))]
