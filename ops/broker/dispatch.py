"""From a request frame to the buffers of its answer.

Every frame whose header can be read gets an answer: UNSUPPORTED_VERSION for what is not supported, UNKNOWN_SERVER_ERROR when a handler
fails. Only bytes that are no request at all (``MalformedFrame``) end a connection, as in Apache Kafka.
"""

import logging
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from inspect import isawaitable
from typing import Any

from ops.broker.codes import ErrorCode, ProtocolError
from ops.broker.refusal import refuse
from ops.broker.varints import read_varint
from ops.broker.versions import REQUEST_CLASSES, SUPPORTED, ApiKey, is_decodable, response_class

logger = logging.getLogger(__name__)

_HEADER = struct.Struct(">hhih")
Buffer = bytes | bytearray | memoryview
MAX_HEADER_TAGS = 64
"""Apache Kafka's clients send none."""
BULKY = frozenset({ApiKey.PRODUCE, ApiKey.JOIN_GROUP, ApiKey.SYNC_GROUP})
"""Requests that carry the clients' own bytes, which cost nothing to decode."""
MAX_PLAIN_BYTES = 2**20
"""The others are lists of small items, and a megabyte of them takes a second to decode, in which nobody else is served."""


class MalformedFrame(Exception):
    """The bytes are not a request; the connection cannot go on."""


class CloseConnection(Exception):
    """The protocol's way to say no where there is no answer: a failed Produce with acks=0."""


@dataclass(frozen=True)
class Peer:
    """Who asks, and under which address this broker is known to them."""

    host: str
    local_host: str
    local_port: int


@dataclass(frozen=True)
class RequestContext:
    """What a handler may know beside the request's body."""

    api_key: int
    version: int
    correlation_id: int
    client_id: str
    peer: Peer


Body = Any
"""A kafka-python response object, a list of buffers already encoded, or None where no answer is due."""
Handler = Callable[[RequestContext, Any], Body | Awaitable[Body]]
Frame = list[Buffer] | None


class Dispatcher:
    """Decodes requests, calls the handlers, encodes answers."""

    def __init__(self, handlers: Mapping[int, Handler]) -> None:
        self._handlers = {int(key): handler for key, handler in handlers.items()} | {int(ApiKey.API_VERSIONS): self._api_versions}

    def dispatch(self, frame: Buffer, peer: Peer) -> Frame | Awaitable[Frame]:
        """Buffers of the answer, or an awaitable of them if the request has to wait. Raises MalformedFrame and CloseConnection."""
        context, body = _read_header(frame, peer)
        if not _is_supported(context):
            return self._refuse_unsupported(context, body)
        request = _decode(context, body)
        try:
            answer = self._handlers[context.api_key](context, request)
        except Exception as error:  # noqa: BLE001 - a broker answers, whatever went wrong
            return _failure(context, request, error)
        return self._finish_later(context, request, answer) if isawaitable(answer) else encode(context, answer)

    async def _finish_later(self, context: RequestContext, request: Any, answer: Awaitable[Body]) -> Frame:
        try:
            return encode(context, await answer)
        except Exception as error:  # noqa: BLE001 - a broker answers, whatever went wrong
            return _failure(context, request, error)

    def _refuse_unsupported(self, context: RequestContext, body: memoryview) -> Frame:
        message = f"request {context.api_key} version {context.version} is not supported by the embedded broker"
        if context.api_key == ApiKey.API_VERSIONS:
            # KIP-511: whatever version was asked for, the answer is one that every client can read, v0.
            return encode(_with_version(context, 0), _versions_answer(0, ErrorCode.UNSUPPORTED_VERSION))
        if is_decodable(context.api_key, context.version):
            return encode(context, refuse(context.api_key, _decode(context, body), ErrorCode.UNSUPPORTED_VERSION, message))
        return _framed(context, [struct.pack(">h", ErrorCode.UNSUPPORTED_VERSION)], flexible=False)

    def _api_versions(self, context: RequestContext, _request: Any) -> Body:
        return _versions_answer(context.version, ErrorCode.NONE)


def _is_supported(context: RequestContext) -> bool:
    versions = SUPPORTED.get(context.api_key)
    return versions is not None and versions.oldest <= context.version <= versions.newest


def _with_version(context: RequestContext, version: int) -> RequestContext:
    return RequestContext(context.api_key, version, context.correlation_id, context.client_id, context.peer)


def _read_header(frame: Buffer, peer: Peer) -> tuple[RequestContext, memoryview]:
    """Header v1 or v2 (with tagged fields), and the body that follows it."""
    data = memoryview(frame)
    try:
        api_key, version, correlation_id, client_bytes = _HEADER.unpack_from(data)
        at = _HEADER.size + max(client_bytes, 0)
        client_id = bytes(data[_HEADER.size : at]).decode("utf-8")
        request = REQUEST_CLASSES.get(api_key)
        if request is not None and request.flexible_version_q(version):
            at = _skip_tagged_fields(data, at)
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise MalformedFrame(f"{len(data)} bytes from {peer.host} are not a Kafka request: {error}") from error
    if api_key < 0 or version < 0:
        raise MalformedFrame(f"request {api_key} version {version} from {peer.host} cannot exist")
    return RequestContext(api_key, version, correlation_id, client_id, peer), data[at:]


def _skip_tagged_fields(data: memoryview, at: int) -> int:
    count, at = read_varint(data, at)
    if count > MAX_HEADER_TAGS:
        raise IndexError(f"a header with {count} tagged fields; the limit is {MAX_HEADER_TAGS}")
    for _ in range(count):
        _tag, at = read_varint(data, at)
        size_bytes, at = read_varint(data, at)
        at += size_bytes
        if at > len(data):
            raise IndexError("a tagged field ends beyond the frame")
    return at


def _decode(context: RequestContext, body: memoryview) -> Any:
    if context.api_key not in BULKY and len(body) > MAX_PLAIN_BYTES:
        raise MalformedFrame(f"request {context.api_key} from {context.peer.host} has {len(body)} bytes; the limit is {MAX_PLAIN_BYTES}")
    try:
        return REQUEST_CLASSES[context.api_key].decode(body, version=context.version)
    except Exception as error:  # the decoder raises whatever the bytes lead it to
        raise MalformedFrame(f"request {context.api_key} version {context.version} from {context.peer.host} does not decode: {error}") from error


def _failure(context: RequestContext, request: Any, error: Exception) -> Frame:
    if isinstance(error, CloseConnection):
        raise error
    if isinstance(error, ProtocolError):
        return encode(context, refuse(context.api_key, request, error.code, str(error)))
    logger.error("request %d version %d failed", context.api_key, context.version, exc_info=error)
    return encode(context, refuse(context.api_key, request, ErrorCode.UNKNOWN_SERVER_ERROR, str(error)))


def _versions_answer(version: int, code: ErrorCode) -> Body:
    response = response_class(ApiKey.API_VERSIONS)
    keys = [response.ApiVersion(api_key=int(key), min_version=low, max_version=high) for key, (low, high) in sorted(SUPPORTED.items())]
    return response(version=version, error_code=int(code), api_keys=keys, throttle_time_ms=0)


def encode(context: RequestContext, answer: Body) -> Frame:
    """The answer's frame: length, header and body, as a list of buffers."""
    if answer is None:
        return None
    body = answer if isinstance(answer, list) else [answer.encode(version=context.version)]
    request = REQUEST_CLASSES[context.api_key]
    flexible = context.api_key != ApiKey.API_VERSIONS and request.flexible_version_q(context.version)
    return _framed(context, body, flexible=flexible)


def _framed(context: RequestContext, body: list[Buffer], *, flexible: bool) -> list[Buffer]:
    header = context.correlation_id.to_bytes(4, "big", signed=True) + (b"\x00" if flexible else b"")
    size_bytes = len(header) + sum(map(len, body))
    return [size_bytes.to_bytes(4, "big") + header, *body]
