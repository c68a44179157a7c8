"""Whether an engine answers now: by what it said last to anybody, or by asking it.

A process that lives may still answer nobody: stopped, stuck in a step, failing every step. So an engine is well if it gave a client
something within HEARD_S, and nothing has failed since; else it is asked, and must say within PROBE_TIMEOUT_S that its steps succeed.
Costs a clock reading per batch of chunks; a question to an idle engine takes some milliseconds, and questions at the same time share one.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import cast

from ray_apps.serving.engine.interface import EngineHealth, Events, Failure, FinishReason, GenerationRequest
from ray_apps.serving.engine_pool import Engines

HEARD_S = 2.0
"""An engine whose requests fill every place cannot be asked; then its chunks speak for it, of which there are many a second."""
PROBE_TIMEOUT_S = 1.0
"""An engine answers between two steps, which take milliseconds."""


class Pulse:
    """Engines whose answers are listened to. Implements ``engine_pool.Engines``."""

    def __init__(self, engines: Engines) -> None:
        self._engines = engines
        self._heard_at_s: dict[int, float] = {}
        self._probes: dict[int, asyncio.Task[EngineHealth]] = {}

    @property
    def ready(self) -> frozenset[int]:
        """See ``Engines``."""
        return self._engines.ready

    def why_not(self, version: int) -> str:
        """See ``Engines``."""
        return self._engines.why_not(version)

    async def refresh(self) -> None:
        """See ``Engines``."""
        await self._engines.refresh()

    async def submit(self, version: int, request: GenerationRequest) -> AsyncIterator[Events]:
        """See ``Engines``."""
        try:
            async with aclosing(cast("AsyncGenerator[Events, None]", self._engines.submit(version, request))) as answer:
                async for events in answer:
                    if _is_broken(events):
                        self._heard_at_s.pop(version, None)
                    else:
                        self._heard_at_s[version] = time.monotonic()
                    yield events
        except Exception:
            self._heard_at_s.pop(version, None)
            raise

    async def health(self, version: int) -> EngineHealth:
        """See ``Engines``; returns within PROBE_TIMEOUT_S."""
        if time.monotonic() - self._heard_at_s.get(version, float("-inf")) < HEARD_S:
            return EngineHealth(ok=True)
        if version not in self._probes:
            probe = self._probes[version] = asyncio.create_task(self._probe(version))
            probe.add_done_callback(lambda _: self._probes.pop(version))
        return await asyncio.shield(self._probes[version])

    async def _probe(self, version: int) -> EngineHealth:
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                return await self._engines.health(version)
        except TimeoutError:
            return EngineHealth(ok=False, reason=f"it does not answer within {PROBE_TIMEOUT_S:g} s")


def _is_broken(events: Events) -> bool:
    """Whether the engine says that it does not go on, without having been told to stop."""
    if isinstance(events, Failure):
        return events.status >= 500
    return any(chunk.finish_reason is FinishReason.CANCELLED for chunk in events)
