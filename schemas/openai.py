"""The OpenAI HTTP API: requests, answers, chunks of streamed answers, errors. Source: the API reference of the openai client, version 2.

Invariants: a request either parses into one of these models or is refused with a 400 that names the parameter. A parameter that is
known but not served is refused too, unless it is set to what leaving it out means, and so are two parameters that contradict each other:
an answer never ignores what was asked for. The body of an error has a few kilobytes at most, however much of a request it names.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_serializer, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from schemas.errors import ApiError

MAX_CHOICES = 128
MAX_STOPS = 4
MAX_PROMPTS = 2048
SEED_RANGE = 2**63
MAX_MESSAGE_CHARACTERS = 800
MAX_NAME_CHARACTERS = 100
"""Of an error's message, and of the parameter that it names. JSON takes six bytes at most for one: 5.5 KB together."""

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "logprobs": (None, False),
    "top_logprobs": (None,),
    "logit_bias": (None, {}),
    "echo": (None, False),
    "suffix": (None, ""),
    "best_of": (None, 1),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "parallel_tool_calls": (None, True, False),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "reasoning_effort": (None, "none"),
    "verbosity": (None,),
    "web_search_options": (None,),
    "store": (None, False),
    "service_tier": (None, "auto", "default"),
}
"""Parameters of the API that are not served, with the values that ask for nothing."""
_IGNORED = frozenset({"metadata", "prompt_cache_key", "prompt_cache_retention", "safety_identifier"})
"""Parameters that do not change an answer."""

_UNIONS = {
    "prompt": "it must be a string, a list of strings, a list of token ids, or a list of such lists; not empty",
    "stop": f"it must be a string of 1 to 256 characters, or a list of at most {MAX_STOPS} of them",
    "content": "it must be a string, or a list of parts of type 'text'",
}
"""What parameters of more than one type may be: the error of one branch would mislead."""


def _is_neutral(key: str, value: Any) -> bool:
    """Whether a parameter that is not served asks for nothing; 0 is not False here."""
    return any(type(value) is type(neutral) and value == neutral for neutral in _NEUTRAL.get(key, ()))


Stop = Annotated[str, Field(min_length=1, max_length=256)]
TokenIds = Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1, max_length=2**20)]


class Strict(BaseModel):
    """A closed JSON object."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class StreamOptions(Strict):
    """What a stream carries besides text."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class GenerationParameters(Strict):
    """What both kinds of completion take."""

    model: str
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=2**31)
    """Not OpenAI's; other open servers have it under this name."""
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    max_tokens: int | None = Field(None, ge=1)
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    seed: int | None = Field(None, ge=-SEED_RANGE, lt=SEED_RANGE)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    user: str | None = Field(None, max_length=512)

    @model_validator(mode="before")
    @classmethod
    def drop_neutral(cls, value: Any) -> Any:
        """Take away parameters that ask for nothing; those that ask for something unserved stay, and are reported."""
        if not isinstance(value, dict):
            return value
        return {key: item for key, item in value.items() if key in cls.model_fields or not (key in _IGNORED or _is_neutral(key, item))}

    @model_validator(mode="after")
    def options_need_stream(self) -> Self:
        """As OpenAI: stream_options without stream is a mistake."""
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError("stream_options", "it is only allowed when 'stream' is enabled")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk of token counts."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionRequest(GenerationParameters):
    """Body of POST /v1/completions."""

    DEFAULT_MAX_TOKENS: ClassVar[int | None] = 16
    prompt: str | TokenIds | Annotated[list[str | TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)]

    @property
    def prompts(self) -> tuple[str | tuple[int, ...], ...]:
        """Every prompt: text or token ids."""
        if isinstance(self.prompt, str):
            return (self.prompt,)
        if self.prompt and isinstance(self.prompt[0], int):
            return (tuple(item for item in self.prompt if isinstance(item, int)),)
        return tuple(item if isinstance(item, str) else tuple(item) for item in self.prompt if not isinstance(item, int))

    @property
    def token_limit(self) -> int | None:
        """Most tokens of each answer."""
        return self.max_tokens or self.DEFAULT_MAX_TOKENS


class TextPart(Strict):
    """A piece of a message."""

    type: Literal["text"]
    text: str


class ChatMessage(Strict):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    @property
    def text(self) -> str:
        """The content as one string."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(GenerationParameters):
    """Body of POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=4096)
    max_completion_tokens: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def one_limit(self) -> Self:
        """The old name and the new one of the same limit may both be there only if they agree."""
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            numbers = {"max_tokens": self.max_tokens, "max_completion_tokens": self.max_completion_tokens}
            raise PydanticCustomError("max_tokens", "it is {max_tokens}, but 'max_completion_tokens' is {max_completion_tokens}; send one", numbers)
        return self

    @property
    def token_limit(self) -> int | None:
        """Most tokens of each answer; none: what the context has room for."""
        return self.max_completion_tokens or self.max_tokens


class Usage(BaseModel):
    """Token counts of one answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


Finish = Literal["stop", "length"]


class CompletionChoice(BaseModel):
    """One text."""

    text: str
    index: int
    logprobs: None = None
    finish_reason: Finish | None


class Completion(BaseModel):
    """Answer of /v1/completions, and each chunk of a streamed one."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class AssistantMessage(BaseModel):
    """What the model said."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """One answer to a chat."""

    index: int
    message: AssistantMessage
    logprobs: None = None
    finish_reason: Finish


class ChatCompletion(BaseModel):
    """Answer of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class Delta(BaseModel):
    """What is new in a chunk."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(BaseModel):
    """New text of one answer."""

    index: int
    delta: Delta
    logprobs: None = None
    finish_reason: Finish | None = None

    @field_serializer("delta")
    def only_what_is_new(self, delta: Delta) -> dict[str, str]:
        """A delta holds no nulls: a client adds up what is there."""
        return {key: value for key, value in (("role", delta.role), ("content", delta.content)) if value is not None}


class ChatChunk(BaseModel):
    """A chunk of a streamed /v1/chat/completions."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class ModelCard(BaseModel):
    """An entry of /v1/models."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "headrace"


class ModelList(BaseModel):
    """Answer of /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


def error_body(error: ApiError) -> ErrorBody:
    """The OpenAI body of an error, bounded."""
    param = None if error.param is None else _shortened(error.param, MAX_NAME_CHARACTERS)
    message = _shortened(str(error), MAX_MESSAGE_CHARACTERS)
    return ErrorBody(error=ErrorDetail(message=message, type=error.type, param=param, code=error.code))


def error_event(error: ApiError) -> bytes:
    """The same as the last of server-sent events."""
    return b"data: " + error_body(error).model_dump_json().encode() + b"\n\n"


def _shortened(text: str, limit: int) -> str:
    """The beginning and the end of a text that is too long: what a message advises stands at its end."""
    if len(text) <= limit:
        return text
    tail = limit // 2 - 1
    return f"{text[: limit - tail - 1]}…{text[-tail:]}"


RequestT = TypeVar("RequestT", bound=GenerationParameters)
_BRANCH = re.compile(r"^(str$|int$|list\[|function-|constrained-)")
"""Names that pydantic gives the branches of a union."""


def parse_request(model: type[RequestT], body: bytes) -> RequestT:
    """Parse and check a request body. Raises ApiError (400) that names the first parameter that is wrong."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(error.errors(include_url=False)[0]) from error


def _param(location: tuple[int | str, ...]) -> str:
    """``messages[0].role``; the names of union branches, which pydantic mixes in, are left out."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not _BRANCH.match(part):
            path += f".{part}" if path else part
    return path


def _refusal(detail: ErrorDetails) -> ApiError:
    kind, location = detail["type"], detail["loc"]
    param = kind if kind in ("stream_options", "max_tokens") else _param(location)
    if not param:
        what = f"The body is not valid JSON: {detail['msg'].removeprefix('Invalid JSON: ')}."
        message, code = (what, "invalid_json") if kind == "json_invalid" else ("The body must be a JSON object.", "invalid_type")
    elif kind == "extra_forbidden":
        message, code = _unknown(param)
    elif kind == "missing":
        message, code = f"Missing required parameter: '{param}'.", "missing_required_parameter"
    else:
        message, code = f"Invalid value for '{param}': {_expected(detail)}.", "invalid_value"
        code = "invalid_type" if kind.endswith(("_type", "_parsing")) else code
    return ApiError(400, message, type="invalid_request_error", code=code, param=param or None)


def _unknown(param: str) -> tuple[str, str]:
    if param in _NEUTRAL:
        return f"This server does not support the parameter '{param}' with this value; leave it out.", "unsupported_parameter"
    return f"Unknown parameter: '{param}'.", "unknown_parameter"


def _expected(detail: ErrorDetails) -> str:
    names = [part for part in detail["loc"] if isinstance(part, str) and not _BRANCH.match(part)]
    return _UNIONS.get(names[-1], detail["msg"]) if names else detail["msg"]
