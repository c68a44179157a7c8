"""Request bodies: what parses, and that what does not is refused with a 400 that names the parameter."""

import json
from typing import Any

import pytest

from schemas.errors import ApiError
from schemas.openai import ChatRequest, CompletionRequest, GenerationParameters, error_body, parse_request

PROMPT = {"model": "headrace", "prompt": "水渠"}
CHAT = {"model": "headrace", "messages": [{"role": "user", "content": "你好"}]}


def refusal(model: type[GenerationParameters], body: Any) -> ApiError:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(ApiError) as caught:
        parse_request(model, data)
    assert caught.value.status == 400
    assert caught.value.type == "invalid_request_error"
    return caught.value


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("水渠", ("水渠",)),
        ("", ("",)),
        (["a", "b"], ("a", "b")),
        ([1, 2, 3], ((1, 2, 3),)),
        ([[1], [2, 3]], ((1,), (2, 3))),
        (["a", [1, 2]], ("a", (1, 2))),
    ],
)
def test_every_kind_of_prompt_parses(prompt: Any, expected: Any) -> None:
    assert parse_request(CompletionRequest, json.dumps(PROMPT | {"prompt": prompt}).encode()).prompts == expected


def test_a_chat_message_in_parts_is_joined() -> None:
    parts = [{"type": "text", "text": "你"}, {"type": "text", "text": "好"}]
    parsed = parse_request(ChatRequest, json.dumps(CHAT | {"messages": [{"role": "user", "content": parts}]}).encode())
    assert parsed.messages[0].text == "你好"


@pytest.mark.parametrize(
    ("extra", "param", "code"),
    [
        ({"foo": 1}, "foo", "unknown_parameter"),
        ({"logprobs": 3}, "logprobs", "unsupported_parameter"),
        ({"logprobs": 0}, "logprobs", "unsupported_parameter"),
        ({"echo": True}, "echo", "unsupported_parameter"),
        ({"logit_bias": {"1": 5}}, "logit_bias", "unsupported_parameter"),
        ({"best_of": 2}, "best_of", "unsupported_parameter"),
        ({"temperature": 2.5}, "temperature", "invalid_value"),
        ({"temperature": "hot"}, "temperature", "invalid_type"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": True}, "n", "invalid_type"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"seed": 2**70}, "seed", "invalid_value"),
        ({"stop": ["a"] * 5}, "stop", "invalid_type"),
        ({"stop": ""}, "stop", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unknown_parameter"),
        ({"presence_penalty": 3}, "presence_penalty", "invalid_value"),
        ({"prompt": None}, "prompt", "invalid_type"),
        ({"prompt": []}, "prompt", "invalid_type"),
        ({"prompt": [-1]}, "prompt", "invalid_type"),
        ({"prompt": ["a", None]}, "prompt", "invalid_type"),
        ({"model": 3}, "model", "invalid_type"),
    ],
)
def test_a_wrong_completion_parameter_is_named(extra: dict[str, Any], param: str, code: str) -> None:
    error = refusal(CompletionRequest, PROMPT | extra)
    assert (error.param.split("[")[0] if error.param else None, error.code) == (param, code)
    assert f"'{error.param}'" in str(error)


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "invalid_type"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content", "invalid_type"),
        ({"messages": [{"role": "user", "content": "x", "extra": 1}]}, "messages[0].extra", "unknown_parameter"),
        ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
        ({"tools": [{"type": "function"}]}, "tools", "unsupported_parameter"),
        ({"prompt": "x"}, "prompt", "unknown_parameter"),
        ({"max_tokens": 3, "max_completion_tokens": 5}, "max_tokens", "invalid_value"),
    ],
)
def test_a_wrong_chat_parameter_is_named(change: dict[str, Any], param: str, code: str) -> None:
    error = refusal(ChatRequest, CHAT | change)
    assert (error.param, error.code) == (param, code)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [({}, None), ({"max_tokens": 3}, 3), ({"max_completion_tokens": 5}, 5), ({"max_tokens": 5, "max_completion_tokens": 5}, 5)],
)
def test_a_chats_two_names_of_one_limit_may_agree(limits: dict[str, int], expected: int | None) -> None:
    assert parse_request(ChatRequest, json.dumps(CHAT | limits).encode()).token_limit == expected


def test_a_missing_prompt_is_named() -> None:
    error = refusal(CompletionRequest, {"model": "headrace"})
    assert (error.param, error.code) == ("prompt", "missing_required_parameter")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"model": "headrace", "prompt": "\\ud800"}',
        b"[" * 100_000,
        b'{"model": "headrace", "prompt": "x", "temperature": NaN}',
        b"[]",
        b'"text"',
        b"null",
    ],
)
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    assert str(refusal(CompletionRequest, body))


def test_parameters_that_ask_for_nothing_are_accepted() -> None:
    neutral = {"logprobs": None, "echo": False, "suffix": None, "best_of": 1, "logit_bias": {}, "metadata": {"a": "b"}, "n": None, "stop": None}
    assert parse_request(CompletionRequest, json.dumps(PROMPT | neutral).encode()).prompts == ("水渠",)


def test_the_error_body_is_openais() -> None:
    error = ApiError(429, "busy", type="rate_limit_error", code="queue_full")
    assert error_body(error).model_dump() == {"error": {"message": "busy", "type": "rate_limit_error", "param": None, "code": "queue_full"}}


def test_an_error_body_has_a_few_kilobytes_at_most_and_keeps_its_advice() -> None:
    for character in "a\x01水\U0001f600":
        error = ApiError(400, f"No such thing: {character * 10**6}; GET /v1/models lists all.", type="t", param=character * 10**6)
        body = error_body(error).model_dump_json().encode()
        assert len(body) < 6 * 2**10 and b"lists all." in body
