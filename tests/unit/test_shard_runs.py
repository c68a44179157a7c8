"""Which shards are merged next, and which merged files verification believes: pure functions of where the rows of all shards lie."""

from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.dataset import merging
from pipelines.dataset.merging import due_runs
from pipelines.dataset.names import merged_path
from pipelines.dataset.placement import Placement
from pipelines.dataset.verify_shards import ShardChecks
from schemas.arrow import VERSIONS, Split
from schemas.manifest import DatasetManifest, MergedShard
from tests.factories import make_dataset
from tests.property.test_shard_merges import entry_of, row_of_version

TOGETHER = 4


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> DatasetManifest:
    return make_dataset(tmp_path_factory.mktemp("made"), num_rows=1)


def placement_of(rows: list[int], merged: list[tuple[int, int]] | None = None) -> Placement:
    """Train shards of so many rows, a version each, and merged files (first row, rows)."""
    versions = [row_of_version({"shards": [entry_of(f"s{number}", count)]}) for number, count in enumerate(rows)]
    files = [entry_of(f"m{first}", count) | {"first_row": first, "copies": 1} for first, count in merged or []]
    return Placement(pa.Table.from_pylist([*versions, *(row_of_version({"merged": [file]}) for file in files)], schema=VERSIONS))


@pytest.mark.parametrize(
    ("rows", "shard_rows", "expected"),
    [
        ([2] * 10, 8, []),  # a fourth of a shard is not small
        ([2] * 10, 9, [(0, 4)]),
        ([2] * 10, 10, [(0, 5)]),
        ([2] * 3, 100, []),
        ([2] * 4, 100, [(0, 4)]),
        ([50, 2, 2, 2, 2, 50], 100, [(50, 4)]),
        ([2, 2, 2, 50, 2, 2, 2, 2], 100, [(56, 4)]),
        ([50] * 6, 100, []),
    ],
)
def test_a_run_is_small_files_in_a_row_as_many_as_a_shard_holds(rows: list[int], shard_rows: int, expected: list[tuple[int, int]]) -> None:
    runs = due_runs(placement_of(rows), TOGETHER, shard_rows)
    assert [(run.first_row, len(run.parts)) for run in runs] == expected


def test_a_run_is_bounded_and_takes_files_that_were_copied_equally_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "MAX_PARTS", 5)
    assert [len(run.parts) for together in (4, 7) for run in due_runs(placement_of([2] * 10), together, 1_000)] == [5, 7]
    (run,) = due_runs(placement_of([2] * 10, [(0, 6), (6, 6)]), 2, 1_000)
    assert ([part.path for part in run.parts], run.copies) == (["m0", "m6"], 1)
    (run,) = due_runs(placement_of([2] * 10, [(0, 6), (6, 6)]), 3, 1_000)
    assert ([part.path for part in run.parts], run.copies) == (["s6", "s7", "s8", "s9"], 0)


@pytest.mark.parametrize(
    ("first_row", "rows", "documents", "version", "begun_for", "is_right"),
    [
        (2, 4, 2, 5, 5, True),
        (2, 4, 2, 5, 4, True),  # versions may have passed it
        (2, 4, 2, 5, 6, False),
        (1, 4, 2, 5, 5, False),  # as many rows as two shards have, but not theirs
        (2, 3, 2, 5, 5, False),
        (2, 4, 3, 5, 5, False),
        (4, 4, 2, 4, 4, False),  # rows of the version itself
        (8, 4, 0, 5, 5, False),  # rows of no version
    ],
)
def test_a_merged_file_stands_for_whole_shards_of_earlier_versions(
    manifest: DatasetManifest, tmp_path: Path, first_row: int, rows: int, documents: int, version: int, begun_for: int, is_right: bool
) -> None:
    checks = ShardChecks(tmp_path, placement_of([2, 2, 2, 2]))
    path, place = merged_path(begun_for, Split.TRAIN, "a" * 12), {"split": "train", "first_row": first_row, "copies": 1}
    counts = {"rows": rows, "tokens": rows, "documents": documents, "size_bytes": 1}
    entry = MergedShard.model_validate({"path": path, "sha256": "0" * 64} | place | counts)
    problems = list(checks.merged_problems(manifest.model_copy(update={"version": version}), entry))
    what = f"rows {first_row} to {first_row + rows - 1} are not those of whole shards of earlier versions"
    assert [problem[1] for problem in problems] == ([] if is_right else [what])


def test_a_row_of_a_merged_shard_has_its_place_in_the_merged_file() -> None:
    placement = placement_of([2] * 10, [(0, 6)])
    assert [placement.place_of(shard, 1) for shard in ("s2", "m0", "s7")] == [("m0", 5), ("m0", 1), ("s7", 1)]
