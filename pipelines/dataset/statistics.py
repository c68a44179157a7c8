"""Statistics of a version: counted block by block while it is written, or again from its audit trail; both give the same.

Invariant: the result depends on the rows and their order, never on where blocks end; versions add up (``merged``). Memory is bounded by the
distinct values of a version, never by its text. Cost: 2 ms per block of 2,500 rows, 0.7 µs per document.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.dataset.dataset import read_manifest
from pipelines.storage.store import local
from schemas.arrow import DOCUMENTS, Outcome
from schemas.errors import ShardCorrupt
from schemas.manifest import DatasetManifest
from schemas.statistics import (
    HIGHEST_QUARTER,
    HISTOGRAMS,
    LOWEST_QUARTER,
    MAX_DISTINCT,
    MAX_DOMAINS,
    MAX_SOURCES,
    OTHER,
    TWENTIETHS,
    UNKNOWN,
    Bins,
    Distribution,
    LanguageTotals,
    VersionStatistics,
)

COLUMNS = (
    "outcome",
    "reason",
    "language",
    "num_tokens",
    "timestamp_ms",
    "source",
    "domain",
    "num_chars",
    "num_replaced",
    "quality",
    "perplexity",
    "informativeness",
    "pii",
)
"""What is read of the documents table."""
LATEST_SECOND = 2**40
"""Producers write timestamps: one beyond this, 30,000 years ahead, counts as this."""
MAX_NAME_CHARS = 120
"""Longer names of sources and domains are cut: any producer may choose them."""
SMALL_TABLE = 4_096
"""Pairs are counted in a table, without sorting them, where it has at most so many places more than there are pairs."""
_COUNTED = ("outcomes", "reasons", "domains", "pii", *HISTOGRAMS)
_MEASURES = ("documents", "chars", "tokens", "replaced")
_OF_KEPT = ("language", "domain", "num_chars", "num_tokens", "num_replaced", "quality", "perplexity", "informativeness")
_SOURCE_OF = {"chars": "num_chars", "tokens": "num_tokens"}
Binned = npt.NDArray[np.int64]
Counts = Counter[Any]
Bag = dict[str, Counts]
"""Field of Distribution -> value -> count; ``languages`` counts (language, measure)."""


def octaves(values: npt.NDArray[Any]) -> Binned:
    """Bin of each number >= 0: its bit length, exact below 2^53; negative ones count as 0."""
    bins: Binned = np.frexp(np.maximum(np.floor(values), 0))[1].astype(np.int64)
    return bins


def quarter_octaves(values: npt.NDArray[Any]) -> Binned:
    """Bin of each number; 0 and less lie in the lowest, infinity in the highest."""
    safe = np.clip(values.astype(np.float64), 2.0 ** (LOWEST_QUARTER / 4), 2.0 ** (HIGHEST_QUARTER / 4))
    bins: Binned = np.floor(4 * np.log2(safe)).astype(np.int64)
    return bins


def twentieths(values: npt.NDArray[Any]) -> Binned:
    """Bin of each share of 1; 1 itself lies in the last."""
    bins: Binned = np.clip(np.floor(values * TWENTIETHS), 0, TWENTIETHS - 1).astype(np.int64)
    return bins


_BINNING = {Bins.OCTAVES: octaves, Bins.QUARTER_OCTAVES: quarter_octaves, Bins.TWENTIETHS: twentieths}


class Statistics:
    """Counts of one version; ``add`` its blocks in commit order, then ``finish``."""

    def __init__(self, max_names: int | None = MAX_DISTINCT) -> None:
        """``max_names``: sources and domains with a count of their own; None keeps all, for a part of a version that is to be joined."""
        self._bags: dict[str, Bag] = {}
        self._seconds: list[tuple[Binned, Binned, Binned]] = []
        """Distinct (source, second of the Kafka timestamp) of each block, and their counts: the commit's time is known only at the end."""
        self._sources, self._domains = _Names(max_names), _Names(max_names)

    def add(self, documents: pa.Table) -> None:
        """Count a block of the documents table (schemas.arrow.DOCUMENTS; only COLUMNS are read)."""
        if not len(documents):
            return
        block = {name: _one_array(documents[name]) for name in COLUMNS}
        sources = self._sources.of(block["source"])
        outcomes, outcome_names = _coded(block["outcome"])
        self._count("outcomes", sources, outcomes, outcome_names)
        self._count_reasons(sources, outcomes, outcome_names, block["reason"])
        self._count_pii(sources, block["pii"])
        self._count_seconds(sources, block["timestamp_ms"])
        kept = np.flatnonzero(np.asarray(pc.equal(block["outcome"], Outcome.KEPT)))
        self._add_kept(sources[kept], {name: column.take(pa.array(kept)) for name, column in block.items() if name in _OF_KEPT})

    def join(self, later: "Statistics") -> None:
        """Add the counts of ``later``, which kept all names and counted the blocks that follow: the same as if they had been added here."""
        names = {name: self._sources.known[self._sources.number(name)] for name in later._sources.known}
        domains = {name: self._domains.known[self._domains.number(name)] for name in later._domains.known}
        for source, bag in later._bags.items():
            own = self._bags.setdefault(names[source], {})
            for field, counts in bag.items():
                counted = _summed((domains[name], number) for name, number in counts.items()) if field == "domains" else counts
                own.setdefault(field, Counter()).update(counted)
        numbers = np.array([self._sources.number(name) for name in later._sources.known], np.int64)
        self._seconds += [(numbers[sources], seconds, counts) for sources, seconds, counts in later._seconds]

    def finish(self, committed_at: datetime) -> VersionStatistics:
        """The statistics of a version that was committed then (freshness is measured to that moment)."""
        commit_s = int(committed_at.timestamp())
        bags = {source: dict(bag) for source, bag in self._bags.items()}
        for sources, seconds, counts in self._seconds:
            for number, age, count in zip(sources.tolist(), octaves(commit_s - seconds).tolist(), counts.tolist(), strict=True):
                bags[self._sources.known[number]].setdefault("freshness_s", Counter())[age] += count
        return _statistics(bags)

    def _add_kept(self, sources: Binned, kept: dict[str, pa.Array]) -> None:
        self._count("domains", sources, self._domains.of(kept["domain"]), self._domains.known)
        for field, bins in HISTOGRAMS.items():
            column = _SOURCE_OF.get(field, field)
            if column in kept:
                rows, numbers = _numbers(kept[column])
                self._count(field, sources[rows], _BINNING[bins](numbers))
        languages, names = _coded(kept["language"].fill_null("und"))
        for measure in _MEASURES:
            weights = kept.get(f"num_{measure}")
            keys = [(name, measure) for name in names]
            self._count("languages", sources, languages, keys, None if weights is None else np.asarray(weights.fill_null(0)))

    def _count_reasons(self, sources: Binned, outcomes: Binned, outcome_names: list[str], column: pa.Array) -> None:
        rows = np.flatnonzero(np.asarray(column.is_valid()))
        reasons, names = _coded(column.take(pa.array(rows)))
        pairs = [f"{outcome}/{reason}" for outcome in outcome_names for reason in names]
        self._count("reasons", sources[rows], outcomes[rows] * len(names) + reasons, pairs)

    def _count_pii(self, sources: Binned, column: pa.Array) -> None:
        found = pc.list_flatten(column)
        if len(found):
            kinds, names = _coded(found.field("type"))
            self._count("pii", sources[np.asarray(pc.list_parent_indices(column))], kinds, names, np.asarray(found.field("count")))

    def _count_seconds(self, sources: Binned, column: pa.Array) -> None:
        rows, numbers = _numbers(column, np.int64)
        if len(rows):
            self._seconds.append(_tallied(sources[rows], np.clip(numbers // 1000, 0, LATEST_SECOND), None))

    def _count(self, field: str, sources: Binned, values: Binned, names: Sequence[Any] | None = None, weights: Any = None) -> None:
        """Add (source, value) rows to a field; ``names`` are what the values stand for, ``weights`` what each row counts."""
        if not len(values):
            return
        for source, value, count in zip(*(part.tolist() for part in _tallied(sources, values, weights)), strict=True):
            bag = self._bags.setdefault(self._sources.known[source], {})
            if field not in bag:
                bag[field] = Counter()
            bag[field][names[value] if names is not None else value] += count


class _Names:
    """Numbers for names in the order in which they appear: the first ``max_names`` get their own, later ones that of OTHER."""

    def __init__(self, max_names: int | None) -> None:
        self._max_names = max_names
        self.known: list[str] = []
        self._numbers: dict[str, int] = {}

    def of(self, column: pa.Array) -> Binned:
        """The number of each row's name; nulls are UNKNOWN, long names are cut."""
        codes, names = _coded(column.fill_null(UNKNOWN))
        numbers = np.fromiter((self.number(name[:MAX_NAME_CHARS]) for name in names), np.int64, len(names))
        return numbers[codes]

    def number(self, name: str) -> int:
        """The number of a name."""
        if name not in self._numbers:
            if self._max_names is not None and len(self.known) >= self._max_names and name != OTHER:
                return self.number(OTHER)
            self._numbers[name] = len(self.known)
            self.known.append(name)
        return self._numbers[name]


def _tallied(sources: Binned, values: Binned, weights: Any) -> tuple[Binned, Binned, Binned]:
    """Distinct (source, value) pairs and how often they occur, or the sum of their weights (exact below 2^53)."""
    low = values.min()
    span = values.max() - low + 1
    pairs: Binned = sources * span + (values - low)
    known: Binned | None = None
    if (sources.max() + 1) * span > SMALL_TABLE + len(pairs):
        known, pairs = np.unique(pairs, return_inverse=True)
    counts = np.bincount(pairs)
    found = np.flatnonzero(counts)
    if weights is not None:
        counts = np.bincount(pairs, weights=weights).astype(np.int64)
    pairs = found if known is None else known
    return pairs // span, pairs % span + low, counts[found]


def _coded(column: pa.Array) -> tuple[Binned, list[str]]:
    """A column without nulls as numbers, and the values that they stand for in the order in which they appear."""
    encoded = column.dictionary_encode()
    return np.asarray(encoded.indices).astype(np.int64), encoded.dictionary.to_pylist()


def _numbers(column: pa.Array, kind: Any = np.float64) -> tuple[Binned, npt.NDArray[Any]]:
    """Rows that hold a number, and these numbers."""
    rows = np.flatnonzero(np.asarray(column.is_valid()))
    numbers = np.asarray(column.take(pa.array(rows))).astype(kind)
    is_number = ~np.isnan(numbers) if kind is np.float64 else np.ones(len(numbers), np.bool_)
    return rows[is_number], numbers[is_number]


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks)


def _summed(pairs: Iterable[tuple[Any, int]]) -> Counts:
    total: Counts = Counter()
    for value, number in pairs:
        total[value] += number
    return total


def _added(bags: Iterable[Mapping[str, Counts]]) -> Bag:
    """Field by field sums."""
    total: Bag = {}
    for bag in bags:
        for field, counts in bag.items():
            total.setdefault(field, Counter()).update(counts)
    return total


def _largest(counts: Counts, number: int) -> Counts:
    """The ``number`` largest, equals by name; all others together are OTHER."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], str(item[0])))
    named = [item for item in ranked if item[0] != OTHER]
    return _summed(chain(named[:number], ((OTHER, value) for _, value in named[number:]), ((OTHER, counts[OTHER]),) if counts[OTHER] else ()))


def _distribution(bag: Mapping[str, Counts]) -> Distribution:
    fields: dict[str, Any] = {name: dict(sorted(bag.get(name, Counter()).items())) for name in _COUNTED}
    fields["domains"] = dict(_largest(bag.get("domains", Counter()), MAX_DOMAINS))
    languages: dict[str, dict[str, int]] = {}
    for (language, measure), number in sorted(bag.get("languages", Counter()).items()):
        languages.setdefault(language, {})[measure] = number
    fields["languages"] = {language: LanguageTotals(**sums) for language, sums in languages.items()}
    return Distribution(**fields)


def _bag(distribution: Distribution) -> Bag:
    bag: Bag = {name: Counter(getattr(distribution, name)) for name in _COUNTED}
    bag["languages"] = Counter({(language, name): getattr(totals, name) for language, totals in distribution.languages.items() for name in _MEASURES})
    return bag


def _statistics(bags: Mapping[str, Bag]) -> VersionStatistics:
    """Of all sources; the smaller ones are joined."""
    records: Counts = Counter({source: bag["outcomes"].total() for source, bag in bags.items() if "outcomes" in bag})
    stay = [source for source in _largest(records, MAX_SOURCES) if source != OTHER]
    sources = {source: _distribution(bags[source]) for source in stay}
    rest = [bag for source, bag in bags.items() if source not in sources]
    if rest:
        sources[OTHER] = _distribution(_added(rest))
    return VersionStatistics(total=_distribution(_added(bags.values())), sources=sources)


def merged(parts: Iterable[VersionStatistics]) -> VersionStatistics:
    """Statistics of several versions together. Exact but for what each of them had already joined in ``other``."""
    by_source: dict[str, list[Bag]] = {}
    totals: list[Bag] = []
    for part in parts:
        totals.append(_bag(part.total))
        for source, distribution in part.sources.items():
            by_source.setdefault(source, []).append(_bag(distribution))
    joined = _statistics({source: _added(bags) for source, bags in by_source.items()})
    return joined.model_copy(update={"total": _distribution(_added(totals))})


def statistics_of(root: Path, version: int) -> VersionStatistics:
    """The same as was counted while the version was written, from its audit trail: also for versions whose manifest has none.

    Raises ShardCorrupt if a file of the audit trail cannot be read.
    """
    manifest = read_manifest(root, version)
    statistics = Statistics()
    for entry in manifest.documents:
        try:
            for block in _read_blocks(local(root / entry.path)):
                statistics.add(block)
        except (OSError, pa.ArrowInvalid) as error:
            raise ShardCorrupt(f"{root / entry.path} is missing or not Parquet ({error}); restore the file from a copy") from error
    return statistics.finish(manifest.created_at)


def version_statistics(root: Path, manifest: DatasetManifest) -> VersionStatistics:
    """What the manifest carries, or the same counted again."""
    return manifest.statistics or statistics_of(root, manifest.version)


def _read_blocks(path: Path) -> Iterator[pa.Table]:
    """Blocks with all COLUMNS; those that an older audit trail lacks are null."""
    with pq.ParquetFile(path) as file:
        present = [name for name in COLUMNS if name in file.schema_arrow.names]
        for batch in file.iter_batches(columns=present):
            block = pa.Table.from_batches([batch])
            for name in COLUMNS:
                if name not in present:
                    block = block.append_column(DOCUMENTS.field(name), pa.nulls(len(block), DOCUMENTS.field(name).type))
            yield block
