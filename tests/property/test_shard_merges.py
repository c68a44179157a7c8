"""Commits, retractions and merges in any order: every reader gets the same as from a dataset without merges."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.dataset.dataset import Dataset
from pipelines.dataset.gc import collect_garbage
from pipelines.dataset.loader import TokenRows
from pipelines.dataset.merging import merge
from pipelines.dataset.placement import FIRST_ROW, Placement
from pipelines.dataset.shard_maps import ShardMaps
from pipelines.dataset.verify import verify
from pipelines.views.export import export
from pipelines.views.rows import ViewRows
from pipelines.views.selection import whole
from schemas.arrow import VERSIONS, Outcome, Split
from tests.factories import clock, commit_records, text_settings

TEXTS = [
    f"Grain number {index} is ground between two stones that people cut by hand long ago, 石磨 {index}. " * (1 + index % 3) for index in range(9)
]
ALWAYS = (None, json.dumps({"id": "always", "text": "The mill stands at the end of the valley, where the water comes down from the hill."}).encode())
records = st.one_of(
    st.integers(0, 8).map(lambda number: (None, json.dumps({"id": f"d{number}", "text": TEXTS[number]}).encode())),
    st.text("磨坊abc ", min_size=20, max_size=80).map(lambda text: (None, json.dumps({"text": text}).encode())),
    st.integers(0, 8).map(lambda number: (f"d{number}".encode(), None)),
)


class Step(NamedTuple):
    """A batch, and the merges and the garbage collection in the other root after it."""

    batch: list[tuple[bytes | None, bytes | None]]
    num_merges: int
    is_collected: bool


steps = st.lists(st.builds(Step, st.lists(records, min_size=1, max_size=6), st.integers(0, 2), st.booleans()), min_size=2, max_size=7)


def seen(root: Path, version: int, folder: Path) -> dict[str, Any]:
    """What readers get from a version; paths contain the attempt, which is the version number here."""
    dataset = Dataset(root, version)
    found: dict[str, Any] = {}
    for split in Split:
        rows, view = TokenRows(root, version, split), ViewRows(whole(dataset), split)
        order = np.random.default_rng(0).permutation(rows.num_rows)
        tokens, masked = rows.gather_masked(order)
        found[split] = [tokens.tolist(), None if masked is None else masked.tolist(), view.gather(np.arange(view.num_rows)).tolist()]
    kept = pl.read_parquet(dataset.paths("documents")).filter(pl.col("outcome") == Outcome.KEPT)
    maps = ShardMaps(dataset)
    found["spans"] = [maps.span(*row).tolist() for row in kept.select("shard", "row", "start", "length").iter_rows()]
    if len(kept) > len(dataset.paths("masks")):
        told = export(whole(dataset), "bin", folder)
        found["export"] = [file["sha256"] for split in told["splits"].values() for file in split["files"]]
    return found | {"totals": dataset.manifest.totals.model_dump()}


def with_documents(root: Path) -> list[int]:
    return [manifest.version for manifest in Dataset(root).manifests() if not manifest.merged]


@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(story=steps, together=st.integers(2, 3), shard_rows=st.integers(8, 60))
def test_every_reader_of_every_version_gets_the_same_with_and_without_merges(
    tmp_path_factory: pytest.TempPathFactory, story: list[Step], together: int, shard_rows: int
) -> None:
    folder = tmp_path_factory.mktemp("merges")
    plain, merged = folder / "plain", folder / "merged"
    own = {root: text_settings(root, **{"packing.shard_rows": shard_rows, "ingest.merge_shards": together}) for root in (plain, merged)}
    for number, step in enumerate(story):
        batch = [*step.batch, *([ALWAYS] if number == 0 else [])]
        commit_records(plain, batch, own[plain])
        commit_records(merged, batch, own[merged])
        for _ in range(step.num_merges):
            merge(Dataset(merged), own[merged], now=clock())
        if step.is_collected:
            collect_garbage(merged, grace_s=0)
    assert verify(plain).problems == verify(merged).problems == []
    pairs = list(zip(with_documents(plain), with_documents(merged), strict=True))
    for one, other in pairs:
        assert seen(plain, one, folder / f"{one}-plain") == seen(merged, other, folder / f"{one}-merged")
        manifests = [Dataset(root, version).manifest for root, version in ((plain, one), (merged, other))]
        assert manifests[0].statistics == manifests[1].statistics
        assert [entry.sha256 for entry in manifests[0].shards] == [entry.sha256 for entry in manifests[1].shards]


@st.composite
def placements(draw: st.DrawFn) -> tuple[list[int], list[tuple[int, int, int]]]:
    """Rows of shards, each its own version, and merges of files [start, end) of those that there are, each after so many shards."""
    rows = draw(st.lists(st.integers(1, 5), min_size=1, max_size=12))
    return rows, draw(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 6), st.integers(2, 6)), max_size=8))


@settings(max_examples=200, deadline=None)
@given(case=placements())
def test_files_are_what_replaying_the_merges_one_by_one_leaves(case: tuple[list[int], list[tuple[int, int, int]]]) -> None:
    rows, wanted = case
    versions: list[dict[str, Any]] = []
    files: list[tuple[str, int, int]] = []  # path, first row, rows
    for number, count in enumerate(rows):
        first = sum(rows[:number])
        versions.append({"shards": [entry_of(f"s{number}", count)]})
        files.append((f"s{number}", first, count))
        for after, start, length in wanted:
            parts = files[start : start + length]
            if after == number and len(parts) > 1:
                path, total = f"m{len(versions)}", sum(part[2] for part in parts)
                versions.append({"merged": [entry_of(path, total) | {"first_row": parts[0][1], "copies": 1}]})
                files[start : start + length] = [(path, parts[0][1], total)]
    placement = Placement(pa.Table.from_pylist([row_of_version(version) for version in versions], schema=VERSIONS))
    assert list(zip(placement.files["path"].to_pylist(), placement.first_rows.tolist(), placement.files["rows"].to_pylist(), strict=True)) == files
    for number in range(len(rows)):
        first = sum(rows[:number])
        path, at = placement.place_of(f"s{number}")
        assert (path, first - at) in [(name, begin) for name, begin, _ in files]
    listed = {entry["path"] for version in versions for entries in version.values() for entry in entries}
    assert set(placement.replaced()) == listed - {path for path, _, _ in files}


def entry_of(path: str, rows: int) -> dict[str, Any]:
    return {"path": path, "rows": rows, "size_bytes": 1, "sha256": b"0" * 32, "split": "train", "tokens": rows, "documents": 1}


def row_of_version(lists: dict[str, Any]) -> dict[str, Any]:
    empty: dict[str, Any] = {name: [] for name in VERSIONS.names} | dict.fromkeys(("attempt", "num_records", "num_tokens", "num_losses"), 0)
    return empty | {"created_at": clock(), "outcomes": dict.fromkeys(map(str, Outcome), 0)} | lists


def test_validation_rows_are_numbered_behind_all_train_rows() -> None:
    assert FIRST_ROW[Split.TRAIN] == 0 and FIRST_ROW[Split.VALIDATION] * 2**20 < 2**62
