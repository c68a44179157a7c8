"""Where the engines are: in this process, or behind Ray Serve, one application per model version.

``submit`` of either raises ApiError 503 when the engine behind it is gone, so callers need not know Ray's errors.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any, Protocol, cast

from ray_apps.serving.engine.interface import Chunk, Engine, EngineHealth, Events, Failure, FinishReason, GenerationRequest
from schemas.errors import ApiError

APPLICATION_PREFIX = "model-"
"""Serve application of model version 3: ``model-3``."""
GATEWAY = "gateway"
"""Serve application of the gateway."""


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

    def __init__(self) -> None:
        self._ready: frozenset[int] = frozenset()
        self._handles: dict[int, Any] = {}

    @property
    def ready(self) -> frozenset[int]:
        """Versions whose application runs."""
        return self._ready

    async def refresh(self) -> None:
        """Ask Serve's controller, off the event loop."""
        self._ready = await asyncio.to_thread(running_versions)
        for version in set(self._handles) - self._ready:
            del self._handles[version]

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

        try:
            asked = self._handle(version).options(method_name="health", stream=False).remote()
            return cast("EngineHealth", await asked)
        except (RayError, RayServeException) as error:
            return EngineHealth(ok=False, reason=f"it went away ({type(error).__name__})")

    def _handle(self, version: int) -> Any:
        if version not in self._handles:
            from ray import serve

            handle = serve.get_app_handle(f"{APPLICATION_PREFIX}{version}")
            self._handles[version] = handle.options(method_name="submit", stream=True)
        return self._handles[version]


def running_versions() -> frozenset[int]:
    """Model versions whose Serve application is up."""
    from ray import serve

    names = [name for name, application in serve.status().applications.items() if application.status == "RUNNING"]
    return frozenset(int(name.removeprefix(APPLICATION_PREFIX)) for name in names if name.startswith(APPLICATION_PREFIX))


async def stream_chunks(
    engines: Engines, version: int, request: GenerationRequest, *, deadline_s: float, timeout_s: float
) -> AsyncIterator[tuple[Chunk, ...]]:
    """Chunks of one engine until ``deadline_s`` (``time.perf_counter``); closing this cancels the request at once.

    Ends only when every sequence has been finished. Raises the ApiError that a Failure stands for, 504 when time is up (``timeout_s`` is for
    the message), 503 if the engine stops before it has finished, whatever it says about that.
    """
    unfinished = set(range(max(len(request.prompts), 1) * request.num_choices))
    async with aclosing(cast("AsyncGenerator[Events, None]", engines.submit(version, request))) as events:
        while True:
            try:
                async with asyncio.timeout(deadline_s - time.perf_counter()):
                    item = await anext(events)
            except StopAsyncIteration:
                if unfinished:
                    raise _stopped(version) from None
                return
            except TimeoutError as error:
                message = f"the answer was not finished within {timeout_s:g} s; ask for fewer tokens, or try again"
                raise ApiError(504, message, type="server_error", code="timeout") from error
            if isinstance(item, Failure):
                raise item.error()
            if any(chunk.finish_reason is FinishReason.CANCELLED for chunk in item):
                raise _stopped(version)
            unfinished -= {chunk.index for chunk in item if chunk.finish_reason is not None}
            yield item


def _stopped(version: int) -> ApiError:
    return unavailable(f"the engine of model version {version} stopped before the answer was finished; try again")
