"""Statistics of a version: counted block by block while it is written, or again from its audit trail; both give the same.

Invariant: the result depends on the rows and their order, never on where blocks end; versions add up (``merged``). Memory is bounded by the
distinct values of a version, never by its text. Cost: 9 ms per block of 2,500 rows, under 1 % of preparing it.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.dataset.dataset import read_manifest
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
    "quality",
    "perplexity",
    "informativeness",
    "pii",
)
"""What is read of the documents table."""
MAX_NAME_CHARS = 120
"""Longer names of sources and domains are cut: any producer may choose them."""
_COUNTED = ("outcomes", "reasons", "domains", "pii", *HISTOGRAMS)
_MEASURES = ("documents", "chars", "tokens")
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

    def __init__(self) -> None:
        self._bags: dict[str, Bag] = {}
        self._seconds: dict[str, Counts] = {}
        """Source -> second of the Kafka timestamp -> records: the commit's time is known only at the end."""
        self._sources, self._domains = _Names(), _Names()

    def add(self, documents: pa.Table) -> None:
        """Count a block of the documents table (schemas.arrow.DOCUMENTS; only COLUMNS are read)."""
        frame = pl.from_arrow(documents.select(COLUMNS))
        assert isinstance(frame, pl.DataFrame)
        frame = frame.with_columns(self._sources.of(frame["source"]), self._domains.of(frame["domain"]))
        self._count("outcomes", frame.select("source", value="outcome"))
        named = frame.filter(pl.col("reason").is_not_null())
        self._count("reasons", named.select("source", value=pl.format("{}/{}", "outcome", "reason")))
        self._count_pii(frame)
        self._count_seconds(frame)
        self._add_kept(frame.filter(pl.col("outcome") == Outcome.KEPT))

    def finish(self, committed_at: datetime) -> VersionStatistics:
        """The statistics of a version that was committed then (freshness is measured to that moment)."""
        commit_s = int(committed_at.timestamp())
        bags = {source: dict(bag) for source, bag in self._bags.items()}
        for source, seconds in self._seconds.items():
            ages = octaves(np.array([commit_s - second for second in seconds]))
            bags[source]["freshness_s"] = _summed(zip(ages.tolist(), seconds.values(), strict=True))
        return _statistics(bags)

    def _add_kept(self, kept: pl.DataFrame) -> None:
        self._count("domains", kept.select("source", value="domain"))
        for field, bins in HISTOGRAMS.items():
            column = _SOURCE_OF.get(field, field)
            if column in kept.columns:
                self._count(field, _binned(kept.select("source", value=column), bins))
        totals = kept.group_by("source", pl.col("language").fill_null("und")).agg(
            documents=pl.len(), chars=pl.col("num_chars").sum(), tokens=pl.col("num_tokens").sum()
        )
        for source, language, *sums in totals.iter_rows():
            self._counter(source, "languages").update({(language, name): value for name, value in zip(_MEASURES, sums, strict=True)})

    def _count_pii(self, frame: pl.DataFrame) -> None:
        found = frame.select("source", "pii").filter(pl.col("pii").list.len() > 0).explode("pii").unnest("pii")
        for source, kind, number in found.group_by("source", "type").agg(pl.col("count").sum()).iter_rows():
            self._counter(source, "pii")[kind] += number

    def _count_seconds(self, frame: pl.DataFrame) -> None:
        seconds = frame.select("source", value=pl.col("timestamp_ms") // 1000).drop_nulls()
        for source, second, number in seconds.group_by("source", "value").len().iter_rows():
            self._seconds.setdefault(source, Counter())[second] += number

    def _count(self, field: str, pairs: pl.DataFrame) -> None:
        """Add (source, value) rows to a field."""
        for source, value, number in pairs.group_by("source", "value").len().iter_rows():
            self._counter(source, field)[value] += number

    def _counter(self, source: str, field: str) -> Counts:
        return self._bags.setdefault(source, {}).setdefault(field, Counter())


class _Names:
    """Names in the order in which they appear: the first MAX_DISTINCT stay, later ones are OTHER."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def of(self, column: pl.Series) -> pl.Series:
        """The column with nulls named, long names cut, and late names replaced."""
        names = column.cast(pl.String).fill_null(UNKNOWN).str.slice(0, MAX_NAME_CHARS)
        fresh = [name for name in names.unique(maintain_order=True).to_list() if name not in self._known]
        room = MAX_DISTINCT - len(self._known)
        self._known.update(fresh[:room])
        late = fresh[room:]
        return names.replace(late, [OTHER] * len(late)) if late else names


def _binned(pairs: pl.DataFrame, bins: Bins) -> pl.DataFrame:
    numbers = pairs.with_columns(pl.col("value").cast(pl.Float64).fill_nan(None)).drop_nulls("value")
    return numbers.with_columns(value=pl.Series(_BINNING[bins](numbers["value"].to_numpy()), dtype=pl.Int64))


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
            for block in _read_blocks(root / entry.path):
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
