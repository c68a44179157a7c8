"""An OpenTelemetry collector for tests: OTLP over HTTP on loopback, decoded with OpenTelemetry's own protobuf classes."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from pipelines.runtime.tracing import start_tracing, stop_tracing
from schemas.settings import TelemetrySettings

DEADLINE_S = 10.0


@dataclass(frozen=True)
class Received:
    """A span as it arrived."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, Any]
    error: str | None
    """Sentence of an error status, which may be empty; None: no error."""

    @property
    def ids(self) -> str:
        """Trace and span as they stand in a W3C trace context, between its version and its flags."""
        return f"{self.trace_id}-{self.span_id}"


@dataclass
class Collector:
    """What came in so far."""

    endpoint: str
    spans: list[Received] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def named(self, name: str, number: int = 1) -> list[Received]:
        """All spans of this name, as soon as there are ``number`` of them."""
        deadline = time.monotonic() + DEADLINE_S
        while len(found := [span for span in self.spans if span.name == name]) < number:
            assert time.monotonic() < deadline, f"waited {DEADLINE_S:g} s for {number} spans {name!r}; there are {[span.name for span in self.spans]}"
            time.sleep(0.01)
        return found

    def take(self, body: bytes) -> None:
        """Decode one request."""
        self.bodies.append(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = {item.key: _plain(item.value) for item in resource.resource.attributes}["service.name"]
            for scope in resource.scope_spans:
                self.spans += [_received(service, span) for span in scope.spans]


def _received(service: str, span: Any) -> Received:
    ids = (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex())
    attributes = {item.key: _plain(item.value) for item in span.attributes}
    return Received(service, span.name, *ids, attributes, span.status.message if span.status.code == 2 else None)


def _plain(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    assert kind is not None
    return [_plain(item) for item in value.array_value.values] if kind == "array_value" else getattr(value, kind)


@contextmanager
def running_collector() -> Iterator[Collector]:
    """A collector on a free loopback port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            assert self.path == "/v1/traces"
            collector.headers.append({name.lower(): value for name, value in self.headers.items()})
            collector.take(body)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(ExportTraceServiceResponse().SerializeToString())

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector = Collector(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def tracing_to(endpoint: str, service: str = "headrace-test") -> Iterator[None]:
    """Spans of this process go there inside the block, and are flushed at its end."""
    start_tracing(TelemetrySettings(otlp_endpoint=endpoint), service)
    try:
        yield
    finally:
        stop_tracing()


@contextmanager
def nobody_listens() -> Iterator[str]:
    """Endpoint of a port that is taken and refuses connections."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{unused.getsockname()[1]}"


@contextmanager
def nobody_answers() -> Iterator[str]:
    """Endpoint of a port that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        yield f"http://127.0.0.1:{mute.getsockname()[1]}"
