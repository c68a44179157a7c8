"""Drift: how much a sample of the stream differs from what came before, feature by feature. Pure functions of statistics.

``compare`` gives two values per feature over the union of its bins, each bin's count raised by SMOOTHING (Jeffreys), so that a bin which is
empty on one side costs a finite amount:

PSI  sum of (p - q) ln(p / q), the population stability index: unbounded, sensitive to small bins
JS   Jensen-Shannon divergence in bits: 0 equal, 1 nothing in common

A feature has drifted if one of them is over its threshold *and* PSI is more than chance gives two samples of these sizes: with B bins and n and
m counts PSI is about chi-square with B - 1 degrees of freedom times (1/n + 1/m) (Yurdakul 2018); JS in bits is about PSI / (8 ln 2) for small
differences. So a small sample of many languages is no alarm.

``judge`` walks over the versions in order. Small versions are put together until they number ``drift.min_documents`` records: a sample. Each
sample is compared with the last ``drift.baseline_versions`` *accepted* ones. A sample that has drifted is not accepted, so that a drift cannot
become its own baseline, until a person releases it: then it is the baseline, alone. The verdicts follow from the log and the releases alone.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import takewhile
from typing import Any

from pipelines.dataset.statistics import merged
from schemas.arrow import Outcome
from schemas.settings_drift import DriftSettings
from schemas.statistics import HISTOGRAMS, Distribution, VersionStatistics, lower_bound

SMOOTHING = 0.5
NUM_CONTRIBUTIONS = 5
_HISTOGRAM = {"length": "chars", "freshness": "freshness_s"} | {name: name for name in ("tokens", "quality", "perplexity", "informativeness")}
_NO_INPUT = (Outcome.CONTROL, Outcome.RETRACTED)
"""Outcomes of records that bring no document."""
Shares = Mapping[str, int]
"""Bin -> count."""


@dataclass(frozen=True)
class Contribution:
    """One bin's part in a feature's PSI."""

    bin: str
    baseline_share: float
    share: float
    psi: float


@dataclass(frozen=True)
class FeatureDrift:
    """One feature of a sample against the baseline."""

    feature: str
    psi: float
    js: float
    chance_psi: float
    """What PSI reaches by chance once in about a thousand comparisons."""
    is_over: bool
    contributions: tuple[Contribution, ...]
    """The bins that differ most, largest first."""


@dataclass(frozen=True)
class DriftReport:
    """Verdict about a sample: versions ``first`` to ``version``."""

    version: int
    first: int
    baseline: tuple[int, ...]
    """Versions that it was compared with; none for the first sample."""
    num_records: int
    num_baseline_records: int
    features: tuple[FeatureDrift, ...]
    is_released: bool = False
    """Whether a person accepted it as it is."""

    @property
    def drifted(self) -> tuple[FeatureDrift, ...]:
        """The features that are over their thresholds."""
        return tuple(feature for feature in self.features if feature.is_over)

    @property
    def is_drifting(self) -> bool:
        """Whether any feature has drifted and nobody said that this is fine."""
        return bool(self.drifted) and not self.is_released

    def sentence(self) -> str:
        """What differs, with the values."""
        if not self.baseline:
            return f"dataset version {self.version} has no version before it to be compared with"
        if not self.drifted:
            return f"dataset version {self.version} is like its baseline"
        parts = [f"{item.feature} (PSI {item.psi:.2f}, JS {item.js:.2f}{_most(item)})" for item in self.drifted]
        return f"dataset version {self.version} is unlike the versions before it: {'; '.join(parts)}"

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"is_drifting": self.is_drifting, "summary": self.sentence()}


def _most(item: FeatureDrift) -> str:
    if not item.contributions:
        return ""
    top = item.contributions[0]
    return f", most of it {top.bin}: {top.baseline_share:.0%} before, {top.share:.0%} now"


@dataclass(frozen=True)
class Sample:
    """Consecutive versions that are judged together."""

    first: int
    version: int
    statistics: VersionStatistics


@dataclass(frozen=True)
class Verdicts:
    """What became of a log's versions."""

    reports: tuple[DriftReport, ...]
    """One per sample, in order."""
    waiting: tuple[int, ...]
    """Newest versions that do not make up a sample yet."""

    @property
    def newest(self) -> DriftReport | None:
        """About the newest sample; none while there is none."""
        return self.reports[-1] if self.reports else None


class Judge:
    """Takes versions in order and keeps what the next verdict needs: the baseline, and the versions that wait."""

    def __init__(
        self,
        settings: DriftSettings,
        released: Iterable[int] = (),
        accepted: Iterable[Sample] = (),
        waiting: Iterable[Sample] = (),
        reports: Iterable[DriftReport] = (),
    ) -> None:
        """The last three: where another judge stood, to go on from there."""
        self._settings = settings
        self._released = frozenset(released)
        self._accepted: deque[Sample] = deque(accepted, maxlen=settings.baseline_versions)
        self._waiting = list(waiting)
        self._reports = list(reports)

    @property
    def accepted(self) -> tuple[Sample, ...]:
        """The baseline, oldest sample first."""
        return tuple(self._accepted)

    def forget(self) -> None:
        """Drop the reports that no later question is about: all but the newest, and the newest drifting one with no release behind it."""
        open_ones = list(takewhile(lambda report: not report.is_released, reversed(self._reports)))
        drifting = next((report for report in open_ones if report.is_drifting), None)
        newest = self._reports[-1:]
        self._reports = [*([drifting] if drifting is not None and drifting not in newest else []), *newest]

    def add(self, version: int, statistics: VersionStatistics) -> DriftReport | None:
        """Take the next version; returns a report if it completes a sample."""
        self._waiting.append(Sample(version, version, statistics))
        if sum(num_input(part.statistics.total) for part in self._waiting) < self._settings.min_documents:
            return None
        sample = Sample(self._waiting[0].first, version, merged(part.statistics for part in self._waiting))
        self._waiting = []
        report = self._judge(sample)
        self._reports.append(report)
        return report

    def verdicts(self) -> Verdicts:
        """Everything so far."""
        return Verdicts(tuple(self._reports), tuple(part.version for part in self._waiting))

    def _judge(self, sample: Sample) -> DriftReport:
        is_released = any(version in self._released for version in range(sample.first, sample.version + 1))
        baseline = merged(part.statistics for part in self._accepted) if self._accepted else None
        report = DriftReport(
            version=sample.version,
            first=sample.first,
            baseline=tuple(version for part in self._accepted for version in range(part.first, part.version + 1)),
            num_records=num_input(sample.statistics.total),
            num_baseline_records=num_input(baseline.total) if baseline else 0,
            features=compare(sample.statistics, baseline, self._settings) if baseline else (),
            is_released=is_released,
        )
        if is_released:
            self._accepted.clear()
        if not report.is_drifting:
            self._accepted.append(sample)
        return report


def compare(sample: VersionStatistics, baseline: VersionStatistics, settings: DriftSettings) -> tuple[FeatureDrift, ...]:
    """The features of ``settings.features`` that both sides have, in that order."""
    found = [(name, shares(sample, name), shares(baseline, name)) for name in settings.features]
    return tuple(feature_drift(name, now, before, settings) for name, now, before in found if any(now.values()) and any(before.values()))


def feature_drift(name: str, now: Shares, before: Shares, settings: DriftSettings) -> FeatureDrift:
    """One feature; ``now`` and ``before`` hold at least one count each."""
    bins = sorted({*now, *before})
    p, q = _smoothed(now, bins), _smoothed(before, bins)
    parts = [Contribution(label, q[i], p[i], (p[i] - q[i]) * math.log(p[i] / q[i])) for i, label in enumerate(bins)]
    psi, js = math.fsum(part.psi for part in parts), jensen_shannon(p, q)
    chance = chance_psi(len(bins), sum(now.values()), sum(before.values()))
    is_over = (psi > settings.max_psi or js > settings.max_js) and psi > chance
    top = sorted(parts, key=lambda part: -part.psi)[:NUM_CONTRIBUTIONS]
    return FeatureDrift(name, psi, js, chance, is_over, tuple(top))


def jensen_shannon(p: list[float], q: list[float]) -> float:
    """Divergence in bits of two distributions without zeros: 0 to 1."""
    terms = (a * math.log2(2 * a / (a + b)) + b * math.log2(2 * b / (a + b)) for a, b in zip(p, q, strict=True))
    return max(0.0, math.fsum(terms) / 2)


def chance_psi(num_bins: int, num_now: int, num_before: int) -> float:
    """Mean plus three standard deviations of PSI between two samples of one distribution (chi-square, Yurdakul 2018)."""
    freedom = max(1, num_bins - 1)
    return (freedom + 3 * math.sqrt(2 * freedom)) * (1 / num_now + 1 / num_before)


def _smoothed(counts: Shares, bins: list[str]) -> list[float]:
    total = sum(counts.values()) + SMOOTHING * len(bins)
    return [(counts.get(label, 0) + SMOOTHING) / total for label in bins]


def num_input(total: Distribution) -> int:
    """Records that brought, or should have brought, a document."""
    return sum(count for outcome, count in total.outcomes.items() if outcome not in _NO_INPUT)


def shares(statistics: VersionStatistics, feature: str) -> dict[str, int]:
    """Counts of a feature's bins; the bins of numbers are named by their lower bound."""
    total = statistics.total
    readers: dict[str, Callable[[], dict[str, int]]] = {
        "source": lambda: {source: num_input(part) for source, part in statistics.sources.items()},
        "language": lambda: {language: sums.documents for language, sums in total.languages.items()},
        "domain": lambda: total.domains,
        "outcome": lambda: {str(outcome): count for outcome, count in total.outcomes.items() if outcome not in _NO_INPUT},
        "reason": lambda: {str(Outcome.KEPT): total.num_kept} | total.reasons,
        "pii": lambda: total.pii,
    }
    return readers[feature]() if feature in readers else _histogram(total, _HISTOGRAM[feature])


def _histogram(total: Distribution, name: str) -> dict[str, int]:
    bins = HISTOGRAMS[name]
    counts: dict[int, int] = getattr(total, name)
    return {f"{lower_bound(bins, number):,.4g} and more": count for number, count in counts.items()}


def verdicts(versions: Iterable[tuple[int, VersionStatistics]], settings: DriftSettings, released: Iterable[int] = ()) -> Verdicts:
    """Verdicts about versions 1, 2, … given with their statistics; ``released`` are the versions that a person accepted."""
    judge = Judge(settings, released)
    for version, statistics in versions:
        judge.add(version, statistics)
    return judge.verdicts()
