"""Chunks of an engine as OpenAI bodies: one JSON object, or server-sent events.

Invariant: the texts of a stream's events, joined per choice, are the text of the same answer in one piece; every choice ends with one
finish reason; a stream that ends well ends with ``data: [DONE]``, one that fails, whatever fails, ends with an error event and without it.
"""

import logging
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ray_apps.serving.engine.interface import Chunk, FinishReason
from schemas.errors import ApiError
from schemas.openai import (
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    Completion,
    CompletionChoice,
    Delta,
    Finish,
    Usage,
    error_event,
)

_log = logging.getLogger(__name__)
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How an answer is to look."""

    kind: Literal["completion", "chat"]
    id: str
    model: str
    num_sequences: int
    num_choices: int
    include_usage: bool = False
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def common(self) -> dict[str, Any]:
        """Fields of every object of this answer."""
        return {"id": self.id, "created": self.created, "model": self.model}


_FINISH: dict[FinishReason, Finish] = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length"}
"""OpenAI's words. There is none for cancelled: ``engine_pool.stream_chunks`` makes an error of a sequence that its engine gave up."""


class AnswerSoFar:
    """Texts, finish reasons and token counts of all sequences of an answer."""

    def __init__(self, form: Form) -> None:
        self._num_choices = form.num_choices
        self.texts = [""] * form.num_sequences
        self.finish: list[FinishReason | None] = [None] * form.num_sequences
        self._prompt_tokens = [0] * form.num_sequences
        self._completion_tokens = 0

    def add(self, chunk: Chunk) -> None:
        """Take a chunk in."""
        self.texts[chunk.index] += chunk.text
        self.finish[chunk.index] = chunk.finish_reason or self.finish[chunk.index]
        self._prompt_tokens[chunk.index] = chunk.prompt_tokens
        self._completion_tokens += len(chunk.token_ids)

    @property
    def usage(self) -> Usage:
        """A prompt counts once, however many choices share it."""
        prompt = sum(self._prompt_tokens[:: self._num_choices])
        return Usage(prompt_tokens=prompt, completion_tokens=self._completion_tokens, total_tokens=prompt + self._completion_tokens)


def whole(form: Form, tally: AnswerSoFar) -> Completion | ChatCompletion:
    """The answer in one piece, once every choice has ended."""
    ends = [_FINISH[reason] for reason in tally.finish if reason is not None]
    if form.kind == "completion":
        texts = [CompletionChoice(text=text, index=index, finish_reason=ends[index]) for index, text in enumerate(tally.texts)]
        return Completion(**form.common, choices=texts, usage=tally.usage)
    messages = [ChatChoice(index=index, message=AssistantMessage(content=text), finish_reason=ends[index]) for index, text in enumerate(tally.texts)]
    return ChatCompletion(**form.common, choices=messages, usage=tally.usage)


def _event(body: Completion | ChatChunk, form: Form) -> bytes:
    return b"data: " + body.model_dump_json(exclude=None if form.include_usage else {"usage"}).encode() + b"\n\n"


def _chat_choices(chunk: Chunk) -> list[ChatChunkChoice]:
    finish = _FINISH[chunk.finish_reason] if chunk.finish_reason else None
    text = [ChatChunkChoice(index=chunk.index, delta=Delta(content=chunk.text))] if chunk.text else []
    return text + ([ChatChunkChoice(index=chunk.index, delta=Delta(), finish_reason=finish)] if finish else [])


def _chunk_events(chunk: Chunk, form: Form) -> list[bytes]:
    """A chunk as events; one without text or end is none."""
    if form.kind == "chat":
        return [_event(ChatChunk(**form.common, choices=[choice]), form) for choice in _chat_choices(chunk)]
    if not chunk.text and chunk.finish_reason is None:
        return []
    finish = _FINISH[chunk.finish_reason] if chunk.finish_reason else None
    choice = CompletionChoice(text=chunk.text, index=chunk.index, finish_reason=finish)
    return [_event(Completion(**form.common, choices=[choice]), form)]


def _opening(form: Form) -> list[bytes]:
    """A chat stream begins by saying who speaks."""
    if form.kind != "chat":
        return []
    choices = [ChatChunkChoice(index=index, delta=Delta(role="assistant", content="")) for index in range(form.num_sequences)]
    return [_event(ChatChunk(**form.common, choices=[choice]), form) for choice in choices]


def _closing(form: Form, tally: AnswerSoFar) -> list[bytes]:
    if not form.include_usage:
        return [DONE]
    body = ChatChunk if form.kind == "chat" else Completion
    return [_event(body(**form.common, choices=[], usage=tally.usage), form), DONE]


async def events(form: Form, answer: AsyncIterator[Sequence[Chunk]]) -> AsyncIterator[bytes]:
    """The answer as server-sent events."""
    tally = AnswerSoFar(form)
    for event in _opening(form):
        yield event
    try:
        async for chunks in answer:
            for chunk in chunks:
                tally.add(chunk)
            joined = b"".join(event for chunk in chunks for event in _chunk_events(chunk, form))
            if joined:
                yield joined
    except ApiError as error:
        yield error_event(error)
        return
    except Exception:  # noqa: BLE001  the status has been sent: an event is the only way left to say what failed
        _log.exception("the stream %s failed", form.id)
        yield error_event(ApiError(500, f"the server failed; its log names {form.id}", type="server_error", code="internal_error"))
        return
    yield b"".join(_closing(form, tally))
