"""What surrounds every HTTP exchange inside the gateway: authentication, trace, error bodies, disconnects. ``edge`` is around it.

Invariant: every answer that is not a success has the OpenAI error body, also for unknown paths, wrong methods and failures of our own.
Keys are compared in constant time. ``/health`` needs no key, for load balancers.
A request that asks for an answer goes on with the trace of its ``traceparent`` header; what is refused for want of a key leaves no trace.
"""

import hashlib
import hmac
import logging
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import SecretStr
from starlette.exceptions import HTTPException

from pipelines.runtime.tracing import fail, span
from ray_apps.serving.metrics import Metrics
from schemas.errors import ApiError
from schemas.openai import error_body

_log = logging.getLogger(__name__)
OPEN_PATHS = frozenset({"/health"})
TRACED_PATHS = frozenset({"/v1/completions", "/v1/chat/completions"})
"""Probes and scrapes have no spans."""

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def _header(scope: Scope, wanted: bytes) -> str:
    """The first value of a header, in lower case; empty without one."""
    first: bytes = next((value for name, value in scope["headers"] if name == wanted), b"")
    return first.decode("latin-1")


class Surroundings:
    """ASGI middleware: asks for the key, counts statuses."""

    def __init__(self, app: App, *, api_keys: Sequence[SecretStr], metrics: Metrics) -> None:
        self._app = app
        self._digests = [_digest(key.get_secret_value()) for key in api_keys]
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})["request_id"] = _header(scope, b"x-request-id")

        async def send_and_count(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.count_response(message["status"])
            await send(message)

        if scope["path"] in OPEN_PATHS or self._is_let_in(scope):
            answer = self._traced if scope["path"] in TRACED_PATHS else self._app
            await answer(scope, receive, send_and_count)
            return
        message = "Incorrect API key provided, or none; send one of serving.api_keys as 'Authorization: Bearer KEY'."
        refusal = ApiError(401, message, type="invalid_request_error", code="invalid_api_key")
        await error_response(refusal)(scope, receive, send_and_count)

    async def _traced(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer in a span that lasts until the last byte; its parent is the client's, if it sends one."""
        attributes = {"http.request.method": scope["method"], "http.route": scope["path"]}
        with span(f"{scope['method']} {scope['path']}", attributes, parent=_header(scope, b"traceparent"), kind="server") as opened:

            async def send_and_note(message: Message) -> None:
                if message["type"] == "http.response.start":
                    opened.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= 500:
                        fail(opened, str(message["status"]))
                await send(message)

            await self._app(scope, receive, send_and_note)

    def _is_let_in(self, scope: Scope) -> bool:
        """Every key is compared, each in constant time, so that the time reveals nothing."""
        if not self._digests:
            return True
        scheme, _, token = _header(scope, b"authorization").partition(" ")
        digest = _digest(token.strip())
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return scheme.lower() == "bearer" and any(matches)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def error_response(error: ApiError) -> JSONResponse:
    """The error as HTTP."""
    headers = {} if error.retry_after_s is None else {"retry-after": f"{max(1, round(error.retry_after_s))}"}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(error_body(error).model_dump(), status_code=error.status, headers=headers)


def install_error_bodies(app: FastAPI) -> None:
    """Answer everything that goes wrong with an OpenAI error body."""

    @app.exception_handler(ApiError)
    async def api_error(_: Request, error: ApiError) -> JSONResponse:
        return error_response(error)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code)
        message = f"{error.detail}: {request.method} {request.url.path}"
        response = error_response(ApiError(error.status_code, message, type="invalid_request_error", code=code))
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def failure(request: Request, error: Exception) -> JSONResponse:
        request_id = request.scope["state"]["request_id"]
        _log.error("request %s failed", request_id, exc_info=error)
        message = f"The server had an error while processing the request; its log names {request_id}."
        return error_response(ApiError(500, message, type="server_error", code="internal_error"))


async def read_body(request: Request) -> bytes:
    """The request's body, whose size the edge limits. Raises ApiError 400 if the client goes away in the middle."""
    body = bytearray()
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ApiError(400, "the request's body ended early", type="invalid_request_error", code="incomplete_body")
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return bytes(body)


async def disconnected(request: Request) -> None:
    """Return when the client has gone, or has closed its half of the connection. Call after the body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
