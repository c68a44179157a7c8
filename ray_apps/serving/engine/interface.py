"""What the gateway asks of an engine, and what it gets back. Plain values: they travel between processes.

Invariant: every sequence of an accepted request ends with exactly one chunk that has a finish reason, or the request ends with one
Failure: it was refused, a step raised, or the engine was closed. An engine that breaks never gives a finish reason. In the gateway's
process ``engine_pool.stream_chunks`` raises a Failure as the ApiError that it stands for.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, Self, TypeAlias

from schemas.errors import ApiError


class FinishReason(StrEnum):
    """Why a sequence ended."""

    STOP = "stop"
    """The model ended the text, or a stop string came up."""
    LENGTH = "length"
    """The token limit or the context was reached."""
    CANCELLED = "cancelled"
    """Nobody waits for it any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen. ``temperature`` 0 takes the likeliest."""

    max_tokens: int | None = 16
    """None: as many as the context and the server's limit allow."""
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """Consider the k likeliest tokens only; 0 considers all."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    ignore_eos: bool = False
    """Go on past the end-of-text token; for measurements."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One HTTP request: every prompt (or the chat) is completed ``num_choices`` times."""

    id: str
    prompts: tuple[str | tuple[int, ...], ...] = ()
    """Texts, or token ids."""
    messages: tuple[Message, ...] = ()
    """A chat, rendered with the model's own template; used when there are no prompts."""
    num_choices: int = 1
    sampling: Sampling = Sampling()


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Where the time of one sequence went in the engine, in seconds; neither the client's reading nor earlier attempts are in it."""

    queue_s: float
    """From the call of ``submit`` to the first step that computes it: tokenization and waiting for a slot."""
    prefill_s: float
    """From there to its first token."""
    decode_s: float
    """From its first token to its last."""

    @property
    def total_s(self) -> float:
        """The latency of the engine."""
        return self.queue_s + self.prefill_s + self.decode_s

    @property
    def time_to_first_token_s(self) -> float:
        """As the engine sees it."""
        return self.queue_s + self.prefill_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """New text of one sequence since its last chunk; several steps may be folded into one."""

    index: int
    """Which sequence: prompt number * num_choices + choice number."""
    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    prompt_tokens: int = 0
    """Length of the sequence's prompt."""
    timing: Timing | None = None
    """On the last chunk of a sequence; None from an engine that does not measure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The request was not taken, or could not be finished; nothing follows it.

    A value, because exceptions change on their way between processes.
    """

    status: int
    message: str
    type: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None
    retry_after_s: float | None = None

    @classmethod
    def of(cls, error: ApiError) -> Self:
        """An error as a value."""
        return cls(status=error.status, message=str(error), type=error.type, code=error.code, param=error.param, retry_after_s=error.retry_after_s)

    def error(self) -> ApiError:
        """As the exception that the gateway raises."""
        return ApiError(self.status, str(self.message), type=self.type, code=self.code, param=self.param, retry_after_s=self.retry_after_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """A snapshot for people and dashboards."""

    num_running: int
    num_waiting: int
    num_slots: int
    prompt_tokens: int
    """Prompt tokens computed since the start."""
    completion_tokens: int
    """Tokens generated since the start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineHealth:
    """Whether an engine does its work, judged by its steps."""

    ok: bool
    reason: str = ""
    """What is wrong, for people; empty if nothing is."""


Events: TypeAlias = tuple[Chunk, ...] | Failure
"""What happened since the last time; one chunk per sequence at most."""


class Engine(Protocol):
    """Something that completes prompts, many at a time."""

    def submit(self, request: GenerationRequest) -> AsyncIterator[Events]:
        """Events of a request until all its sequences have ended. Closing the iterator early cancels the request."""
        ...

    def cancel(self, request_id: str) -> None:
        """End a request's sequences at the next step; unknown ids are ignored."""
        ...

    def stats(self) -> EngineStats:
        """Present load and totals."""
        ...

    def health(self) -> EngineHealth:
        """Whether steps succeed, and make progress while there is work."""
        ...

    def close(self) -> None:
        """Stop; every request that still runs ends with a Failure (503)."""
        ...
