"""The built-in engine: continuous batching in PyTorch, on a thread of its own.

The thread steps while there is work and sleeps otherwise. Requests come from event loops; chunks go back to them at most once per
step and loop, and pile up into one where the reader is slower than the model. The queue is bounded: beyond it requests are refused, before
their text is encoded. One more thread encodes texts, one request at a time: what that takes is bounded by one text.

Invariant: every request that was taken ends with its sequences' finish reasons, or with a Failure: also if a step raises, if the thread ends,
and if the engine is closed while a step hangs.
"""

import asyncio
import json
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from pipelines.runtime.memory import few_arenas
from ray_apps.serving.engine.batch import Batch, Running
from ray_apps.serving.engine.heartbeat import Heartbeat
from ray_apps.serving.engine.interface import Chunk, EngineHealth, EngineStats, Events, Failure, GenerationRequest
from ray_apps.serving.engine.llama import load_llama
from ray_apps.serving.engine.llama_config import read_config, token_ids
from ray_apps.serving.engine.prompts import PromptEncoder, too_long
from ray_apps.serving.engine.sampling import Draw
from ray_apps.serving.engine.text import TextStream
from schemas.errors import ApiError
from schemas.settings import ServingSettings

_log = logging.getLogger(__name__)
CLOSE_TIMEOUT_S = 30.0
"""One step at most is under way when the engine is closed."""
CLOSED = Failure(status=503, message="this engine is shutting down; try again", type="server_error", code="shutting_down", retry_after_s=1)


class _Outlet:
    """Chunks of one request on their way from the engine's thread to the reader's event loop."""

    def __init__(self, request_id: str, num_sequences: int) -> None:
        self.request_id = request_id
        self.loop = asyncio.get_running_loop()
        self._open = num_sequences
        self._chunks: dict[int, Chunk] = {}
        self._failure: Failure | None = None
        self._arrived = asyncio.Event()

    def deliver(self, chunk: Chunk | Failure) -> None:
        """Runs on the reader's loop. What comes after the end is not told."""
        if not self._open:
            return
        if isinstance(chunk, Failure):
            self._failure, self._open = chunk, 0
        else:
            earlier = self._chunks.get(chunk.index)
            self._chunks[chunk.index] = _joined(earlier, chunk) if earlier else chunk
            self._open -= chunk.finish_reason is not None
        self._arrived.set()

    async def read(self) -> AsyncIterator[Events]:
        """What came since the last time, until all sequences have ended."""
        while self._open or self._chunks or self._failure:
            await self._arrived.wait()
            self._arrived.clear()
            chunks, self._chunks = tuple(self._chunks.values()), {}
            if chunks:
                yield chunks
            if self._failure:
                yield self._failure
                return


def _joined(first: Chunk, second: Chunk) -> Chunk:
    return replace(second, text=first.text + second.text, token_ids=first.token_ids + second.token_ids)


class TorchEngine:
    """Serves one model folder. Implements ``interface.Engine``."""

    def __init__(self, folder: Path, settings: ServingSettings, heartbeat: Heartbeat | None = None) -> None:
        """Raises RegistryError if the folder cannot be served."""
        few_arenas()
        device = "cuda" if settings.use_gpu else "cpu"
        self._settings = settings
        model = load_llama(folder, num_slots=settings.max_concurrent_sequences, max_length=settings.max_sequence_tokens, device=device)
        self._max_length = model.cache.keys.shape[3]
        self._vocab_size = model.vocab_size
        self._prompts = PromptEncoder(folder, self._max_length)
        self._eos_token_ids = _end_tokens(folder, self._prompts)
        self._batch = Batch(model, settings.max_concurrent_sequences, self._eos_token_ids)
        self._wake = threading.Condition()
        self._arrivals: deque[Running] = deque()
        self._open: dict[_Outlet, list[Running]] = {}
        self._reserved = 0
        """Sequences whose prompts are being encoded."""
        self._pending = 0
        self._outbox: list[tuple[_Outlet, Chunk | Failure]] = []
        self._closing = False
        self._heartbeat = heartbeat or Heartbeat()
        self._encoding = ThreadPoolExecutor(1, thread_name_prefix="engine-encoding")
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    async def submit(self, request: GenerationRequest) -> AsyncIterator[Events]:
        """See ``interface.Engine``."""
        try:
            outlet = await self._take(request, time.perf_counter())
        except ApiError as error:
            yield Failure.of(error)
            return
        try:
            async for events in outlet.read():
                yield events
        finally:
            with self._wake:
                self._end(self._open.pop(outlet, ()))

    def cancel(self, request_id: str) -> None:
        """See ``interface.Engine``; callable from any thread."""
        with self._wake:
            for outlet, sequences in self._open.items():
                if outlet.request_id == request_id:
                    self._end(sequences)

    def stats(self) -> EngineStats:
        """See ``interface.Engine``; callable from any thread."""
        with self._wake:
            num_running = len(self._batch.running)
            num_waiting = self._pending + self._reserved - num_running
        return EngineStats(
            num_running=num_running,
            num_waiting=max(num_waiting, 0),
            num_slots=self._settings.max_concurrent_sequences,
            prompt_tokens=self._batch.prompt_tokens,
            completion_tokens=self._batch.completion_tokens,
        )

    def health(self) -> EngineHealth:
        """See ``interface.Engine``; callable from any thread."""
        if not self.is_alive:
            return EngineHealth(ok=False, reason="the engine was closed" if self._closing else "the engine's thread has ended")
        return self._heartbeat.health(self._pending)

    @property
    def is_alive(self) -> bool:
        """Whether the thread that computes is running."""
        return self._thread.is_alive()

    def close(self) -> None:
        """See ``interface.Engine``. A step that hangs is waited for CLOSE_TIMEOUT_S; its requests fail all the same."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._encoding.shutdown(wait=False)
        self._thread.join(CLOSE_TIMEOUT_S)
        self._fail_open(CLOSED)

    async def _take(self, request: GenerationRequest, submitted_s: float) -> _Outlet:
        """Encode and enqueue. Raises ApiError. A place in the queue is kept from before the texts are encoded, so a full engine encodes nothing."""
        num_sequences = max(len(request.prompts), 1) * request.num_choices
        self._reserve(num_sequences)
        try:
            prompts = await asyncio.get_running_loop().run_in_executor(self._encoding, self._encode, request)
        except RuntimeError as error:  # of the executor, which takes no more
            raise CLOSED.error() from error
        finally:
            with self._wake:
                self._reserved -= num_sequences
        return self._enqueue(request, prompts, submitted_s)

    def _reserve(self, num_sequences: int) -> None:
        capacity = self._settings.max_concurrent_sequences + self._settings.max_queued_requests
        if num_sequences > capacity:
            message = f"the request asks for {num_sequences} sequences (prompts times n), and this server takes {capacity} at once"
            raise ApiError(400, message, type="invalid_request_error", code="invalid_value", param="n")
        with self._wake:
            taken = self._pending + self._reserved
            if self._closing:
                raise CLOSED.error()
            if taken + num_sequences > capacity:
                message = f"{taken} sequences are running or waiting and this server takes {capacity}; try again later"
                raise ApiError(429, message, type="rate_limit_error", code="queue_full", retry_after_s=1)
            self._reserved += num_sequences

    def _encode(self, request: GenerationRequest) -> list[list[int]]:
        """The prompts as token ids, one list for a chat. Raises ApiError 400 if they cannot be completed."""
        if not request.prompts:
            return [self._checked(self._prompts.chat(request.messages), "messages")]
        return [self._checked(self._prompt_ids(prompt), "prompt") for prompt in request.prompts]

    def _prompt_ids(self, prompt: str | tuple[int, ...]) -> list[int]:
        ids = self._prompts.prompt(prompt) if isinstance(prompt, str) else list(prompt)
        return ids or [min(self._eos_token_ids)]  # nothing to go on from: begin a document

    def _checked(self, ids: list[int], param: str) -> list[int]:
        if len(ids) >= self._max_length:
            raise too_long(self._max_length, len(ids), param)
        if any(not 0 <= token_id < self._vocab_size for token_id in ids):
            message = f"the prompt has token ids outside 0..{self._vocab_size - 1}"
            raise ApiError(400, message, type="invalid_request_error", code="invalid_value", param=param)
        return ids

    def _enqueue(self, request: GenerationRequest, prompts: Sequence[Sequence[int]], submitted_s: float) -> _Outlet:
        """Take all sequences of the request. Raises ApiError if the engine was closed meanwhile."""
        outlet = _Outlet(request.id, len(prompts) * request.num_choices)
        sequences = [
            self._sequence(request, index, prompt, outlet, submitted_s)
            for index, prompt in enumerate(prompt for prompt in prompts for _ in range(request.num_choices))
        ]
        with self._wake:
            if self._closing or not self.is_alive:
                raise CLOSED.error()
            if not self._pending:
                self._heartbeat.beat()  # the wait for the next step begins now
            self._pending += len(sequences)
            self._open[outlet] = sequences
            self._arrivals.extend(sequences)
            self._wake.notify()
        return outlet

    def _sequence(self, request: GenerationRequest, index: int, prompt: Sequence[int], outlet: _Outlet, submitted_s: float) -> Running:
        room = min(self._max_length - len(prompt), self._settings.max_completion_tokens)
        return Running(
            request_id=request.id,
            index=index,
            prompt=prompt,
            max_tokens=min(request.sampling.max_tokens or room, room),
            draw=Draw(request.sampling, choice=index),
            text=TextStream(self._prompts.table, request.sampling.stop),
            emit=lambda chunk: self._outbox.append((outlet, chunk)),
            submitted_s=submitted_s,
        )

    def _end(self, sequences: Iterable[Running]) -> None:
        """End them at the next step. Called with the lock held."""
        for sequence in sequences:
            sequence.cancelled = True
        self._wake.notify()

    def _run(self) -> None:
        torch.set_num_threads(self._settings.threads_per_engine)
        try:
            with torch.inference_mode():
                while self._take_arrivals():
                    self._step()
                    self._post()
        finally:
            self._fail_open(CLOSED if self._closing else _failed("its thread has ended"))

    def _step(self) -> None:
        try:
            self._batch.step()
        except Exception as error:  # noqa: BLE001  whatever a step raises is answered with an error, and the next requests run
            _log.exception("a step of the engine failed; its requests are answered with an error")
            self._heartbeat.fail(error)
            for sequence in self._batch.clear():
                sequence.emit(_failed(type(error).__name__))
        else:
            self._heartbeat.beat(succeeded=True)

    def _take_arrivals(self) -> bool:
        """Wait for work; False when the engine is to stop."""
        with self._wake:
            self._wake.wait_for(lambda: self._closing or self._arrivals or len(self._batch))
            self._batch.waiting.extend(self._arrivals)
            self._arrivals.clear()
            return not self._closing

    def _fail_open(self, failure: Failure) -> None:
        """End every request that has not ended; callable from any thread."""
        with self._wake:
            outlets = list(self._open)
            self._open.clear()
            self._pending = 0
        _send([(outlet, failure) for outlet in outlets])

    def _post(self) -> None:
        """Hand this step's chunks to their readers."""
        outbox, self._outbox = self._outbox, []
        with self._wake:
            self._pending = len(self._arrivals) + len(self._batch)
        _send(outbox)


def _failed(what: str) -> Failure:
    return Failure(status=500, message=f"the engine failed ({what}); the request was not finished", type="server_error", code="engine_failed")


def _send(items: Sequence[tuple[_Outlet, Chunk | Failure]]) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Outlet, Chunk | Failure]]] = {}
    for outlet, chunk in items:
        by_loop.setdefault(outlet.loop, []).append((outlet, chunk))
    for loop, delivered in by_loop.items():
        try:
            loop.call_soon_threadsafe(_deliver_all, delivered)
        except RuntimeError:  # the reader's loop is closed: nobody is left to read
            _log.debug("an event loop went away with %d chunks unread", len(delivered))


def _deliver_all(items: Sequence[tuple[_Outlet, Chunk | Failure]]) -> None:
    for outlet, chunk in items:
        outlet.deliver(chunk)


def _end_tokens(folder: Path, prompts: PromptEncoder) -> frozenset[int]:
    """Token ids that end a text: those of config.json and generation_config.json, and the tokenizer's own."""
    found = read_config(folder).eos_token_ids | token_ids(prompts.token_id("eos_token"))
    path = folder / "generation_config.json"
    return found | token_ids(json.loads(path.read_bytes()).get("eos_token_id")) if path.is_file() else found
