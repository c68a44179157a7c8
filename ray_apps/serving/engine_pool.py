"""Where the engines are: in this process, or behind Ray Serve, one application per model version.

``submit`` of either raises ApiError 503 when the engine behind it is gone, so callers need not know Ray's errors.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any, Protocol, cast

from ray_apps.serving.engine.interface import Chunk, Engine, EngineHealth, Events, Failure, FinishReason, GenerationRequest
from ray_apps.serving.naming import ApplicationNames
from schemas.errors import ApiError

_log = logging.getLogger(__name__)
ASK_EVERY_S = 5.0
"""Seconds between two health checks while the first token is awaited. A long prompt or a queue may take seconds; the engine is healthy meanwhile."""
RUNNING, FAILED, DELETING = "RUNNING", "DEPLOY_FAILED", "DELETING"
"""Serve's words for an application."""
ANSWERING = ("RUNNING", "PENDING_MIGRATION")
"""Serve's words for replicas that take requests."""
MAX_REASON_CHARS = 300
"""Of what Serve says about an engine that could not be started."""


def unavailable(message: str, code: str = "engine_unavailable") -> ApiError:
    """A 503 that says when to come back."""
    return ApiError(503, message, type="server_error", code=code, retry_after_s=1)


class Engines(Protocol):
    """Engines by model version."""

    @property
    def ready(self) -> frozenset[int]:
        """Versions that answer at present, as of the last refresh."""
        ...

    async def refresh(self) -> None:
        """Look again at what is there."""
        ...

    def why_not(self, version: int) -> str:
        """Why a version is not ready: what follows ``model version 3 …`` in a sentence."""
        ...

    def submit(self, version: int, request: GenerationRequest) -> AsyncIterator[Events]:
        """As ``Engine.submit``. Raises ApiError (503) if there is no such engine or it dies."""
        ...

    async def health(self, version: int) -> EngineHealth:
        """What the engine itself says; not ok if it cannot be asked. May take as long as the engine does."""
        ...


class LocalEngines:
    """Engines of this process."""

    def __init__(self, engines: Mapping[int, Engine]) -> None:
        self.engines = dict(engines)

    @property
    def ready(self) -> frozenset[int]:
        """All of them."""
        return frozenset(self.engines)

    async def refresh(self) -> None:
        """Nothing to look at."""

    def why_not(self, version: int) -> str:
        """See ``Engines``."""
        return "is loaded" if version in self.engines else "is not loaded"

    async def submit(self, version: int, request: GenerationRequest) -> AsyncIterator[Events]:
        """See ``Engines``."""
        engine = self.engines.get(version)
        if engine is None:
            raise unavailable(f"model version {version} is not loaded")
        async for events in engine.submit(request):
            yield events

    async def health(self, version: int) -> EngineHealth:
        """See ``Engines``."""
        engine = self.engines.get(version)
        return EngineHealth(ok=False, reason="it is not loaded") if engine is None else engine.health()


class ServeEngines:
    """Engines behind Ray Serve's handles."""

    def __init__(self, names: ApplicationNames) -> None:
        self._names = names
        self._ready: frozenset[int] = frozenset()
        self._known: frozenset[int] = frozenset()
        """Versions that have an application, whatever its state."""
        self._failures: dict[int, str] = {}
        """Why a version could not be started; it stays until the version runs, also while it is tried again."""
        self._handles: dict[int, Any] = {}

    @property
    def ready(self) -> frozenset[int]:
        """Versions of which a replica answers."""
        return self._ready

    async def refresh(self) -> None:
        """Ask Serve's controller, off the event loop."""
        self.see(await asyncio.to_thread(_applications, self._names))

    def see(self, seen: Mapping[int, tuple[str, str]]) -> None:
        """Take in the status of each version's application, and what Serve says about it."""
        self._known = frozenset(seen)
        self._ready = frozenset(version for version, (status, _) in seen.items() if status == RUNNING)
        self._failures |= {version: message for version, (status, message) in seen.items() if status == FAILED}
        self._failures = {version: message for version, message in self._failures.items() if version in self._known - self._ready}
        for version in set(self._handles) - self._ready:
            del self._handles[version]

    def why_not(self, version: int) -> str:
        """See ``Engines``."""
        if version in self._failures:
            return f"could not be started ({self._failures[version]}); it is tried again from time to time"
        return "is being started" if version in self._known else "is not started; the log of `headrace serve` says why if it cannot be"

    async def submit(self, version: int, request: GenerationRequest) -> AsyncIterator[Events]:
        """See ``Engines``."""
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        stream = None
        try:
            stream = self._handle(version).remote(request)
            async for events in stream:
                yield events
        except (RayError, RayServeException) as error:
            raise unavailable(f"the engine of model version {version} went away ({type(error).__name__}); try again") from error
        finally:
            if stream is not None:
                stream.cancel()

    async def health(self, version: int) -> EngineHealth:
        """See ``Engines``."""
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        asked = None
        try:
            asked = self._handle(version).options(method_name="health", stream=False).remote()
            return cast("EngineHealth", await asked)
        except (RayError, RayServeException) as error:
            return EngineHealth(ok=False, reason=f"it went away ({type(error).__name__})")
        finally:
            if asked is not None:
                asked.cancel()  # one that does not answer must not collect questions

    def _handle(self, version: int) -> Any:
        if version not in self._handles:
            from ray import serve

            handle = serve.get_app_handle(self._names.model(version))
            self._handles[version] = handle.options(method_name="submit", stream=True)
        return self._handles[version]


def _applications(names: ApplicationNames) -> dict[int, tuple[str, str]]:
    """Status of each engine's application, and the last line of what Serve says about it."""
    from ray import serve

    found = {names.version_of(name): application for name, application in serve.status().applications.items()}
    return {version: (status_of(each), _last_line(each.message)) for version, each in found.items() if version is not None}


def status_of(application: Any) -> str:
    """Serve's word for an engine's application; RUNNING as long as one of its replicas answers.

    Serve calls an application unhealthy, or deploying, while one of several replicas is missing. The others go on, and so does one that is to move
    away from a node which is drained.
    """
    status = str(application.status.value)
    states = [state for deployment in application.deployments.values() for state, count in deployment.replica_states.items() if count]
    return RUNNING if status != DELETING and any(state in ANSWERING for state in states) else status


def _last_line(text: str) -> str:
    """What went wrong stands at the end of a traceback."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:MAX_REASON_CHARS] if lines else "Serve gives no reason"


def num_sequences(request: GenerationRequest) -> int:
    """Answers that a request asks for."""
    return max(len(request.prompts), 1) * request.num_choices


async def stream_chunks(
    engines: Engines, version: int, request: GenerationRequest, *, deadline_s: float, timeout_s: float, first_deadline_s: float | None = None
) -> AsyncIterator[tuple[Chunk, ...]]:
    """Chunks of one engine until ``deadline_s`` (``time.perf_counter``); closing this cancels the request at once.

    ``first_deadline_s`` is given if another engine can answer instead. The first chunk must come before it. Until then the engine's health is
    checked every ASK_EVERY_S; an engine that is not healthy gives a 503. Ends without an error only when every sequence has ended.
    Raises the ApiError that a Failure stands for, 504 when time is up (``timeout_s`` is for the message), 503 when the engine goes away
    or stops in the middle, 500 for whatever else it raises.
    """
    open_sequences = set(range(num_sequences(request)))
    limit_s = deadline_s if first_deadline_s is None else first_deadline_s
    async with aclosing(cast("AsyncGenerator[Events, None]", engines.submit(version, request))) as events:
        if first_deadline_s is None:
            item = await _next(events, version, limit_s, timeout_s)
        else:
            item = await _first(engines, events, version, limit_s, timeout_s)
        while item is not None:
            if isinstance(item, Failure):
                raise item.error()
            if any(chunk.finish_reason is FinishReason.CANCELLED for chunk in item):
                break  # we wait for it: the engine gave it up
            open_sequences -= {chunk.index for chunk in item if chunk.finish_reason is not None}
            limit_s = deadline_s
            yield item
            item = await _next(events, version, limit_s, timeout_s)
    if open_sequences:
        raise unavailable(f"the engine of model version {version} stopped before the answer was finished; try again")


async def _first(engines: Engines, events: AsyncGenerator[Events, None], version: int, limit_s: float, timeout_s: float) -> Events | None:
    """The first chunks, from a healthy engine; None if it ends without any."""
    coming = asyncio.create_task(_next(events, version, limit_s, timeout_s))
    try:
        while not (await asyncio.wait({coming}, timeout=ASK_EVERY_S))[0]:
            health = await engines.health(version)
            if not health.ok and not coming.done():
                raise unavailable(f"the engine of model version {version} is not healthy: {health.reason}")
        return coming.result()
    finally:
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)


async def _next(events: AsyncGenerator[Events, None], version: int, limit_s: float, timeout_s: float) -> Events | None:
    """What comes next; None at the end."""
    try:
        async with asyncio.timeout(limit_s - time.perf_counter()):
            return await anext(events)
    except StopAsyncIteration:
        return None
    except TimeoutError as error:
        message = f"the answer was not finished within {timeout_s:g} s; ask for fewer tokens, or try again"
        raise ApiError(504, message, type="server_error", code="timeout") from error
    except ApiError:
        raise
    except Exception as error:
        _log.exception("the engine of model version %d raised an unexpected error", version)
        message = f"the engine of model version {version} failed ({type(error).__name__}); the log of the gateway has more"
        raise ApiError(500, message, type="server_error", code="internal_error") from error
