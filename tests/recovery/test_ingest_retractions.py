"""Retractions are exactly once: killed anywhere, the dataset is the one of an undisturbed run, and holds nothing that was retracted."""

import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipelines.dataset.dataset import Dataset
from pipelines.dataset.loader import TokenRows
from pipelines.dataset.retractions.masks import retracted_ordinals
from pipelines.dataset.shard_maps import ShardMaps
from pipelines.dataset.verify import verify
from schemas.arrow import Split
from tests.broker_process import BrokerProcess
from tests.ingest_harness import ENGLISH, Ingest, Record, document, state

IDS = 12
POINTS = ("masks_written", "published")
MORE_POINTS = ("block_taken", "segment_written", "topic_checked", "published")
"""Where a version with retractions differs from one without; tests/recovery/test_ingest_crashes.py enumerates all."""


def records(seed: int = 3, number: int = 240) -> list[Record]:
    """Few ids, so that documents are retracted, come again and are retracted again, over versions and both partitions."""
    rng = random.Random(seed)
    made: list[Record] = []
    for _ in range(number):
        doc_id, partition = f"doc-{rng.randrange(IDS)}", rng.randrange(2)
        if rng.random() < 0.3:
            made.append(Record(None, partition, doc_id.encode()))
        else:
            made.append(document(doc_id, " ".join(rng.choices(ENGLISH.split(), k=rng.randint(20, 60))), partition))
    return made


@pytest.fixture(scope="module")
def source(broker: BrokerProcess, tmp_path_factory: pytest.TempPathFactory) -> Ingest:
    """An undisturbed run, in versions of 80 records."""
    ingest = Ingest(tmp_path_factory.mktemp("reference"), broker.bootstrap_servers, "retractions", {"ingest.max_batch_records": 80})
    ingest.publish(records())
    assert len(ingest.once()) == 3
    return ingest


def live_at_the_end(root: Path) -> set[int]:
    """Ordinals of the documents that no retraction in a later record of the audit trail names."""
    paths = [root / entry.path for manifest in Dataset(root).manifests() for entry in manifest.documents]
    rows = pl.concat([pl.read_parquet(path) for path in paths]).to_dicts()
    kept: list[str] = []
    live: set[int] = set()
    for row in rows:
        if row["outcome"] == "retracted":
            live -= {ordinal for ordinal in live if kept[ordinal] == row["doc_id"]}
        elif row["outcome"] == "kept":
            live.add(len(kept))
            kept.append(row["doc_id"])
    return live


def test_the_masks_are_the_documents_that_a_later_retraction_names(source: Ingest) -> None:
    dataset = Dataset(source.root)
    live, num_kept = live_at_the_end(source.root), dataset.manifest.totals.outcomes["kept"]  # type: ignore[index]
    assert sorted(live) == sorted(set(range(num_kept)) - set(retracted_ordinals(dataset).tolist()))
    assert 0 < len(live) < num_kept
    assert any(manifest.masks for manifest in dataset.manifests()[1:])
    assert verify(source.root).problems == []


def test_a_retracted_document_is_read_from_older_versions_and_not_from_newer_ones(source: Ingest) -> None:
    mask = next(row for version in state(source.root)[1:] for row in version["masks"] if row["version"] == 1 and "-train-" in row["shard"])
    retracted_in = next(number for number, version in enumerate(state(source.root), 1) if mask in version["masks"])
    entry = next(entry for entry in Dataset(source.root, 1).manifest.documents)
    row = next(
        row
        for row in pl.read_parquet(source.root / entry.path).to_dicts()
        if row["doc_id"] == mask["doc_id"] and row["start"] == mask["start"] and row["row"] == mask["row"]
    )
    tokens = ShardMaps(Dataset(source.root)).span(row["shard"], row["row"], row["start"], row["length"])[:-1].tobytes()

    def text_of(version: int) -> bytes:
        rows = TokenRows(source.root, version, Split.TRAIN)
        return rows.gather(np.arange(rows.num_rows)).astype(np.uint16).tobytes()

    assert tokens in text_of(retracted_in - 1)
    assert tokens not in text_of(retracted_in)
    assert tokens not in text_of(3)


@pytest.mark.parametrize("points", [POINTS, pytest.param(MORE_POINTS, marks=pytest.mark.slow)], ids=["two", "more"])
def test_crashes_while_retractions_are_committed_change_nothing(source: Ingest, tmp_path: Path, points: tuple[str, ...]) -> None:
    reference: list[dict[str, Any]] = state(source.root)
    ingest = Ingest(tmp_path / "data", source.bootstrap_servers, source.prefix, source.overrides)
    assert ingest.run(crash_at="published").returncode == -signal.SIGKILL
    for point in points:
        crashed = ingest.run(crash_at=point)
        assert crashed.returncode == -signal.SIGKILL, crashed.stderr
        assert state(ingest.root) == reference[: 1 + (point == "published")]
    ingest.once()
    assert state(ingest.root) == reference
    assert verify(ingest.root).problems == []
