"""Statistics of versions: what is counted, in which bins, and that it can be counted again and added up."""

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines.dataset.dataset import Dataset
from pipelines.dataset.statistics import COLUMNS, Statistics, merged, octaves, quarter_octaves, statistics_of, twentieths
from schemas.arrow import DOCUMENTS, Outcome
from schemas.statistics import MAX_DOMAINS, MAX_SOURCES, OTHER, Bins, VersionStatistics, lower_bound
from tests.factories import commit_records
from tests.ingest_harness import sample_records

COMMIT = datetime(2026, 1, 1, tzinfo=UTC)


def documents(rows: list[dict[str, Any]]) -> pa.Table:
    """A documents table; what a row does not say is null, but for its position and outcome."""
    full = [{"topic": "t", "partition": 0, "offset": number, "outcome": "kept", **row} for number, row in enumerate(rows)]
    return pa.table({field.name: pa.array([row.get(field.name) for row in full], field.type) for field in DOCUMENTS}, schema=DOCUMENTS)


def counted(*blocks: pa.Table) -> VersionStatistics:
    statistics = Statistics()
    for block in blocks:
        statistics.add(block)
    return statistics.finish(COMMIT)


def random_rows(number: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [
        {
            "outcome": rng.choice(["kept", "rejected", "duplicate", "dead"]),
            "reason": rng.choice([None, "too_short", "near"]),
            "language": rng.choice(["en", "zh", None]),
            "num_tokens": rng.randrange(1, 5000),
            "num_chars": rng.randrange(0, 20_000),
            "timestamp_ms": int(COMMIT.timestamp() * 1000) - rng.randrange(10**8),
            "source": rng.choice([None, "web", "books", *map(str, range(30))]),
            "domain": f"{rng.randrange(60)}.example",
            "quality": rng.random(),
            "perplexity": 10 ** (6 * rng.random()),
            "pii": rng.choice([None, [], [{"type": "email", "count": 2}, {"type": "phone", "count": 1}]]),
        }
        for _ in range(number)
    ]


def test_each_field_counts_what_it_says() -> None:
    seen = int((COMMIT - timedelta(seconds=5)).timestamp() * 1000)
    text = {
        "language": "zh",
        "num_chars": 4,
        "num_tokens": 3,
        "timestamp_ms": seen,
        "source": "web",
        "domain": "a.example",
        "quality": 1.0,
        "num_replaced": 1,
    }
    rejected = {"outcome": "rejected", "reason": "pii/email", "num_chars": 9, "language": "en", "pii": [{"type": "email", "count": 2}]}
    found = counted(documents([text, text, rejected, {"outcome": "control"}]))
    total = found.total
    assert total.outcomes == {Outcome.KEPT: 2, Outcome.REJECTED: 1, Outcome.CONTROL: 1}
    assert total.reasons == {"rejected/pii/email": 1}
    assert total.languages["zh"].model_dump() == {"documents": 2, "chars": 8, "tokens": 6, "replaced": 2}
    assert list(total.languages) == ["zh"]
    assert (total.chars, total.tokens, total.quality, total.freshness_s) == ({3: 2}, {2: 2}, {19: 2}, {3: 2})
    assert (total.domains, total.pii, total.perplexity) == ({"a.example": 2}, {"email": 2}, {})
    assert {name: part.num_records for name, part in found.sources.items()} == {"web": 2, "unknown": 2}


def test_counts_do_not_depend_on_where_blocks_end() -> None:
    table = documents(random_rows(500))
    assert counted(table) == counted(*(table.slice(start, 37) for start in range(0, 500, 37)))


def test_statistics_survive_json() -> None:
    found = counted(documents(random_rows(200)))
    assert VersionStatistics.model_validate_json(found.model_dump_json()) == found


def test_versions_add_up() -> None:
    first, second = documents(random_rows(100, 1)), documents(random_rows(150, 2))
    both, together = merged([counted(first), counted(second)]), counted(first, second)
    assert both.total.model_dump(exclude={"domains"}) == together.total.model_dump(exclude={"domains"})
    assert sum(both.total.domains.values()) == sum(together.total.domains.values())
    assert sum(part.num_records for part in both.sources.values()) == 250


def test_sources_and_domains_are_bounded_and_nothing_is_lost() -> None:
    rows = [{"source": f"s{number % 40}", "domain": "x" * 500 + str(number)} for number in range(200)] + [{"source": "large"}] * 50
    found = counted(documents(rows))
    assert len(found.sources) == MAX_SOURCES + 1 and "large" in found.sources
    assert found.sources[OTHER].num_records == 200 - 5 * (MAX_SOURCES - 1)
    assert max(map(len, found.total.domains)) <= 120 and len(found.total.domains) <= MAX_DOMAINS + 1
    assert sum(found.total.domains.values()) == 250


@pytest.mark.parametrize(("bins", "binned"), [(Bins.OCTAVES, octaves), (Bins.QUARTER_OCTAVES, quarter_octaves), (Bins.TWENTIETHS, twentieths)])
def test_a_value_lies_between_its_bins_bounds(bins: Bins, binned: Any) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2**40, 500) if bins is Bins.OCTAVES else rng.random(500) * (1 if bins is Bins.TWENTIETHS else 10**6)
    for value, number in zip(values, binned(values), strict=True):
        assert lower_bound(bins, int(number)) <= value < lower_bound(bins, int(number) + 1)


def test_scores_out_of_range_lie_in_the_outermost_bins() -> None:
    found = counted(documents([{"perplexity": value, "quality": value} for value in (float("inf"), -3.0, float("nan"))]))
    assert (sorted(found.total.perplexity.values()), found.total.quality) == ([1, 1], {0: 1, 19: 1})


def test_an_audit_trail_gives_the_same_statistics_as_were_counted_while_it_was_written(tmp_path: Path) -> None:
    for part in (sample_records(120), sample_records(90, seed=1)):
        commit_records(tmp_path, [(record.key, record.value) for record in part])
    for manifest in Dataset(tmp_path).manifests():
        again = statistics_of(tmp_path, manifest.version)
        assert again.total.outcomes == {outcome: count for outcome, count in manifest.outcomes.items() if count}
        assert again.total.reasons == manifest.reasons
        assert sum(sums.tokens for sums in again.total.languages.values()) == manifest.num_tokens
        assert manifest.statistics == again


def test_timestamps_that_cannot_be_true_disturb_nothing() -> None:
    rows = [{"timestamp_ms": value, "source": f"s{index % 3000}"} for index, value in enumerate([-(2**63), -1, 0, 2**63 - 1] * 1500)]
    found = counted(documents(rows)).total
    assert found.freshness_s == {0: 1500, 31: 4500}


def test_an_empty_block_counts_nothing() -> None:
    assert counted(documents([])).total.num_records == 0
    assert set(COLUMNS) <= set(DOCUMENTS.names)
