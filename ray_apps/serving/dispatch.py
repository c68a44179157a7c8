"""From a parsed request to an engine's answer: choose versions, send the shadow copy, fail over, keep the time limit.

Invariants: a shadow copy runs in a task of its own, of which at most MAX_SHADOWS exist, in all gateways together. It shares nothing with the
primary answer but the request's values, so it cannot delay, fail or cancel it. As long as nothing has been shown to the client and time is left,
the champion answers instead of a challenger that fails, refuses (a full queue, a prompt it cannot take), is not healthy before its first token,
or gives no first token in half of the time. If an engine of the champion dies, another replica of it answers. The recorder gets every answer.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from ray_apps.serving.engine.interface import Chunk, GenerationRequest
from ray_apps.serving.engine_pool import Engines, stream_chunks, unavailable
from ray_apps.serving.following import RolloutFollower, versions_of
from ray_apps.serving.record import Assignment, Recorder, Role
from ray_apps.serving.router import Route, route, user_hash
from schemas.errors import ApiError
from schemas.rollout import RolloutState

_log = logging.getLogger(__name__)
MODEL = "headrace"
"""Model id that the rollout decides; ``headrace-v3`` names a version."""
SETTLED_INTERVAL_S = 2.0
"""Between two looks at engines of which nothing new is wanted: each costs this process and Serve's controller some 10 ms."""
MAX_SHADOWS = 32
"""Copies under way; more are dropped, so that a slow challenger costs bounded memory and its queue is not filled with copies."""


class Answer:
    """A primary answer that has begun: who gives it, and its chunks. Close it when done: that cancels what is still running."""

    def __init__(self, version: int, role: Role, begun: list[tuple[Chunk, ...]], rest: AsyncGenerator[tuple[Chunk, ...], None]) -> None:
        self.version = version
        self.role = role
        self._begun = begun
        self._rest = rest

    async def chunks(self) -> AsyncIterator[tuple[Chunk, ...]]:
        """Those that are there already, then those that come."""
        for item in self._begun:
            yield item
        async for item in self._rest:
            yield item

    async def aclose(self) -> None:
        """Stop generating."""
        await self._rest.aclose()


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A request on its way."""

    request: GenerationRequest
    request_id: str
    """``x-request-id`` of the HTTP answer, which is always ours; ``request.id`` is the same without its prefix."""
    model: str
    sticky_key: str
    arrived_s: float
    traceparent: str | None = None
    """W3C trace context of the request, of which every answer is a part."""

    @property
    def pinned(self) -> bool:
        """Whether the client named a version."""
        return self.model != MODEL


class Dispatcher:
    """Sends jobs to engines."""

    def __init__(
        self, engines: Engines, follower: RolloutFollower, recorder: Recorder, *, request_timeout_s: float, max_shadows: int = MAX_SHADOWS
    ) -> None:
        self.engines = engines
        self.follower = follower
        self._recorder = recorder
        self._timeout_s = request_timeout_s
        self._max_shadows = max_shadows
        self._shadows: set[asyncio.Task[None]] = set()
        self._looked_at_s = 0.0

    async def refresh(self) -> None:
        """Look at the rollout log again, and at the engines: every time until those that it names answer, every SETTLED_INTERVAL_S from then on."""
        await asyncio.to_thread(self.follower.poll)
        newest, now_s = self.follower.newest, time.monotonic()
        is_settled = newest is not None and newest == self.follower.active and versions_of(newest) <= self.engines.ready
        if not is_settled or now_s - self._looked_at_s >= SETTLED_INTERVAL_S:
            self._looked_at_s = now_s
            await self.engines.refresh()
        self.follower.activate(self.engines.ready, now_s)

    async def answer(self, job: Job, *, whole: bool) -> Answer:
        """Begin to answer; returns when the first chunk is there, or all of them. Raises ApiError if nobody can answer."""
        state, chosen = self._route(job)
        if chosen.shadow is not None:
            self._send_shadow(job, state, chosen.shadow)
        candidates = self._candidates(job, state, chosen.primary)
        for attempt, version in enumerate(candidates, start=1):
            role: Role = "champion" if version == state.champion else "challenger"
            assignment = _assignment(job, state, version, role, attempt=attempt)
            next_one = candidates[attempt] if attempt < len(candidates) else None
            stream = self._observed(job, assignment, is_replaceable=next_one is not None and next_one != version)
            try:
                begun = [await anext(stream)]
                if whole:
                    begun += [chunks async for chunks in stream]
            except ApiError as error:
                self._looked_at_s = 0.0 if error.status == 503 else self._looked_at_s
                if next_one is None or not self._is_replaced(job, error, by_another=next_one != version):
                    raise
                _log.warning("request %s: %s; model %d takes over", job.request.id, error, next_one)
                continue
            return Answer(version, role, begun, stream)
        raise AssertionError("there is at least one candidate")

    def _is_replaced(self, job: Job, error: ApiError, *, by_another: bool) -> bool:
        """Another model may answer whatever this one failed at; another replica of the same model only what died. Neither without time."""
        return (by_another or error.status == 503) and time.perf_counter() < job.arrived_s + self._timeout_s

    async def close(self) -> None:
        """Cancel the shadow copies."""
        for task in self._shadows:
            task.cancel()
        await asyncio.gather(*self._shadows, return_exceptions=True)

    def _route(self, job: Job) -> tuple[RolloutState, Route]:
        state = self.follower.active
        if state is None or state.champion is None:
            raise unavailable("there is no model to answer yet; GET /health says what is missing", code="no_model")
        if job.pinned:
            return state, Route(self._pinned(job.model), None)
        chosen = route(state, job.sticky_key)
        assert chosen is not None
        return state, chosen

    def _pinned(self, model: str) -> int:
        for version in self.engines.ready:
            if model == f"{MODEL}-v{version}":
                return version
        message = f"The model '{model}' does not exist or is not served at present; GET /v1/models lists those that are."
        raise ApiError(404, message, type="invalid_request_error", code="model_not_found", param="model")

    def _candidates(self, job: Job, state: RolloutState, primary: int) -> Sequence[int]:
        """Who to ask, in order. The same version twice: Serve sends the second try to a living replica, or waits for one."""
        champion = primary if job.pinned else state.champion
        wanted = (primary, champion) if primary == champion else (primary, champion, champion)
        candidates = [version for version in wanted if version in self.engines.ready]
        if not candidates:
            raise unavailable(f"model version {primary} {self.engines.why_not(primary)}")
        return candidates

    def _observed(self, job: Job, assignment: Assignment, *, is_replaceable: bool = False) -> AsyncGenerator[tuple[Chunk, ...], None]:
        deadline_s = job.arrived_s + self._timeout_s
        first_s = (time.perf_counter() + deadline_s) / 2 if is_replaceable else None
        chunks = stream_chunks(
            self.engines, assignment.version, job.request, deadline_s=deadline_s, timeout_s=self._timeout_s, first_deadline_s=first_s
        )
        return self._recorder.observe(chunks, job.request, assignment)

    def _send_shadow(self, job: Job, state: RolloutState, version: int) -> None:
        if version not in self.engines.ready or len(self._shadows) >= self._max_shadows:
            self._recorder.metrics.drop_shadow()
            return
        assignment = _assignment(job, state, version, "challenger", shadow=True)
        task = asyncio.create_task(self._shadow(job, assignment))
        self._shadows.add(task)
        task.add_done_callback(self._shadows.discard)

    async def _shadow(self, job: Job, assignment: Assignment) -> None:
        try:
            async with aclosing(self._observed(job, assignment)) as stream:
                async for _ in stream:
                    pass
        except ApiError as error:
            _log.info("the shadow copy of %s failed: %s", job.request.id, error)
        except Exception:  # noqa: BLE001  nobody waits for this task: its failure is logged here or nowhere
            _log.exception("the shadow copy of %s failed", job.request.id)


def _assignment(job: Job, state: RolloutState, version: int, role: Role, *, attempt: int = 1, shadow: bool = False) -> Assignment:
    return Assignment(
        request_id=job.request_id,
        version=version,
        role=role,
        shadow=shadow,
        pinned=job.pinned,
        rollout_number=state.number,
        attempt=attempt,
        user_hash=user_hash(state.salt, job.sticky_key),
        arrived_s=job.arrived_s,
        traceparent=job.traceparent,
    )
