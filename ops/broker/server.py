"""Connections: bytes in, frames to the dispatcher, answers out in the order of the requests.

One request per connection is worked on at a time, as in Apache Kafka, so answers cannot overtake one another. Bounded: the number of
connections, the size of a frame, and what one connection may have waiting (a connection with an unfinished request or a full send
buffer is not read from).
"""

import asyncio
import logging
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from typing import cast

from ops.broker.dispatch import Buffer, CloseConnection, Frame, MalformedFrame, Peer
from schemas.settings import BrokerSettings

logger = logging.getLogger(__name__)

_LENGTH = struct.Struct(">i")
READ_BUFFER_BYTES = 64 * 1024
MIN_FRAME_BYTES = 10
WRITE_BUFFER_BYTES = 1024 * 1024

Dispatch = Callable[[Buffer, Peer], Frame | Awaitable[Frame]]


class Connections:
    """The open connections and their limit; makes the protocol object of each new one."""

    def __init__(self, settings: BrokerSettings, dispatch: Dispatch) -> None:
        self.settings = settings
        self.dispatch = dispatch
        self.open: set[Connection] = set()

    def accept(self) -> "Connection":
        """Protocol factory for ``loop.create_server``."""
        return Connection(self)

    def close_all(self) -> None:
        """Drop every connection."""
        for connection in tuple(self.open):
            connection.close()


class Connection(asyncio.BufferedProtocol):
    """One client's connection."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._buffer = bytearray(READ_BUFFER_BYTES)
        self._filled = 0
        self._frames: deque[Buffer] = deque()
        self._waiting: asyncio.Task[None] | None = None
        self._may_write = True
        self._reading = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, or close it at once if there are too many."""
        self._transport = cast(asyncio.Transport, transport)
        host, port = transport.get_extra_info("sockname")[:2]
        self._peer = Peer(str(transport.get_extra_info("peername")[0]), str(host), int(port))
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        if len(self._connections.open) >= self._connections.settings.max_connections:
            logger.warning("refused %s: %d connections are open, the limit", self._peer.host, len(self._connections.open))
            self._transport.abort()
        else:
            self._connections.open.add(self)

    def connection_lost(self, _exc: Exception | None) -> None:
        """Stop what was being done for this client."""
        self._connections.open.discard(self)
        self._frames.clear()
        if self._waiting is not None:
            self._waiting.cancel()

    def close(self) -> None:
        """Drop the connection."""
        self._transport.abort()

    def pause_writing(self) -> None:
        """The client does not take its answers fast enough: stop working for it."""
        self._may_write = False

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._may_write = True
        self._work()

    def get_buffer(self, _sizehint: int) -> memoryview:
        """Where the next bytes go."""
        return memoryview(self._buffer)[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes have come: cut them into frames and work on those."""
        self._filled += nbytes
        try:
            self._cut_frames()
        except MalformedFrame as error:
            self._give_up(error)
            return
        self._work()

    def _cut_frames(self) -> None:
        at = 0
        while (end := self._frame_end(at)) is not None and end <= self._filled:
            self._frames.append(bytes(memoryview(self._buffer)[at + _LENGTH.size : end]))
            at = end
        self._make_room(at, wanted_bytes=0 if end is None else end - at)

    def _make_room(self, done: int, wanted_bytes: int) -> None:
        """Move the unfinished frame to the front. The buffer grows with what has come, not with what a length announces."""
        rest = self._filled - done
        capacity = max(READ_BUFFER_BYTES, min(wanted_bytes, 4 * rest))
        if capacity != len(self._buffer) and (done or rest == len(self._buffer)):
            grown = bytearray(capacity)
            grown[:rest] = memoryview(self._buffer)[done : self._filled]
            self._buffer = grown
        elif done:
            self._buffer[:rest] = self._buffer[done : self._filled]
        self._filled = rest

    def _frame_end(self, at: int) -> int | None:
        """Position after the frame that starts at ``at``; None while its length is not there yet."""
        if self._filled - at < _LENGTH.size:
            return None
        size_bytes = _LENGTH.unpack_from(self._buffer, at)[0]
        limit = self._connections.settings.max_request_bytes
        if not MIN_FRAME_BYTES <= size_bytes <= limit:
            raise MalformedFrame(f"a frame of {size_bytes} bytes from {self._peer.host}; allowed are {MIN_FRAME_BYTES} to {limit}")
        return at + _LENGTH.size + int(size_bytes)

    def _work(self) -> None:
        while self._frames and self._may_write and self._waiting is None and not self._transport.is_closing():
            self._answer(self._frames.popleft())
        self._set_reading(not self._frames)

    def _set_reading(self, wanted: bool) -> None:
        if wanted == self._reading or self._transport.is_closing():
            return
        self._reading = wanted
        if wanted:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _answer(self, frame: Buffer) -> None:
        try:
            answer = self._connections.dispatch(frame, self._peer)
        except (MalformedFrame, CloseConnection) as error:
            self._give_up(error)
            return
        if answer is None or isinstance(answer, list):
            self._send(answer)
        else:
            self._waiting = asyncio.get_running_loop().create_task(self._answer_later(answer))

    async def _answer_later(self, answer: Awaitable[Frame]) -> None:
        try:
            self._send(await answer)
        except CloseConnection as error:
            self._give_up(error)
        self._waiting = None
        self._work()

    def _send(self, answer: Frame) -> None:
        if answer and not self._transport.is_closing():
            self._transport.writelines(answer)

    def _give_up(self, error: Exception) -> None:
        logger.warning("closing the connection: %s", error)
        self._frames.clear()
        self._transport.abort()
