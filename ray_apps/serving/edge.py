"""The outermost layer of the HTTP service: it runs in Ray Serve's proxies, before Serve's own code sees a request.

Serve loads ``middlewares`` into every proxy because ``environment.SERVE_ENVIRONMENT`` names it; where there is no Serve, ``build_gateway``
puts the same layer around itself. Invariants:

- Every answer has ``x-request-id``, which is always ours. An id that the client chose comes back as ``x-client-request-id``.
- Every error has the OpenAI error body: also those of Serve's proxy, of a gateway that is not up or dies, and of broken framing.
- An event stream that breaks below this layer ends with an error event. Any other answer that breaks is cut off, never ended.
- Headers that steer Serve (time limit, disconnects, replica choice) do not reach it.
- A body of more than MAX_BODY_BYTES is refused. An answer that comes before the whole body says ``Connection: close``, so that a client
  never sends its next request into the rest of a body. We go on reading for LINGER_S then: a socket that is closed with unread bytes
  resets the connection, and the client would lose the answer.
- A client that closes its half of the connection has gone: TCP does not tell it from one that closed both. Its generation is cancelled.

Costs some 20 µs a request.
"""

import asyncio
import logging
import re
import secrets
from typing import Any

from starlette.middleware import Middleware

from ray_apps.serving.asgi import App as AsgiApp
from ray_apps.serving.asgi import Message, Receive, Scope, Send, error_response
from schemas.errors import ApiError
from schemas.openai import error_event

_log = logging.getLogger(__name__)
MAX_BODY_BYTES = 4 * 2**20
"""Larger request bodies are refused with 413 before they are read to the end."""
MAX_HEAD_BYTES = 64 * 2**10
"""Path, query and headers together; more is refused with 431."""
LINGER_S = 3.0
LINGER_BYTES = 16 * 2**20
"""How long, and how much, we read on after an answer that came before the whole body."""
HEALTH_PATH = "/health"
HEALTH_TIMEOUT_S = 3.0
"""A gateway that is being started, or whose process is stopped, says nothing: Serve lets requests wait for it."""
REQUEST_ID = b"x-request-id"
CLIENT_REQUEST_ID = b"x-client-request-id"
_CLIENT_ID = re.compile(rb"[\x21-\x7e]{1,128}")
"""Ids of clients that are echoed; others are left out."""
_STEERING = frozenset({b"serve_multiplexed_model_id", b"x_session_id", b"x_request_timeout_seconds", b"x_request_disconnect_disabled"})
"""Headers that Serve takes orders from, with ``_`` for ``-``, as it compares them."""
SERVE_PREFIX = "/-/"
"""Serve's own pages: ``/-/healthz`` for Kubernetes, ``/-/routes``."""


def middlewares() -> list[Middleware]:
    """What Serve's proxy asks for when it starts. What never becomes a request there is settled here too.

    Broken framing gets an error of ours. Upgrades are ignored, as HTTP allows: the handshake of WebSocket has errors of its own.
    """
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    protocol: Any = AutoHTTPProtocol
    protocol.send_400_response = _refuse_framing
    protocol._should_upgrade = lambda _: False
    return [Middleware(Edge)]


def new_request_id() -> str:
    """An id that no client can choose."""
    return f"req_{secrets.token_hex(16)}"


class Edge:
    """ASGI middleware; see the module."""

    def __init__(self, app: AsgiApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point."""
        if scope["type"] == "http":
            await _Exchange(scope, receive, send).run(self._app)
        else:
            await self._app(scope, receive, send)


class _Exchange:
    """One request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._request_id = new_request_id()
        headers = list(scope["headers"])
        self._client_id = _client_id(headers)
        self._declared = _declared_length(headers)
        self._closes = any(name == b"upgrade" for name, _ in headers)
        """The parser stops where the other protocol would begin, so this is the connection's last request."""
        self._awaits_continue = any(name == b"expect" and value.lower() == b"100-continue" for name, value in headers)
        self._head_bytes = len(scope.get("raw_path") or b"") + len(scope["query_string"]) + sum(len(name) + len(value) for name, value in headers)
        self.scope = {**scope, "headers": _passed_on(headers, self._request_id, self._client_id)}
        self._received = 0
        self._is_read = self._declared == 0
        self._was_asked = False
        """Whether the body was asked for: then a client that waits for that sends it."""
        self._gone = False
        self._refusal: ApiError | None = None
        """What we answer in the place of what comes from below."""
        self._started = False
        self._ended = False
        self._is_event_stream = False

    async def run(self, app: AsgiApp) -> None:
        """Answer. Whatever is below us, the client gets a whole answer with an id, or sees that it was cut off."""
        self._refusal = self._early_refusal()
        if self._refusal is None:
            await self._ask(app)
        if not self._started and not self._gone:
            await self._answer(self._refusal or _not_up())
        elif self._started and not self._ended and self._is_event_stream:
            await self._forward({"type": "http.response.body", "body": error_event(_broken())})
        if self._started and self._ended and not self._is_read:
            await self._linger()
            await self._send({"type": "http.response.body", "body": b""})

    async def _ask(self, app: AsgiApp) -> None:
        limit = asyncio.timeout(HEALTH_TIMEOUT_S if self.scope["path"] == HEALTH_PATH else None)
        try:
            async with limit:
                await app(self.scope, self.receive, self.send)
        except Exception:  # noqa: BLE001  whatever Serve's code raises, the client gets an answer
            if not limit.expired():
                _log.exception("request %s failed", self._request_id)
                self._refusal = self._refusal or _internal(self._request_id)

    async def receive(self) -> Message:
        """The request's body, up to the limit."""
        if self._refusal is not None:
            return {"type": "http.disconnect"}
        self._was_asked = True
        message = await self._receive()
        self._note(message)
        if self._received > MAX_BODY_BYTES and not self._started:
            self._refusal = _too_large()
            return {"type": "http.disconnect"}
        return message

    async def send(self, message: Message) -> None:
        """What comes from below: passed on, unless it is an error without the error body."""
        if self._refusal is not None:
            return
        if message["type"] == "http.response.start" and message["status"] >= 400 and not _is_json(message):
            self._refusal = _translated(message["status"], self._request_id)
            return
        await self._forward(message)

    def _early_refusal(self) -> ApiError | None:
        """What can be said before anything is read."""
        if self._head_bytes > MAX_HEAD_BYTES:
            message = f"The request's path and headers have {self._head_bytes} bytes; this server takes {MAX_HEAD_BYTES}."
            return ApiError(431, message, type="invalid_request_error", code="headers_too_large")
        if self._declared is not None and self._declared > MAX_BODY_BYTES:
            return _too_large()
        if self.scope["path"].startswith(SERVE_PREFIX) and self.scope["method"] not in ("GET", "HEAD"):
            message = f"Method Not Allowed: {self.scope['method']} {self.scope['path']}"
            return ApiError(405, message, type="invalid_request_error", code="method_not_allowed")
        return None

    def _note(self, message: Message) -> None:
        if message["type"] == "http.disconnect":
            self._gone = True
            return
        self._received += len(message.get("body", b""))
        self._is_read = self._is_read or not message.get("more_body", False)

    async def _answer(self, error: ApiError) -> None:
        """An error of ours."""
        response = error_response(error)
        if error.status == 405:
            response.headers["allow"] = "GET, HEAD"
        await self._forward({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
        await self._forward({"type": "http.response.body", "body": response.body})

    async def _forward(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._started = True
            message = {**message, "headers": self._with_ids(message.get("headers", ()))}
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            self._ended = True
            message = message if self._is_read else {**message, "more_body": True}  # the end follows when we have lingered
        await self._send(message)

    def _with_ids(self, given: Any) -> list[tuple[bytes, bytes]]:
        headers = [(name, value) for name, value in given if name.lower() not in (REQUEST_ID, CLIENT_REQUEST_ID)]
        self._is_event_stream = any(name.lower() == b"content-type" and value.startswith(b"text/event-stream") for name, value in headers)
        headers.append((REQUEST_ID, self._request_id.encode()))
        if self._client_id is not None:
            headers.append((CLIENT_REQUEST_ID, self._client_id))
        if self._closes or not self._is_read:
            headers.append((b"connection", b"close"))
        return headers

    async def _linger(self) -> None:
        """Read and drop what the client still sends; one that waits for our word before it sends its body sends none."""
        if self._awaits_continue and not self._was_asked:
            return
        try:
            async with asyncio.timeout(LINGER_S):
                while not self._is_read and not self._gone and self._received < MAX_BODY_BYTES + LINGER_BYTES:
                    self._note(await self._receive())
        except TimeoutError:
            _log.debug("request %s: its client was still sending after %g s", self._request_id, LINGER_S)


def _client_id(headers: list[tuple[bytes, bytes]]) -> bytes | None:
    """The id that the client chose: OpenAI's name for it first, then the one that everybody uses."""
    for wanted in (CLIENT_REQUEST_ID, REQUEST_ID):
        for name, value in headers:
            if name == wanted and _CLIENT_ID.fullmatch(value):
                return value
    return None


def _declared_length(headers: list[tuple[bytes, bytes]]) -> int | None:
    """Bytes that the body has; None: the end will tell."""
    if any(name == b"transfer-encoding" for name, _ in headers):
        return None
    return next((int(value) for name, value in headers if name == b"content-length" and value.isdigit()), 0)


def _passed_on(headers: list[tuple[bytes, bytes]], request_id: str, client_id: bytes | None) -> list[tuple[bytes, bytes]]:
    """The headers that go on: without those that steer Serve, with our id in the place of the client's."""
    dropped = (REQUEST_ID, CLIENT_REQUEST_ID)
    kept = [(name, value) for name, value in headers if name not in dropped and name.replace(b"-", b"_") not in _STEERING]
    theirs = [] if client_id is None else [(CLIENT_REQUEST_ID, client_id)]
    return [*kept, (REQUEST_ID, request_id.encode()), *theirs]


def _is_json(start: Message) -> bool:
    return any(name.lower() == b"content-type" and value.startswith(b"application/json") for name, value in start.get("headers", ()))


def _translated(status: int, request_id: str) -> ApiError:
    """What Serve's proxy says in plain text, as an error of this API. It knows no path but while the gateway is up."""
    if status in (404, 503):
        return _not_up()
    if status == 408:
        return ApiError(504, "The answer took longer than Ray Serve's time limit.", type="server_error", code="timeout")
    if status == 429:
        return ApiError(429, "Too many requests are under way; try again later.", type="rate_limit_error", code="queue_full", retry_after_s=1)
    if status >= 500:
        return _internal(request_id)
    return ApiError(status, f"The request was refused with status {status}.", type="invalid_request_error")


def _not_up() -> ApiError:
    message = "The gateway does not answer: it is being started, replaced or stopped; try again."
    return ApiError(503, message, type="server_error", code="gateway_unavailable", retry_after_s=1)


def _broken() -> ApiError:
    message = "The gateway went away before the answer was finished; try again."
    return ApiError(503, message, type="server_error", code="gateway_unavailable")


def _internal(request_id: str) -> ApiError:
    message = f"The server had an error while processing the request; its log names {request_id}."
    return ApiError(500, message, type="server_error", code="internal_error")


def _too_large() -> ApiError:
    message = f"The request's body is larger than {MAX_BODY_BYTES} bytes."
    return ApiError(413, message, type="invalid_request_error", code="request_too_large")


def _refuse_framing(protocol: Any, _: str) -> None:
    """Uvicorn's answer to bytes that are no HTTP. Writes nothing into an answer that has begun."""
    cycle = protocol.cycle
    if cycle is None or cycle.response_complete or not cycle.response_started:
        message = "The bytes are not a valid HTTP/1.1 request; check the request line, the headers and the framing of the body."
        response = error_response(ApiError(400, message, type="invalid_request_error", code="invalid_http"))
        headers = [*response.raw_headers, (REQUEST_ID, new_request_id().encode()), (b"connection", b"close")]
        head = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        protocol.transport.write(b"HTTP/1.1 400 Bad Request\r\n" + head + b"\r\n" + bytes(response.body))
    protocol.transport.close()
