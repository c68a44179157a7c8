"""The built-in engine: continuous batching in PyTorch, on a thread of its own.

The thread steps while there is work and sleeps otherwise. Requests come from event loops; chunks go back to them at most once per
step and loop, and pile up into one where the reader is slower than the model. The queue is bounded: beyond it requests are refused.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ray_apps.serving.engine.batch import Batch, Running
from ray_apps.serving.engine.interface import Chunk, EngineHealth, EngineStats, Events, Failure, FinishReason, GenerationRequest
from ray_apps.serving.engine.llama import load_llama
from ray_apps.serving.engine.sampling import Draw
from ray_apps.serving.engine.text import TextStream, token_bytes
from schemas.settings import ServingSettings

_log = logging.getLogger(__name__)
CLOSE_TIMEOUT_S = 30.0
"""One step at most is under way when the engine is closed."""


class _Outlet:
    """Chunks of one request on their way from the engine's thread to the reader's event loop."""

    def __init__(self, num_sequences: int) -> None:
        self.loop = asyncio.get_running_loop()
        self._open = num_sequences
        self._chunks: dict[int, Chunk] = {}
        self._failure: Failure | None = None
        self._arrived = asyncio.Event()

    def deliver(self, chunk: Chunk | Failure) -> None:
        """Runs on the reader's loop."""
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

    def __init__(self, folder: Path, settings: ServingSettings) -> None:
        device = "cuda" if settings.use_gpu else "cpu"
        self._settings = settings
        model, self._tokenizer = load_llama(
            folder, num_slots=settings.max_concurrent_sequences, max_length=settings.max_sequence_tokens, device=device
        )
        self._max_length = model.cache.keys.shape[3]
        self._vocab_size = model.vocab_size
        self._table = token_bytes(self._tokenizer)
        self._eos_token_ids = _end_tokens(folder, self._tokenizer)
        self._batch = Batch(model, settings.max_concurrent_sequences, self._eos_token_ids)
        self._wake = threading.Condition()
        self._arrivals: deque[Running] = deque()
        self._requests: dict[str, list[Running]] = {}
        self._pending = 0
        self._outbox: list[tuple[_Outlet, Chunk | Failure]] = []
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    async def submit(self, request: GenerationRequest) -> AsyncIterator[Events]:
        """See ``interface.Engine``. Prompts are tokenized on another thread, so a long one does not hold up the event loop."""
        prompts = await asyncio.to_thread(self._encode, request)
        outlet = prompts if isinstance(prompts, Failure) else self._enqueue(request, prompts)
        if isinstance(outlet, Failure):
            yield outlet
            return
        try:
            async for events in outlet.read():
                yield events
        finally:
            self.cancel(request.id)

    def cancel(self, request_id: str) -> None:
        """See ``interface.Engine``; callable from any thread."""
        with self._wake:
            for sequence in self._requests.pop(request_id, ()):
                sequence.cancelled = True
            self._wake.notify()

    def stats(self) -> EngineStats:
        """See ``interface.Engine``; callable from any thread."""
        with self._wake:
            num_running = len(self._batch.running)
            num_waiting = self._pending - num_running
        return EngineStats(
            num_running=num_running,
            num_waiting=max(num_waiting, 0),
            num_slots=self._settings.max_concurrent_sequences,
            prompt_tokens=self._batch.prompt_tokens,
            completion_tokens=self._batch.completion_tokens,
        )

    def health(self) -> EngineHealth:
        """See ``interface.Engine``; callable from any thread."""
        return EngineHealth(ok=True) if self.is_alive else EngineHealth(ok=False, reason="the engine's thread has ended")

    @property
    def is_alive(self) -> bool:
        """Whether the thread that computes is running."""
        return self._thread.is_alive()

    def close(self) -> None:
        """See ``interface.Engine``."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(CLOSE_TIMEOUT_S)

    def _encode(self, request: GenerationRequest) -> list[list[int]] | Failure:
        """The prompts as token ids, one list for a chat; a Failure if they cannot be completed."""
        if request.prompts:
            prompts = [self._prompt_ids(prompt) for prompt in request.prompts]
            return self._check(request, prompts) or prompts
        if not getattr(self._tokenizer, "chat_template", None):
            return Failure(status=400, message="this model has no chat template; use /v1/completions", param="messages", code="no_chat_template")
        messages = [{"role": message.role, "content": message.content} for message in request.messages]
        try:
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # noqa: BLE001  a template is the model's own program: it may raise anything about roles and their order
            return Failure(status=400, message=f"this model's chat template refuses the messages: {error}", param="messages", code="invalid_value")
        chat = [self._tokenizer(text, add_special_tokens=False).input_ids]
        return self._check(request, chat) or chat

    def _prompt_ids(self, prompt: str | tuple[int, ...]) -> list[int]:
        token_ids = list(self._tokenizer(prompt).input_ids) if isinstance(prompt, str) else list(prompt)
        return token_ids or [min(self._eos_token_ids)]  # nothing to go on from: begin a document

    def _check(self, request: GenerationRequest, prompts: Sequence[Sequence[int]]) -> Failure | None:
        longest = max(len(prompt) for prompt in prompts)
        param = "prompt" if request.prompts else "messages"
        if longest >= self._max_length:
            message = f"This model's maximum context length is {self._max_length} tokens, but the prompt has {longest}; shorten it."
            return Failure(status=400, message=message, code="context_length_exceeded", param=param)
        if any(not 0 <= token_id < self._vocab_size for prompt in prompts for token_id in prompt):
            return Failure(status=400, message=f"the prompt has token ids outside 0..{self._vocab_size - 1}", code="invalid_value", param=param)
        capacity = self._settings.max_concurrent_sequences + self._settings.max_queued_requests
        num_sequences = len(prompts) * request.num_choices
        if num_sequences > capacity:
            message = f"the request asks for {num_sequences} sequences (prompts times n), and this server takes {capacity} at once"
            return Failure(status=400, message=message, code="invalid_value", param="n")
        return None

    def _enqueue(self, request: GenerationRequest, prompts: Sequence[Sequence[int]]) -> _Outlet | Failure:
        """Take all sequences of the request or none."""
        outlet = _Outlet(len(prompts) * request.num_choices)
        sequences = [
            self._sequence(request, index, prompt, outlet)
            for index, prompt in enumerate(prompt for prompt in prompts for _ in range(request.num_choices))
        ]
        with self._wake:
            capacity = self._settings.max_concurrent_sequences + self._settings.max_queued_requests
            if self._closing:
                return Failure(
                    status=503, message="this engine is shutting down; try again", type="server_error", code="shutting_down", retry_after_s=1
                )
            if self._pending + len(sequences) > capacity:
                message = f"{self._pending} sequences are running or waiting and this server takes {capacity}; try again later"
                return Failure(status=429, message=message, type="rate_limit_error", code="queue_full", retry_after_s=1)
            self._pending += len(sequences)
            self._requests[request.id] = sequences
            self._arrivals.extend(sequences)
            self._wake.notify()
        return outlet

    def _sequence(self, request: GenerationRequest, index: int, prompt: Sequence[int], outlet: _Outlet) -> Running:
        room = min(self._max_length - len(prompt), self._settings.max_completion_tokens)
        return Running(
            request_id=request.id,
            index=index,
            prompt=prompt,
            max_tokens=min(request.sampling.max_tokens or room, room),
            draw=Draw(request.sampling, choice=index),
            text=TextStream(self._table, request.sampling.stop),
            emit=lambda chunk: self._outbox.append((outlet, chunk)),
        )

    def _run(self) -> None:
        torch.set_num_threads(self._settings.threads_per_engine)
        with torch.inference_mode():
            while self._take_arrivals():
                try:
                    self._batch.step()
                except Exception as error:  # noqa: BLE001  whatever a step raises is answered with an error, and the next requests run
                    _log.exception("a step of the engine failed; its requests are answered with an error")
                    self._fail_all(error)
                self._post()
        for sequence in self._batch.clear():
            sequence.finish(FinishReason.CANCELLED)
        self._post()

    def _take_arrivals(self) -> bool:
        """Wait for work; False when the engine is to stop."""
        with self._wake:
            self._wake.wait_for(lambda: self._closing or self._arrivals or len(self._batch))
            self._batch.waiting.extend(self._arrivals)
            self._arrivals.clear()
            return not self._closing

    def _fail_all(self, error: Exception) -> None:
        message = f"the engine failed ({type(error).__name__}); the request was not finished"
        failure = Failure(status=500, message=message, type="server_error", code="engine_failed")
        for sequence in self._batch.clear():
            sequence.emit(failure)

    def _post(self) -> None:
        """Hand this step's chunks to their readers."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Outlet, Chunk | Failure]]] = {}
        for outlet, chunk in self._outbox:
            by_loop.setdefault(outlet.loop, []).append((outlet, chunk))
        self._outbox.clear()
        with self._wake:
            self._pending = len(self._arrivals) + len(self._batch)
        for loop, items in by_loop.items():
            try:
                loop.call_soon_threadsafe(_deliver_all, items)
            except RuntimeError:  # the reader's loop is closed: nobody is left to read
                _log.debug("an event loop went away with %d chunks unread", len(items))


def _deliver_all(items: Sequence[tuple[_Outlet, Chunk | Failure]]) -> None:
    for outlet, chunk in items:
        outlet.deliver(chunk)


def _end_tokens(folder: Path, tokenizer: Any) -> frozenset[int]:
    """Token ids that end a text: those of generation_config.json and the tokenizer's own."""
    from transformers import AutoConfig, GenerationConfig

    configured: list[Any] = [tokenizer.eos_token_id, AutoConfig.from_pretrained(folder, local_files_only=True).eos_token_id]
    if (folder / "generation_config.json").is_file():
        configured.append(GenerationConfig.from_pretrained(folder, local_files_only=True).eos_token_id)
    flat = [token_id for value in configured for token_id in (value if isinstance(value, list) else [value])]
    return frozenset(token_id for token_id in flat if token_id is not None)
