"""Whether a model version can be served: its files are those that were registered, an engine loads them, and a token comes out.

For a person who is about to name a version: what cannot answer is refused at once, and not found out by the service later. Costs one reading of
the files and one start of an engine in this process, on the CPU, with room for a few tokens: seconds for a small model, and its weights
in memory while it lasts.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import cast

from ray_apps.models.registry import Registry
from ray_apps.serving.engine.interface import Engine, Events, Failure, GenerationRequest, Sampling
from schemas.errors import HeadraceError, RolloutError
from schemas.settings import ServingSettings

ROOM_TOKENS = 8
"""Context that is asked for: enough for the prompt and a token."""


def check_loadable(root: Path, version: int, settings: ServingSettings) -> None:
    """Raise RolloutError with the reason if the version could not answer; ModelNotFound if there is no such version."""
    registry = Registry(root)
    registry.manifest(version)
    try:
        _answer_once(registry.verified_folder(version), settings)
    except HeadraceError as error:
        raise RolloutError(f"model {version} cannot be served: {error}") from error
    except Exception as error:
        raise RolloutError(f"model {version} cannot be served: it does not load ({type(error).__name__}: {error})") from error


def _answer_once(folder: Path, settings: ServingSettings) -> None:
    from ray_apps.serving.engine.torch_engine import TorchEngine

    small = {"use_gpu": False, "max_concurrent_sequences": 1, "max_queued_requests": 1, "max_sequence_tokens": ROOM_TOKENS}
    engine = TorchEngine(folder, settings.model_copy(update=small))
    try:
        asyncio.run(asyncio.wait_for(_first_token(engine), settings.request_timeout_s))
    finally:
        engine.close()


async def _first_token(engine: Engine) -> None:
    """Raises ApiError if the engine fails."""
    request = GenerationRequest(id="check", prompts=((0,),), sampling=Sampling(max_tokens=1, temperature=0.0))
    async with aclosing(cast("AsyncGenerator[Events, None]", engine.submit(request))) as answer:
        async for item in answer:
            if isinstance(item, Failure):
                raise item.error()
