"""Everything that the report says, read from manifests, audit trail, shards and, when asked, Kafka. No markup here.

Costs a pass over the window's audit files for examples and over all versions' duplicates for clusters; memory is bounded by the number of
duplicates, not of documents.
"""

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import polars as pl

from pipelines.dataset.dataset import Dataset
from pipelines.dataset.statistics import merged, version_statistics
from pipelines.dataset.trail import scan_trail
from pipelines.drift.drift import DriftReport
from pipelines.drift.watch import report_on
from pipelines.report.examples import Example, kept_examples, retracted_ids, scan, texts_in_kafka
from schemas.arrow import Outcome
from schemas.errors import DatasetError
from schemas.manifest import DatasetManifest
from schemas.settings import Settings
from schemas.statistics import VersionStatistics

MAX_RULES = 40
MAX_CLUSTERS = 10
MAX_MEMBERS = 4
MAX_VERSIONS = 60
POSITIONS_PER_RULE = 3
"""Documents named for each rule when no texts are asked for."""


@dataclass(frozen=True)
class Rule:
    """A rule that rejected documents of the window, with some of these."""

    name: str
    count: int
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class Cluster:
    """A kept document and its duplicates in versions 1 to N."""

    doc_id: str
    num_exact: int
    num_near: int
    mean_similarity: float
    members: tuple[str, ...]
    """Some of the duplicates' ids."""


@dataclass(frozen=True)
class Moment:
    """A version on the time line."""

    version: int
    created_at: datetime
    outcomes: dict[Outcome, int]
    num_tokens: int


@dataclass(frozen=True)
class Facts:
    """What the page shows."""

    manifest: DatasetManifest
    first_version: int
    """First version of the window; the manifest's is the last."""
    statistics: VersionStatistics
    """Of the window."""
    baseline: VersionStatistics | None
    """What the drift report compares with."""
    drift: DriftReport | None
    timeline: tuple[Moment, ...]
    rules: tuple[Rule, ...]
    kept: tuple[Example, ...]
    clusters: tuple[Cluster, ...]
    notes: list[str] = field(default_factory=list)
    """What is missing on the page, and why."""


def collect(settings: Settings, version: int | None = None, *, last: int = 1, num_examples: int = 0) -> Facts:
    """The facts about the ``last`` versions up to ``version`` (default: the newest).

    With ``num_examples`` the texts of that many rejected documents per rule are read back from Kafka, as far as it still has them.
    Raises DatasetNotFound, ManifestCorrupt; whatever else cannot be read is left out and noted.
    """
    root = Path(settings.root).resolve()
    dataset = Dataset(root, version)
    manifests = dataset.manifests()
    window = list(manifests[-max(1, last) :])
    notes: list[str] = []
    drift = _drift(settings, root, dataset.version, notes)
    baseline = merged(version_statistics(root, manifests[number - 1]) for number in drift.baseline) if drift and drift.baseline else None
    rules = _rules(root, window, max(num_examples, POSITIONS_PER_RULE))
    if num_examples:
        rules = _with_texts(settings, dataset, rules, notes)
    return Facts(
        manifest=dataset.manifest,
        first_version=window[0].version,
        statistics=merged(version_statistics(root, manifest) for manifest in window),
        baseline=baseline,
        drift=drift,
        timeline=tuple(Moment(part.version, part.created_at, part.outcomes, part.num_tokens) for part in manifests[-MAX_VERSIONS:]),
        rules=rules,
        kept=kept_examples(root, dataset, window, settings.pii, notes),
        clusters=_clusters(dataset),
        notes=notes,
    )


def _drift(settings: Settings, root: Path, version: int, notes: list[str]) -> DriftReport | None:
    try:
        return report_on(root, version, settings.drift)
    except DatasetError as error:
        notes.append(str(error))
        return None


def _rules(root: Path, window: list[DatasetManifest], number: int) -> tuple[Rule, ...]:
    rejected = scan(root, window).filter(pl.col("outcome") == Outcome.REJECTED).with_columns(pl.col("reason").fill_null("unknown"))
    columns = ("doc_id", "topic", "partition", "offset", "language", "num_chars")
    grouped = rejected.group_by("reason").agg(pl.len().alias("count"), *(pl.col(name).head(number) for name in columns))
    rows = grouped.sort("count", "reason", descending=[True, False]).head(MAX_RULES).collect().to_dicts()
    return tuple(
        Rule(row["reason"], row["count"], tuple(Example(*values) for values in zip(*(row[name] for name in columns), strict=True))) for row in rows
    )


def _with_texts(settings: Settings, dataset: Dataset, rules: tuple[Rule, ...], notes: list[str]) -> tuple[Rule, ...]:
    """Texts where they may be shown. What a rule on personal data refused stays unseen, and so does what was retracted since."""
    hidden = retracted_ids(dataset)
    open_rules = [rule for rule in rules if not rule.name.startswith("pii/")]
    wanted = [example for rule in open_rules for example in rule.examples if example.doc_id not in hidden]
    found = texts_in_kafka(settings, dataset.manifest, wanted, notes)
    return tuple(Rule(rule.name, rule.count, tuple(found.get(example.position, example) for example in rule.examples)) for rule in rules)


def _clusters(dataset: Dataset) -> tuple[Cluster, ...]:
    duplicates = scan_trail(dataset.paths("documents")).filter((pl.col("outcome") == Outcome.DUPLICATE) & pl.col("duplicate_of").is_not_null())
    grouped = duplicates.group_by("duplicate_of").agg(
        pl.len().alias("count"),
        (pl.col("reason") == "exact").sum().alias("exact"),
        pl.col("similarity").mean(),
        pl.col("doc_id").head(MAX_MEMBERS).alias("members"),
    )
    rows = grouped.sort("count", "duplicate_of", descending=[True, False]).head(MAX_CLUSTERS).collect().to_dicts()
    return tuple(
        Cluster(row["duplicate_of"], row["exact"], row["count"] - row["exact"], row["similarity"] or 0.0, tuple(filter(None, row["members"])))
        for row in rows
    )
