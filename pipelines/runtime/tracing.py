"""Traces: one per dataset version, from the offsets read to the model trained on it; one per request that is served. OpenTelemetry.

The only module that imports OpenTelemetry. A span always has an id, so that manifests and events carry a trace context; it is sent only
where ``telemetry.otlp_endpoint`` names a collector (OTLP over HTTP). Invariants: a collector that is slow, away or broken costs spans and
nothing else: they wait in a bounded queue (OTEL_BSP_MAX_QUEUE_SIZE, 2048) for a thread of their own, and the end of the process waits
FLUSH_TIMEOUT_S for it at most. Nothing that follows from data depends on an id. Attributes are counts, versions and names of ours,
never text of documents, prompts or settings. A span costs about 20 us, so there are none inside loops over records, steps or tokens.
The provider is our own: an application that embeds us keeps its global one. Standard variables hold: OTEL_EXPORTER_OTLP_HEADERS for a
collector's key, OTEL_TRACES_SAMPLER, OTEL_RESOURCE_ATTRIBUTES, OTEL_SDK_DISABLED.
Source: https://www.w3.org/TR/trace-context/, https://opentelemetry.io/docs/specs/otlp/
"""

import atexit
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Literal
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Span, SpanContext, SpanKind, Status, StatusCode, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from schemas.errors import HeadraceError
from schemas.settings import TelemetrySettings

EXPORT_TIMEOUT_S = 5.0
"""How long one batch is tried, repetitions included."""
FLUSH_TIMEOUT_S = 2.0
"""How long the end of a process waits for spans that are not sent yet."""
TRACES_PATH = "/v1/traces"
_log = logging.getLogger(__name__)

Attributes = Mapping[str, str | bool | int | float | Sequence[str]]
Kind = Literal["internal", "server"]
_KINDS: Mapping[Kind, SpanKind] = {"internal": SpanKind.INTERNAL, "server": SpanKind.SERVER}


class _Exporter(SpanExporter):
    """OTLP over HTTP; says once that the collector does not take spans, and once that it does again."""

    def __init__(self, endpoint: str) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        base = endpoint.rstrip("/")
        self._exporter = OTLPSpanExporter(base if base.endswith(TRACES_PATH) else base + TRACES_PATH, timeout=EXPORT_TIMEOUT_S)
        self._collector = urlsplit(endpoint).hostname
        self._is_failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch; one that is not taken is lost."""
        result = self._exporter.export(spans)
        if result is not SpanExportResult.SUCCESS:
            self._warn()
        elif self._is_failing:
            self._is_failing = False
            _log.info("the collector at %s takes traces again", self._collector)
        return result

    def give_up(self) -> None:
        """End what is being tried."""
        self._warn()
        self.shutdown()

    def _warn(self) -> None:
        if not self._is_failing:
            self._is_failing = True
            _log.warning("the collector at %s takes no traces (telemetry.otlp_endpoint); everything else goes on", self._collector)

    def shutdown(self) -> None:
        """What comes from here on is dropped."""
        self._exporter.shutdown()  # type: ignore[no-untyped-call]


class _Tracing:
    """A tracer, and the way of its spans to a collector if there is one."""

    def __init__(self, endpoint: str, service: str) -> None:
        self.identity = (endpoint, service)
        self._provider = TracerProvider(resource=Resource.create({"service.name": service}), shutdown_on_exit=False)
        self.tracer = self._provider.get_tracer("headrace")
        self._exporter = _Exporter(endpoint) if endpoint else None
        self._is_ending = threading.Event()
        # Started now, because no thread can be started when the interpreter ends; the SDK's own flush waits for up to 30 s.
        self._flusher = threading.Thread(target=self._flush_at_end, name="traces-flush", daemon=True)
        if self._exporter is not None:
            logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)  # its lines per batch; ours are above
            self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
            self._flusher.start()

    def close(self, timeout_s: float) -> None:
        """Send what waits, for at most ``timeout_s``."""
        if self._exporter is None:
            return
        self._is_ending.set()
        self._flusher.join(timeout_s)
        if self._flusher.is_alive():
            self._exporter.give_up()

    def _flush_at_end(self) -> None:
        self._is_ending.wait()
        self._provider.shutdown()


_lock = threading.Lock()
_tracing: _Tracing | None = None


def start_tracing(settings: TelemetrySettings, service: str) -> None:
    """Send the spans of this process to the collector that the settings name, as those of ``service``; without one they get ids only.

    Calling it again with the same arguments does nothing, with others it ends the former first. Connects to nobody: spans are sent by a
    thread, and a collector that is away is a line in the log.
    """
    global _tracing  # noqa: PLW0603
    with _lock:
        former = _tracing
        if former is not None and former.identity == (settings.otlp_endpoint, service):
            return
        _tracing = _Tracing(settings.otlp_endpoint, service)
        _end_with_the_process()
    if former is not None:
        former.close(FLUSH_TIMEOUT_S)


def stop_tracing(timeout_s: float = FLUSH_TIMEOUT_S) -> None:
    """Send what waits, for at most ``timeout_s``; spans have ids only from then on. For processes that end without atexit, as Ray's do."""
    global _tracing
    with _lock:
        former, _tracing = _tracing, None
    if former is not None:
        former.close(timeout_s)


@cache
def _end_with_the_process() -> None:
    atexit.register(stop_tracing)


def _current() -> _Tracing:
    """What was started, else spans that go nowhere."""
    return _tracing or _untold()


@cache
def _untold() -> _Tracing:
    return _Tracing("", "headrace")


@contextmanager
def span(name: str, attributes: Attributes | None = None, *, parent: str | None = None, kind: Kind = "internal") -> Iterator[Span]:
    """A span around the block: child of ``parent``, a W3C trace context, else of the span that is open here, else the first of a trace.

    More attributes may be given to what is yielded, with ``set_attributes``. An error that leaves the block is recorded by its class, and
    by its sentence if it is one of ours; the messages of others may quote data.
    """
    tracer, context = _current().tracer, None if parent is None else _context(parent)
    with tracer.start_as_current_span(name, context, _KINDS[kind], attributes, record_exception=False, set_status_on_exception=False) as opened:
        try:
            yield opened
        except BaseException as error:
            fail(opened, type(error).__name__, str(error) if isinstance(error, HeadraceError) else None)
            raise


def record_span(name: str, attributes: Attributes, *, parent: str | None, duration_s: float, error: str | None = None) -> str | None:
    """A span of something that has just ended, and took ``duration_s``; returns its trace context. ``error`` is a stable word."""
    ended_ns = time.time_ns()
    recorded = _current().tracer.start_span(name, _context(parent), attributes=attributes, start_time=ended_ns - int(duration_s * 1e9))
    if error is not None:
        fail(recorded, error)
    recorded.end(ended_ns)
    return _traceparent(recorded.get_span_context())


def current_traceparent() -> str | None:
    """W3C trace context of the span that is open here; None outside of any."""
    return _traceparent(get_current_span().get_span_context())


def _traceparent(context: SpanContext) -> str | None:
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}" if context.is_valid else None


def _context(parent: str | None) -> Context:
    """Where a child of ``parent`` begins; what is no trace context counts as none, as W3C asks."""
    return TraceContextTextMapPropagator().extract({"traceparent": parent} if parent else {}, Context())


def fail(failed: Span, word: str, sentence: str | None = None) -> None:
    """Mark a span as failed; ``word`` is the class of the error, a stable word."""
    failed.set_attribute("error.type", word)
    failed.set_status(Status(StatusCode.ERROR, sentence))
