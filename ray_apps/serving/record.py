"""The record of what one engine did for one request: an ``inference.completed`` event, the metrics and a span.

Invariants: every request that an engine was given, primary or shadow, is recorded exactly once, whatever ends it, under an id of its own, with one
outcome: ok, error, refused, cancelled. ``ok`` means that every sequence came to its end. The recorded engine time is the
engine's own measure, or, of an engine that has none, the time that we waited for it: the client's reading and earlier attempts are in neither.
Telling costs microseconds and waits for nobody: the event goes to a bounded queue, and is dropped and counted when a broker does not keep up.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, Protocol, cast

from pipelines.runtime.tracing import Attributes, record_span
from ray_apps.serving.engine.interface import Chunk, FinishReason, GenerationRequest
from ray_apps.serving.engine_pool import num_sequences
from ray_apps.serving.metrics import Metrics
from schemas.errors import ApiError
from schemas.events import Event, InferenceCompleted, new_event

_log = logging.getLogger(__name__)
SOURCE = "/headrace/gateway"

Role = Literal["champion", "challenger"]
Status = Literal["ok", "error", "refused", "cancelled"]


class EventSink(Protocol):
    """Takes events without waiting; pipelines.kafka.events.EventProducer is one."""

    def publish(self, event: Event, *, topic: Literal["events", "inference"], key: str | None) -> None:
        """Queue the event."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """Who is asked for an answer, as what, since when."""

    request_id: str
    version: int
    role: Role
    shadow: bool
    pinned: bool
    """The client named the version."""
    rollout_number: int
    attempt: int
    """1 for the first engine that is asked, and for a shadow copy."""
    user_hash: str
    """See ``router.user_hash``."""
    arrived_s: float
    """``time.perf_counter`` when the request came in."""
    traceparent: str | None
    """W3C trace context of the request."""


@dataclass(slots=True)
class Outcome:
    """What came of it so far."""

    prompt_tokens: dict[int, int] = field(default_factory=dict)
    completion_tokens: int = 0
    first_token_s: float | None = None
    finish_reason: FinishReason | None = None
    text: dict[int, str] = field(default_factory=dict)
    error: ApiError | None = None
    waited_s: float = 0.0
    """Time spent waiting for the engine; the client's reading is not in it."""
    num_ended: int = 0
    """Sequences that came to their end."""
    timed_s: list[float] = field(default_factory=list)
    """What the engine says that these took."""

    def add(self, chunk: Chunk, now_s: float) -> None:
        """Count a chunk."""
        self.num_ended += chunk.finish_reason is not None
        if chunk.timing is not None:
            self.timed_s.append(chunk.timing.total_s)
        self.prompt_tokens[chunk.index] = chunk.prompt_tokens
        self.completion_tokens += len(chunk.token_ids)
        if chunk.token_ids and self.first_token_s is None:
            self.first_token_s = now_s
        self.finish_reason = chunk.finish_reason or self.finish_reason
        self.text[chunk.index] = self.text.get(chunk.index, "") + chunk.text

    def num_prompt_tokens(self, num_choices: int) -> int:
        """Tokens of all prompts; the choices of one prompt share it."""
        return sum(count for index, count in self.prompt_tokens.items() if index % num_choices == 0)

    def engine_s(self) -> float:
        """How long the engine worked: the longest of its sequences, which run side by side."""
        return max(self.timed_s) if self.timed_s and len(self.timed_s) == self.num_ended else self.waited_s

    def status(self, num_sequences: int) -> Status:
        """How it ended. A client that goes away after the last chunk has its answer."""
        if self.error is not None:
            return "error" if self.error.status >= 500 else "refused"
        return "ok" if self.num_ended == num_sequences else "cancelled"


class Recorder:
    """Tells outcomes to Kafka and to the metrics."""

    def __init__(self, metrics: Metrics, sink: EventSink | None, *, record_prompts: bool) -> None:
        self.metrics = metrics
        self._sink = sink
        self._record_prompts = record_prompts

    async def observe(
        self, answer: AsyncIterator[tuple[Chunk, ...]], request: GenerationRequest, assignment: Assignment
    ) -> AsyncGenerator[tuple[Chunk, ...], None]:
        """The chunks as they come, counted; told when they end, fail or are abandoned. Raises what ``answer`` raises."""
        outcome = Outcome()
        since_s: float | None = time.perf_counter()
        self.metrics.begin(assignment.version, assignment.role, shadow=assignment.shadow)
        try:
            async with aclosing(cast("AsyncGenerator[tuple[Chunk, ...], None]", answer)) as stream:
                async for chunks in stream:
                    now_s = time.perf_counter()
                    outcome.waited_s, since_s = outcome.waited_s + now_s - (since_s or now_s), None
                    for chunk in chunks:
                        outcome.add(chunk, now_s)
                    yield chunks
                    since_s = time.perf_counter()
        except ApiError as error:
            outcome.error = error
            raise
        except (asyncio.CancelledError, GeneratorExit):
            if outcome.num_ended < num_sequences(request):
                outcome.finish_reason = FinishReason.CANCELLED
            raise
        except Exception as error:
            outcome.error = ApiError(500, str(error), type="server_error", code="internal_error")
            raise
        finally:
            if since_s is not None:
                outcome.waited_s += time.perf_counter() - since_s
            self.metrics.end(assignment.version, assignment.role, shadow=assignment.shadow)
            self._tell(request, assignment, outcome)

    def _tell(self, request: GenerationRequest, assignment: Assignment, outcome: Outcome) -> None:
        latency_s = time.perf_counter() - assignment.arrived_s
        completed = self._completed(request, assignment, outcome, latency_s)
        self.metrics.observe(assignment.version, assignment.role, shadow=assignment.shadow, outcome=completed.status, latency_s=latency_s)
        self.metrics.count_tokens(assignment.version, completed.prompt_tokens, completed.completion_tokens)
        traceparent = record_span("answer", _attributes(completed), parent=assignment.traceparent, duration_s=latency_s, error=completed.error_code)
        if self._sink is None:
            return
        event = new_event(
            completed,
            id=f"{request.id}/shadow" if assignment.shadow else f"{request.id}/{assignment.attempt}",
            source=SOURCE,
            time=datetime.now(UTC),
            subject=f"model/{assignment.version}",
            traceparent=traceparent,
        )
        try:
            self._sink.publish(event, topic="inference", key=assignment.request_id)
        except Exception:  # noqa: BLE001  an event that cannot be told must not take the answer with it
            _log.exception("an inference.completed event was not published")

    def _completed(self, request: GenerationRequest, assignment: Assignment, outcome: Outcome, latency_s: float) -> InferenceCompleted:
        first_s = None if outcome.first_token_s is None else outcome.first_token_s - assignment.arrived_s
        told = {"prompt": _prompt_text(request), "completion": "\n".join(outcome.text.values())} if self._record_prompts else {}
        return InferenceCompleted(
            request_id=assignment.request_id,
            model_version=assignment.version,
            role=assignment.role,
            shadow=assignment.shadow,
            pinned=assignment.pinned,
            rollout_number=assignment.rollout_number,
            status=outcome.status(num_sequences(request)),
            attempt=assignment.attempt,
            user_hash=assignment.user_hash,
            error_code=(outcome.error.code or str(outcome.error.status)) if outcome.error else None,
            prompt_tokens=outcome.num_prompt_tokens(request.num_choices),
            completion_tokens=outcome.completion_tokens,
            latency_s=latency_s,
            engine_s=outcome.engine_s(),
            time_to_first_token_s=first_s,
            finish_reason=outcome.finish_reason,
            **told,
        )


def _attributes(completed: InferenceCompleted) -> Attributes:
    """What a span says: OpenTelemetry's names for generated text where there are some. Never a prompt."""
    return {
        "gen_ai.response.finish_reasons": [completed.finish_reason or completed.status],
        "gen_ai.usage.input_tokens": completed.prompt_tokens,
        "gen_ai.usage.output_tokens": completed.completion_tokens,
        "headrace.model_version": completed.model_version,
        "headrace.role": completed.role,
        "headrace.shadow": completed.shadow,
        "headrace.pinned": completed.pinned,
        "headrace.rollout_number": completed.rollout_number,
        "headrace.status": completed.status,
    }


def _prompt_text(request: GenerationRequest) -> str:
    texts = [prompt if isinstance(prompt, str) else " ".join(map(str, prompt)) for prompt in request.prompts]
    texts += [f"{message.role}: {message.content}" for message in request.messages]
    return "\n".join(texts)
