"""The numbers of several gateways, added up: each scrape reaches one of them and must tell of all.

Invariant: a counter never falls when a gateway goes: what it counted stays in the sum. A gauge counts gateways that have told something within
SILENT_S. Only a new start of this process begins at the gateways' own numbers, which Prometheus sees as a reset.
Costs some 10 KiB for each gateway there is; those that have been silent for FORGOTTEN_S are folded into one.
"""

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric

from ray_apps.serving.metrics import Sample, Snapshot

SILENT_S = 10.0
"""Gateways tell their numbers every TELL_INTERVAL_S (gateway.py)."""
FORGOTTEN_S = 3600.0
"""A gateway that is silent for so long is not expected to come back."""


@dataclass(frozen=True, slots=True)
class _Told:
    snapshot: Snapshot
    at_s: float


class MetricsSum:
    """What each gateway said last."""

    def __init__(self) -> None:
        self._told: dict[str, _Told] = {}
        self._gone: Snapshot = ()
        """Counters of gateways that are gone, added up."""

    def take(self, replica: str, snapshot: Snapshot, now_s: float) -> None:
        """Replace what this gateway said before; counters are totals, so nothing is lost if one message is."""
        self._told[replica] = _Told(snapshot, now_s)
        for name in [name for name, told in self._told.items() if now_s - told.at_s > FORGOTTEN_S]:
            self._gone = _added([self._gone, _counters(self._told.pop(name).snapshot)])

    def render(self, now_s: float) -> bytes:
        """The text that Prometheus scrapes."""
        parts = [told.snapshot if now_s - told.at_s <= SILENT_S else _counters(told.snapshot) for told in self._told.values()]
        registry = CollectorRegistry()
        registry.register(_Fixed(_added([self._gone, *parts])))
        return generate_latest(registry)


class _Fixed:
    """A collector of what is given."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> list[Metric]:
        """Families in the order in which they came."""
        families: dict[str, Metric] = {}
        for sample in self._snapshot:
            family = families.setdefault(sample.family, Metric(sample.family, sample.documentation, sample.kind))
            family.add_sample(sample.name, dict(sample.labels), sample.value)
        return list(families.values())


def _counters(snapshot: Snapshot) -> Snapshot:
    return tuple(sample for sample in snapshot if sample.kind != "gauge")


def _added(snapshots: list[Snapshot]) -> Snapshot:
    """One sample for each name and labels: the sum, or of times at which counting began, the first."""
    sums: dict[tuple[str, tuple[tuple[str, str], ...]], Sample] = {}
    for sample in (sample for snapshot in snapshots for sample in snapshot):
        key = (sample.name, sample.labels)
        sums[key] = _joined(sums[key], sample) if key in sums else sample
    return tuple(sums.values())


def _joined(one: Sample, other: Sample) -> Sample:
    value = min(one.value, other.value) if one.name.endswith("_created") else one.value + other.value
    return Sample(one.family, one.documentation, one.kind, one.name, one.labels, value)
