"""The gateway's own numbers in the Prometheus text format. Counters start at zero with the process, as Prometheus expects."""

from dataclasses import dataclass
from typing import TypeAlias

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

LATENCY_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Sample:
    """One number, as it travels between processes."""

    family: str
    documentation: str
    kind: str
    """counter, gauge or histogram."""
    name: str
    labels: tuple[tuple[str, str], ...]
    value: float


Snapshot: TypeAlias = tuple[Sample, ...]
"""All numbers of a gateway."""


class Metrics:
    """Counters of one gateway."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ("version", "role", "shadow")
        self._answers = Counter("headrace_answers", "Answers of engines by how they ended", (*labels, "outcome"), registry=self.registry)
        self._latency = Histogram(
            "headrace_answer_latency_seconds", "From arrival to the last token", labels, buckets=LATENCY_BUCKETS_S, registry=self.registry
        )
        self._tokens = Counter("headrace_tokens", "Tokens by kind", ("version", "kind"), registry=self.registry)
        self._responses = Counter("headrace_http_responses", "HTTP answers by status", ("status",), registry=self.registry)
        self._dropped = Counter("headrace_shadow_dropped", "Shadow copies not sent because too many were under way", registry=self.registry)
        self._running = Gauge("headrace_answers_running", "Answers of engines under way", labels, registry=self.registry)

    def begin(self, version: int, role: str, *, shadow: bool) -> None:
        """An engine was asked; ``end`` must follow."""
        self._running.labels(*_labels(version, role, shadow=shadow)).inc()

    def end(self, version: int, role: str, *, shadow: bool) -> None:
        """The answer is over, however it ended."""
        self._running.labels(*_labels(version, role, shadow=shadow)).dec()

    def observe(self, version: int, role: str, *, shadow: bool, outcome: str, latency_s: float) -> None:
        """Count one engine's answer."""
        labels = _labels(version, role, shadow=shadow)
        self._answers.labels(*labels, outcome).inc()
        self._latency.labels(*labels).observe(latency_s)

    def count_tokens(self, version: int, prompt: int, completion: int) -> None:
        """Add tokens."""
        self._tokens.labels(str(version), "prompt").inc(prompt)
        self._tokens.labels(str(version), "completion").inc(completion)

    def count_response(self, status: int) -> None:
        """Count an HTTP answer."""
        self._responses.labels(str(status)).inc()

    def drop_shadow(self) -> None:
        """Count a copy that was not sent."""
        self._dropped.inc()

    def snapshot(self) -> Snapshot:
        """The same numbers as values."""
        return tuple(
            Sample(family.name, family.documentation, family.type, sample.name, tuple(sample.labels.items()), sample.value)
            for family in self.registry.collect()
            for sample in family.samples
        )

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)


def _labels(version: int, role: str, *, shadow: bool) -> tuple[str, str, str]:
    return str(version), role, str(shadow).lower()
