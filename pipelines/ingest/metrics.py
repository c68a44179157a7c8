"""What ingest measures, as Prometheus metrics, and whether it is ready: served on ``telemetry.metrics_host`` and ``metrics_port``.

/metrics is the Prometheus text format; /health answers 200 while the process answers at all; /ready answers 200 once the topic was found and
503 with the reason while ingest waits for something. Counters start at zero with the process.
Cost: a version's freshness is counted in one pass over its timestamps; the server is one thread, and one more for each open connection.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from pipelines.ingest.freshness import Ages, Lag, VersionTimes
from schemas.errors import SettingsError
from schemas.manifest import DatasetManifest
from schemas.settings import TelemetrySettings

FRESHNESS_BUCKETS_S = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 21_600.0, 86_400.0)
COMMIT_BUCKETS_S = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
REQUEST_TIMEOUT_S = 10.0
_STARTING = "ingest is starting"


class _Freshness(Collector):
    """A histogram that takes a whole version at once: the client's own takes one value per call."""

    def __init__(self) -> None:
        self._counts = np.zeros(len(FRESHNESS_BUCKETS_S) + 1, np.int64)
        self._sum_s = 0.0
        self._lock = threading.Lock()

    def observe(self, ages_s: Ages) -> None:
        """Count the records of a version."""
        found = np.bincount(np.searchsorted(FRESHNESS_BUCKETS_S, ages_s), minlength=len(self._counts))
        with self._lock:
            self._counts += found
            self._sum_s += float(ages_s.sum())

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Prometheus asks."""
        with self._lock:
            counts, sum_s = self._counts.cumsum(), self._sum_s
        names = [*map(str, FRESHNESS_BUCKETS_S), "+Inf"]
        family = HistogramMetricFamily("headrace_ingest_freshness_seconds", "From a record's timestamp to the commit of its version")
        family.add_metric([], [(name, float(count)) for name, count in zip(names, counts, strict=True)], sum_s)
        yield family


class IngestMetrics:
    """The numbers of one ingesting process; every method may be called from any thread."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.not_ready: str | None = _STARTING
        """Why ingest cannot work at the moment; None: it can."""
        self._freshness = _Freshness()
        self.registry.register(self._freshness)
        partition = ("topic", "partition")
        self._lag = Gauge("headrace_ingest_lag_records", "Offsets beyond the newest version", partition, registry=self.registry)
        self._lag_s = Gauge("headrace_ingest_lag_seconds", "Bound on the age of the oldest of them", partition, registry=self.registry)
        self._records = Counter("headrace_ingest_records", "Offsets taken in, by outcome", ("outcome",), registry=self.registry)
        self._bytes = Counter("headrace_ingest_bytes", "Keys, values and documents outside their records taken in", registry=self.registry)
        self._versions = Counter("headrace_ingest_versions", "Versions committed", registry=self.registry)
        self._commit = Histogram(
            "headrace_ingest_commit_seconds", "From fixing a version's ranges to its commit", buckets=COMMIT_BUCKETS_S, registry=self.registry
        )

    def committed(self, manifest: DatasetManifest, topic: str, times: VersionTimes) -> None:
        """Count a version."""
        for outcome, count in manifest.outcomes.items():
            self._records.labels(str(outcome)).inc(count)
        self._bytes.inc(times.size_bytes)
        self._versions.inc()
        self._commit.observe(times.commit_s)
        self._freshness.observe(times.ages_s)
        self.behind(topic, times.lag)

    def behind(self, topic: str, lag: Mapping[int, Lag]) -> None:
        """What waits at present."""
        for partition, (num_records, seconds) in lag.items():
            self._lag.labels(topic, str(partition)).set(num_records)
            self._lag_s.labels(topic, str(partition)).set(seconds)

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)

    def answer(self, path: str) -> tuple[int, bytes]:
        """HTTP status and body."""
        match path.partition("?")[0]:
            case "/metrics":
                return 200, self.render()
            case "/health":
                return 200, b"ok\n"
            case "/ready":
                reason = self.not_ready
                return (503, f"{reason}\n".encode()) if reason else (200, b"ready\n")
        return 404, b"/metrics, /health and /ready are here\n"


@contextmanager
def served(metrics: IngestMetrics, settings: TelemetrySettings) -> Iterator[None]:
    """Serve the metrics inside the block; nothing for port 0. Raises SettingsError if the port is taken, or the address is not this machine's."""
    host, port = settings.metrics_host, settings.metrics_port
    if port == 0:
        yield
        return
    try:
        server = _Server((host, port), _handler(metrics))
    except OSError as error:
        place = f"telemetry.metrics_port {port} of {host}"
        raise SettingsError(f"{place} cannot be listened on: {error}; name a free port (0 for none), and an address of this machine") from error
    thread = threading.Thread(target=server.serve_forever, name="headrace-metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False


def _handler(metrics: IngestMetrics) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = REQUEST_TIMEOUT_S
        server_version = "headrace"
        sys_version = ""

        def do_GET(self) -> None:
            status, body = metrics.answer(self.path)
            self.send_response(status)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Probes come every few seconds: no line for each."""

    return Handler
