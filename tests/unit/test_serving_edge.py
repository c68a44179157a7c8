"""The edge on real sockets, under the server that Ray Serve's proxies run: every byte sequence gets a whole answer, or none."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from pydantic import SecretStr

from ray_apps.serving import edge
from ray_apps.serving.asgi import App, Receive, Scope, Send
from ray_apps.serving.edge import LINGER_BYTES, MAX_BODY_BYTES, MAX_HEAD_BYTES, middlewares
from ray_apps.serving.engine.interface import Chunk, Engine, EngineHealth, EngineStats, Events, FinishReason, GenerationRequest
from ray_apps.serving.engine_pool import LocalEngines
from ray_apps.serving.following import RolloutFollower
from ray_apps.serving.gateway import build_gateway
from schemas.settings import ServingSettings
from tests.serving_harness import EventList, publish_state, until

pytestmark = pytest.mark.anyio
TIMEOUT_S = 20.0
HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
ASK = {"model": "headrace", "prompt": "x", "max_tokens": 1}


class Echo:
    """Answers every prompt with one token; those that say ``wait`` get it when the engine is closed."""

    def __init__(self) -> None:
        self._closed = asyncio.Event()

    async def submit(self, request: GenerationRequest) -> AsyncIterator[Events]:
        if request.prompts == ("wait",):
            await self._closed.wait()
        yield (Chunk(index=0, text="y", token_ids=(5,), prompt_tokens=1, finish_reason=FinishReason.STOP),)

    def cancel(self, request_id: str) -> None: ...

    def stats(self) -> EngineStats:
        return EngineStats(num_running=0, num_waiting=0, num_slots=0, prompt_tokens=0, completion_tokens=0)

    def health(self) -> EngineHealth:
        return EngineHealth(ok=True)

    def close(self) -> None:
        self._closed.set()


@dataclass
class Reply:
    """What came over the socket."""

    bytes: bytes
    closed: bool
    """Whether the server closed the connection."""

    def __post_init__(self) -> None:
        head, _, rest = self.bytes.partition(b"\r\n\r\n")
        while head.startswith(b"HTTP/1.1 100"):
            head, _, rest = rest.partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        self.status = int(status.split(" ")[1]) if status else 0
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        self.body = rest

    @property
    def error(self) -> dict[str, Any]:
        body = json.loads(self.body)
        assert set(body["error"]) == {"message", "type", "param", "code"}
        assert self.headers["x-request-id"].startswith("req_")
        error: dict[str, Any] = body["error"]
        return error


class Server:
    """Where the application listens."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def send(self, data: bytes, *, then: bytes = b"", half_close: bool = False) -> Reply:
        """Send, and read to the end; ``then`` follows the first bytes that come back."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        received, closed = b"", False
        try:
            async with asyncio.timeout(TIMEOUT_S):
                writer.write(data)
                if half_close:
                    writer.write_eof()
                await writer.drain()
                while part := await reader.read(2**16):
                    received += part
                    writer.write(then)
                    then = b""
                closed = True
        except ConnectionError:
            pass
        finally:
            writer.close()
        return Reply(received, closed)


@asynccontextmanager
async def serving(app: App) -> AsyncIterator[Server]:
    """The application under uvicorn, put together as Serve's proxy does."""
    for middleware in middlewares():
        app = middleware.cls(app, *middleware.args, **middleware.kwargs)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, lifespan="off", log_level="critical"))
    task = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    try:
        yield Server(server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = server.force_exit = True
        await task


@asynccontextmanager
async def gateway(root: Path, *, sink: EventList | None = None, **settings: Any) -> AsyncIterator[Server]:
    """A gateway whose champion is ``Echo``."""
    publish_state(root, champion=1)
    engines: dict[int, Engine] = {1: Echo()}
    follower = RolloutFollower(root)
    app = build_gateway(ServingSettings(**settings), LocalEngines(engines), follower, sink=sink, poll_interval_s=0.02, behind_edge=True)
    follower.poll()
    follower.activate(frozenset({1}), 0.0)
    async with serving(app) as server:
        yield server


def request(
    body: bytes | dict[str, Any] = b"", *headers: bytes, path: bytes = b"/v1/completions", method: bytes = b"POST", close: bool = True
) -> bytes:
    """A whole request."""
    content = json.dumps(body).encode() if isinstance(body, dict) else body
    lines = [method + b" " + path + b" HTTP/1.1", b"Host: x", b"Content-Length: %d" % len(content), *headers]
    return b"\r\n".join([*lines, *([b"Connection: close"] if close else []), b"", b""]) + content


CHUNKED = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
TOO_LARGE = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n" % (MAX_BODY_BYTES + 1)


@pytest.mark.parametrize(
    ("sent", "then"),
    [
        pytest.param(TOO_LARGE + b"Expect: 100-continue\r\n\r\n", HEALTH, id="asks before it sends"),
        pytest.param(TOO_LARGE + b"\r\n" + b" " * (MAX_BODY_BYTES + 1), HEALTH, id="sends all of it"),
        pytest.param(CHUNKED + (b"10000\r\n" + b" " * 2**16 + b"\r\n") * 80 + b"0\r\n\r\n", HEALTH, id="does not say how much"),
    ],
)
async def test_a_body_that_is_too_large_gets_its_413_and_the_connection_ends(tmp_path: Path, sent: bytes, then: bytes) -> None:
    async with gateway(tmp_path) as server:
        reply = await server.send(sent, then=then)
        assert (reply.status, reply.error["code"], reply.headers["connection"]) == (413, "request_too_large", "close")
        assert reply.bytes.count(b"HTTP/1.1 ") == 1 and reply.closed


async def test_a_client_that_never_sends_its_body_is_told_that_the_connection_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge, "LINGER_S", 0.05)
    async with gateway(tmp_path, api_keys=(SecretStr("key"),)) as server:
        for path, status in ((b"/v1/completions", 401), (b"/v1/nowhere", 401)):
            reply = await server.send(b"POST " + path + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n")
            assert (reply.status, reply.headers["connection"], reply.closed) == (status, "close", True)


async def test_what_follows_a_refusal_is_read_for_a_bounded_time_and_size_only(tmp_path: Path) -> None:
    sent = 0
    async with gateway(tmp_path) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(CHUNKED)
        with pytest.raises(ConnectionError):
            async with asyncio.timeout(TIMEOUT_S):
                while True:
                    writer.write(b"10000\r\n" + b" " * 2**16 + b"\r\n")
                    await writer.drain()
                    sent += 2**16
    assert MAX_BODY_BYTES < sent < MAX_BODY_BYTES + LINGER_BYTES + 2**24  # what the kernel's buffers hold comes on top


@pytest.mark.parametrize(
    "sent",
    [
        request(ASK | {"k" * 2**20: 1}),
        request(ASK | {"model": "水" * 2**18}),
        request(ASK | {"model": "\x01" * 2**17}),
        request(path=b"/v1/models/" + b"m" * 60_000, method=b"GET"),
        request(path=b"/" + b"%01" * 20_000, method=b"GET"),
        request({"model": "headrace", "messages": [{"role": "r" * 2**20, "content": ""}]}, path=b"/v1/chat/completions"),
    ],
)
async def test_an_error_has_a_few_kilobytes_whatever_it_names(tmp_path: Path, sent: bytes) -> None:
    async with gateway(tmp_path) as server:
        reply = await server.send(sent)
        assert reply.status in (400, 404) and reply.error["message"]
        assert len(reply.bytes) < 6 * 2**10


async def test_headers_without_end_are_refused(tmp_path: Path) -> None:
    async with gateway(tmp_path) as server:
        reply = await server.send(request(ASK, b"X-A: " + b"a" * MAX_HEAD_BYTES))
        assert (reply.status, reply.error["code"]) == (431, "headers_too_large")


@pytest.mark.parametrize(
    "name",
    [
        b"X-Request-Id",
        b"X-Client-Request-Id",
        b"serve_multiplexed_model_id",
        b"Serve-Multiplexed-Model-Id",
        b"X-Session-Id",
        b"X-Request-Timeout-Seconds",
        b"X-Request-Disconnect-Disabled",
        b"X-Headrace-Session",
        b"Traceparent",
        b"Content-Type",
        b"Authorization",
    ],
)
async def test_a_header_may_hold_any_bytes(tmp_path: Path, name: bytes) -> None:
    async with gateway(tmp_path) as server:
        for value in (b"\xff\xfe", "é水".encode(), b"0.0000001", b"?1"):
            reply = await server.send(request(ASK, name + b": " + value))
            assert (reply.status, json.loads(reply.body)["choices"][0]["text"]) == (200, "y")


async def test_headers_that_steer_serve_end_at_the_edge() -> None:
    seen: list[tuple[bytes, bytes]] = []

    async def app(scope: Scope, _: Receive, send: Send) -> None:
        seen.extend(scope["headers"])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    steering = (b"serve-multiplexed-model-id: m", b"X-SESSION-ID: s", b"x-request-timeout-seconds: 1", b"x-request-disconnect-disabled: ?1")
    async with serving(app) as server:
        await server.send(request(b"", *steering, b"x-other: o"))
    assert {name for name, _ in seen} == {b"host", b"content-length", b"connection", b"x-other", b"x-request-id"}


async def test_the_id_of_a_request_is_ours_and_the_clients_is_echoed_beside_it(tmp_path: Path) -> None:
    sink = EventList()
    async with gateway(tmp_path, sink=sink) as server:
        replies = [await server.send(request(ASK, b"X-Request-Id: same-for-all")) for _ in range(2)]
        ids = [reply.headers["x-request-id"] for reply in replies]
        assert [reply.headers["x-client-request-id"] for reply in replies] == ["same-for-all"] * 2
        assert len(set(ids)) == 2 and [data.request_id for data in sink.data] == ids
        assert [json.loads(reply.body)["id"] for reply in replies] == [f"cmpl-{one.removeprefix('req_')}" for one in ids]
        both = await server.send(request(ASK, b"X-Request-Id: one", b"X-Client-Request-Id: other"))
        assert both.headers["x-client-request-id"] == "other"
        hostile = await server.send(request(ASK, b"X-Request-Id: " + b"a" * 129))
        assert "x-client-request-id" not in hostile.headers


@pytest.mark.parametrize(
    "sent",
    [
        b"GARBAGE\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nX-\xff: a\r\n\r\n",
        request(ASK, b"Content-Length: 3"),
        request(ASK, b"Transfer-Encoding: chunked"),
        CHUNKED + b"ZZ\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
async def test_bytes_that_are_not_http_get_an_openai_error(tmp_path: Path, sent: bytes) -> None:
    async with gateway(tmp_path) as server:
        reply = await server.send(sent)
        assert (reply.status, reply.error["code"], reply.closed) == (400, "invalid_http", True)


def answering(status: int, body: bytes, content_type: bytes = b"text/plain") -> App:
    async def app(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", content_type)]})
        await send({"type": "http.response.body", "body": body})

    return app


async def silent(_: Scope, __: Receive, ___: Send) -> None: ...


async def raising(_: Scope, __: Receive, ___: Send) -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("app", "status", "code"),
    [
        (answering(404, b"Path '/x' not found. Ping http://.../-/routes for available routes."), 503, "gateway_unavailable"),
        (answering(503, b"This node is being drained."), 503, "gateway_unavailable"),
        (answering(408, b"Request timed out."), 504, "timeout"),
        (answering(429, b"Request dropped due to backpressure"), 429, "queue_full"),
        (answering(500, b"Internal Server Error"), 500, "internal_error"),
        (silent, 503, "gateway_unavailable"),
        (raising, 500, "internal_error"),
    ],
)
async def test_what_serves_proxy_says_in_plain_text_becomes_an_openai_error(app: App, status: int, code: str) -> None:
    async with serving(app) as server:
        reply = await server.send(request(ASK))
        assert (reply.status, reply.error["code"]) == (status, code)
        assert ("retry-after" in reply.headers) == (status in (429, 503))


async def test_health_does_not_wait_for_a_gateway_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def stuck(_: Scope, __: Receive, ___: Send) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(edge, "HEALTH_TIMEOUT_S", 0.05)
    async with serving(stuck) as server:
        reply = await server.send(HEALTH)
        assert (reply.status, reply.error["code"], reply.headers["retry-after"]) == (503, "gateway_unavailable", "1")


async def test_serves_own_pages_answer_get_and_head_only() -> None:
    async with serving(answering(200, b"success")) as server:
        for path in (b"/-/healthz", b"/-/routes"):
            for method in (b"POST", b"PUT", b"DELETE", b"PATCH", b"OPTIONS"):
                reply = await server.send(request(b"", path=path, method=method))
                assert (reply.status, reply.error["code"], reply.headers["allow"]) == (405, "method_not_allowed", "GET, HEAD")
            assert (await server.send(request(b"", path=path, method=b"GET"))).status == 200
            assert (await server.send(request(b"", path=path, method=b"HEAD"))).status == 200


def breaking(content_type: bytes, end: Callable[[], None]) -> App:
    async def app(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", content_type)]})
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        end()

    return app


def fail() -> None:
    raise OSError("a replica is gone")


@pytest.mark.parametrize("end", [lambda: None, fail])
async def test_an_event_stream_whose_gateway_dies_ends_with_an_error_event(end: Callable[[], None]) -> None:
    async with serving(breaking(b"text/event-stream; charset=utf-8", end)) as server:
        reply = await server.send(request(ASK))
        assert b"data: 1\n\n" in reply.body and b'data: {"error":' in reply.body and b"gateway_unavailable" in reply.body
        assert reply.body.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("end", [lambda: None, fail])
async def test_any_other_answer_whose_gateway_dies_is_cut_off_and_not_ended(end: Callable[[], None]) -> None:
    async with serving(breaking(b"application/json", end)) as server:
        reply = await server.send(request(ASK))
        assert reply.status == 200 and not reply.body.endswith(b"0\r\n\r\n")


async def test_a_client_that_closes_its_half_of_the_connection_has_gone(tmp_path: Path) -> None:
    sink = EventList()
    async with gateway(tmp_path, sink=sink) as server:
        reply = await server.send(request(ASK | {"prompt": "wait"}, close=False), half_close=True)
        assert reply.bytes == b""
        await until(lambda: len(sink.data) == 1)
        assert sink.data[0].finish_reason == "cancelled"


@pytest.mark.parametrize(
    "headers",
    [
        (b"Upgrade: websocket", b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", b"Connection: Upgrade"),
        (b"Upgrade: websocket", b"Sec-WebSocket-Version: 99", b"Connection: Upgrade"),
        (b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk", b"Connection: Upgrade, HTTP2-Settings"),
    ],
)
async def test_an_upgrade_is_ignored_and_the_connection_ends(tmp_path: Path, headers: tuple[bytes, ...]) -> None:
    async with gateway(tmp_path) as server:
        reply = await server.send(request(b"", *headers, method=b"GET", close=False), then=HEALTH)
        assert (reply.status, reply.error["code"], reply.headers["connection"], reply.closed) == (405, "method_not_allowed", "close", True)


async def test_requests_on_one_connection_are_answered_one_after_the_other(tmp_path: Path) -> None:
    async with gateway(tmp_path) as server:
        reply = await server.send(request(ASK, close=False) + request(ASK, close=False) + HEALTH)
        assert reply.bytes.count(b"HTTP/1.1 200") == 3 and reply.closed
