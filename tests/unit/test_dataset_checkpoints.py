"""Checkpoints of the log say what the manifests say, whatever became of their files, and nothing is removed on their word."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.dataset import checkpoints
from pipelines.dataset.checkpoints import Range, checkpoint_path, cover, listed, load, load_checkpoints, save_checkpoint
from pipelines.dataset.columns import columns_of, row_of
from pipelines.dataset.dataset import Dataset, dataset_log, latest_version, read_manifest
from pipelines.dataset.gc import collect_garbage, orphans
from pipelines.dataset.history import Holds
from pipelines.dataset.retractions.masks import retracted_ordinals, span_mask
from pipelines.runtime.crash import CHECKPOINT_CRASH_POINTS, VARIABLE
from schemas.arrow import FILE_LISTS, VERSIONS, Outcome, Split
from schemas.errors import DatasetNotFound
from schemas.lost_offsets import AcceptedLoss, LossKind, LostOffsets
from schemas.manifest import DatasetManifest, OffsetRange
from tests.factories import make_dataset, make_seven_versions

NUM_VERSIONS = 7
SAVE = """
import sys
from pathlib import Path
from pipelines.dataset import checkpoints, dataset
checkpoints.GROWTH = 2
for version in map(int, sys.argv[2:]):
    dataset.Dataset(Path(sys.argv[1]), version).save_checkpoints()
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_seven_versions(tmp_path_factory.mktemp("made"))


@pytest.fixture
def root(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, and checkpoints whose lengths are powers of two."""
    monkeypatch.setattr(checkpoints, "GROWTH", 2)
    return Path(shutil.copytree(made, tmp_path / "root"))


def expected(root: Path, version: int = NUM_VERSIONS) -> list[dict[str, Any]]:
    return [row_of(read_manifest(root, number)) for number in range(1, version + 1)]


def saved(root: Path) -> list[tuple[int, int]]:
    """Versions that lie in checkpoints as they should."""
    return [(checkpoint.range.first, checkpoint.range.last) for checkpoint in load_checkpoints(root, dataset_log(root), NUM_VERSIONS)]


def test_columns_say_what_the_manifests_say_read_anew_loaded_and_carried_along(root: Path) -> None:
    read_anew = Dataset(root)
    assert read_anew.columns.to_pylist() == expected(root)
    read_anew.save_checkpoints()
    assert saved(root) == [(1, 4), (5, 6)]
    carried = Dataset(root, 1)
    for version in range(2, NUM_VERSIONS + 1):
        carried = Dataset(root, version, before=carried)
        carried.save_checkpoints()
        assert carried.columns.to_pylist() == expected(root, version)
    for version in range(1, NUM_VERSIONS + 1):
        assert Dataset(root, version).columns.to_pylist() == expected(root, version)


def test_what_all_versions_hold_is_answered_from_the_columns_alone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifests = [read_manifest(root, version) for version in range(1, NUM_VERSIONS)]
    Dataset(root, 6).save_checkpoints()
    dataset = Dataset(root, 6)
    monkeypatch.setattr(Dataset, "read", lambda self, version: pytest.fail(f"manifest {version} was read"))
    for name in FILE_LISTS:
        assert dataset.paths(name) == [root / entry.path for manifest in manifests for entry in getattr(manifest, name)]
    assert dataset.shards(Split.TRAIN) == [entry for manifest in manifests for entry in manifest.shards if entry.split == Split.TRAIN]
    assert dataset.entries("documents", after=4) == [entry for manifest in manifests[4:] for entry in manifest.documents]
    assert dataset.paths("documents", [2, 5]) == [root / entry.path for number in (2, 5) for entry in manifests[number - 1].documents]
    assert dataset.num_rows(Split.TRAIN) == 12
    assert len(retracted_ordinals(dataset)) == 2 and span_mask(dataset) is not None
    assert dataset.versions_with(Holds.MASKS) == [3, 6]
    assert dataset.history["num_kept"].tolist() == [manifest.outcomes[Outcome.KEPT] for manifest in manifests]
    assert dataset.history["attempt"].tolist() == [int(manifest.attempt, 16) for manifest in manifests]


@pytest.mark.parametrize("growth", [2, 3, 16])
def test_checkpoints_are_few_and_cover_all_but_the_newest_versions(growth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "GROWTH", growth)
    for version in (*range(1, 200), growth**5 - 1, growth**5, 99_999):
        ranges = cover(version)
        ends = [0, *(versions.last for versions in ranges)]
        assert [versions.first - 1 for versions in ranges] == ends[:-1] and version - growth < ends[-1] <= version
        assert len(ranges) <= (growth - 1) * 6 or version >= growth**6


def test_a_writer_that_goes_on_keeps_few_files(root: Path) -> None:
    writer = Dataset(root, 1)
    for version in itertools.count(2):
        writer.save_checkpoints()
        assert listed(root) == cover(version - 1)
        if version > NUM_VERSIONS:
            break
        writer = Dataset(root, version, before=writer)


def test_a_slower_writer_removes_no_checkpoint_of_a_faster_one(root: Path) -> None:
    Dataset(root).save_checkpoints()
    Dataset(root, 2).save_checkpoints()
    assert saved(root) == [(1, 4), (5, 6)]


def test_other_files_beside_the_checkpoints_are_none(root: Path) -> None:
    Dataset(root).save_checkpoints()
    for name in ("00000001-00000008.arrow.bak", ".tmp-00000001-00000008.arrow-0123456789ab", "00000001-00000008.arrow\n"):
        (root / checkpoints.FOLDER / name).touch()
    assert listed(root) == cover(NUM_VERSIONS)


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(flipped(path.read_bytes(), 0)),
        lambda path: path.write_bytes(flipped(path.read_bytes(), len(path.read_bytes()) // 2)),
        lambda path: path.write_bytes(path.with_name("00000005-00000006.arrow").read_bytes()),  # of other versions
    ],
)
def test_a_checkpoint_that_is_not_as_it_was_written_is_passed_over_and_written_again(root: Path, damage: Callable[[Path], None]) -> None:
    Dataset(root).save_checkpoints()
    path = checkpoint_path(root, Range(1, 4))
    damage(path)
    assert saved(root) == [(5, 6)]
    dataset = Dataset(root)
    assert dataset.columns.to_pylist() == expected(root)
    dataset.save_checkpoints()
    assert saved(root) == [(1, 4), (5, 6)]
    assert Dataset(root).columns.to_pylist() == expected(root)


def test_a_checkpoint_under_the_name_of_fewer_versions_or_with_other_columns_is_passed_over(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, path = dataset_log(root), checkpoint_path(root, Range(1, 4))
    Dataset(root).save_checkpoints()
    shutil.copy(path, checkpoint_path(root, Range(3, 4)))
    assert load(root, log, Range(3, 4)) is None
    path.unlink()
    other = pa.schema([field for field in VERSIONS if field.name != "num_losses"])
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "VERSIONS", other)
        save_checkpoint(root, log, Range(1, 4), Dataset(root, 4).columns.select(other.names))
    assert load(root, log, Range(1, 4)) is None
    assert Dataset(root).columns.to_pylist() == expected(root)


def test_checkpoints_of_before_shards_were_merged_are_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = pa.schema([field for field in VERSIONS if field.name != "merged"])
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "VERSIONS", before)
        save_checkpoint(root, dataset_log(root), Range(1, 4), Dataset(root, 4).columns.select(before.names))
    assert saved(root) == [(1, 4)]
    assert Dataset(root).columns.to_pylist() == expected(root)
    Dataset(root).save_checkpoints()
    assert Dataset(root).columns.to_pylist() == expected(root)


def test_checkpoints_of_another_log_are_passed_over(root: Path, tmp_path: Path) -> None:
    Dataset(root).save_checkpoints()
    for _ in range(4):
        make_dataset(tmp_path / "other", num_rows=3)
    shutil.copytree(root / checkpoints.FOLDER, tmp_path / "other" / checkpoints.FOLDER)
    other = Dataset(tmp_path / "other")
    assert (other.version, other.columns.to_pylist()) == (4, expected(tmp_path / "other", 4))


def test_checkpoints_of_a_log_that_was_restored_and_went_on_differently_are_passed_over(root: Path) -> None:
    Dataset(root).save_checkpoints()
    other = read_manifest(root, 4).model_copy(update={"attempt": "a" * 12})
    for version in range(4, NUM_VERSIONS + 1):
        dataset_log(root).path(version).unlink()
    dataset_log(root).publish(4, other.model_dump_json().encode())
    assert Dataset(root).columns.to_pylist() == expected(root, 4)


def test_a_checkpoint_of_another_format_is_passed_over(root: Path) -> None:
    log, path, body = dataset_log(root), checkpoint_path(root, Range(1, 4)), b"another format"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(checkpoints._digest(memoryview(body), log, Range(1, 4)).ljust(checkpoints.HEADER_BYTES, b"\0") + body)
    assert load(root, log, Range(1, 4)) is None
    assert Dataset(root).columns.to_pylist() == expected(root)


@pytest.mark.parametrize("point", [f"{name}:{visit}" for name in CHECKPOINT_CRASH_POINTS for visit in (1, 2)])
def test_a_crash_leaves_whole_checkpoints_and_the_next_writer_goes_on(root: Path, point: str) -> None:
    command = [sys.executable, "-c", SAVE, str(root), "2", "3", "4", "6", "7"]
    done = subprocess.run(command, env=os.environ | {VARIABLE: point}, check=False, timeout=120)
    assert done.returncode == (-signal.SIGKILL if point != "checkpoint_removed:2" else 0)
    dataset = Dataset(root)
    assert dataset.columns.to_pylist() == expected(root)
    dataset.save_checkpoints()
    assert (saved(root), listed(root)) == ([(1, 4), (5, 6)], [(1, 4), (5, 6)])


def test_a_reader_whose_checkpoints_a_writer_removes_meanwhile_lists_them_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Dataset(root, 2).save_checkpoints()
    stale = listed(root)
    Dataset(root).save_checkpoints()
    listings = iter([stale, stale])
    monkeypatch.setattr(checkpoints, "listed", lambda folder: next(listings, None) or listed(folder))
    assert saved(root) == [(1, 4), (5, 6)]


def test_nothing_is_removed_because_a_checkpoint_that_looks_whole_is_wrong(root: Path) -> None:
    rows = [row | {"attempt": row["attempt"] + 1} for row in expected(root, 4)]
    save_checkpoint(root, dataset_log(root), Range(1, 4), pa.Table.from_pylist(rows, schema=VERSIONS))
    assert orphans(root)
    assert collect_garbage(root, grace_s=0) == []


def test_the_newest_version_is_found_from_one_that_is_known(root: Path) -> None:
    assert [latest_version(root, known) for known in (0, 1, 5, NUM_VERSIONS)] == [NUM_VERSIONS] * 4


def test_a_log_with_a_hole_behind_its_checkpoints_is_not_taken_for_a_shorter_one(root: Path) -> None:
    Dataset(root, 4).save_checkpoints()
    assert latest_version(root) == NUM_VERSIONS
    dataset_log(root).path(5).unlink()
    assert latest_version(root) == NUM_VERSIONS
    with pytest.raises(DatasetNotFound, match="no entry 5"):
        Dataset(root).columns  # noqa: B018
    for version in (6, 7):
        dataset_log(root).path(version).unlink()
    assert latest_version(root) == 4
    dataset_log(root).path(4).unlink()  # the checkpoint knows a version that is not there any more
    assert latest_version(root) == 3
    assert Dataset(root).columns.to_pylist() == expected(root, 3)


def with_offsets(manifest: DatasetManifest, **ends: list[int]) -> DatasetManifest:
    offsets = {topic: {number: OffsetRange(start=end, end=end) for number, end in enumerate(numbers)} for topic, numbers in ends.items()}
    return manifest.model_copy(update={"offsets": offsets})


def test_the_offsets_of_all_versions_come_from_those_where_partitions_began_and_ended(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = read_manifest(root, 1)
    ends: list[dict[str, list[int]]] = [{"a": [1]}, {"a": [2]}, {"a": [3, 7]}, {"b": [5]}, {"b": [6]}, {"a": [4, 8]}, {"a": [9, 9, 0]}]
    manifests = [with_offsets(first, **partitions) for partitions in ends]
    dataset = Dataset(root)
    dataset.columns = columns_of(manifests)
    read: list[int] = []

    def noted(dataset: Dataset, version: int) -> DatasetManifest:
        read.append(version)
        return manifests[version - 1]

    monkeypatch.setattr(Dataset, "read", noted)
    expected = {"a": {0: (1, 9), 1: (7, 9), 2: (0, 0)}, "b": {0: (5, 6)}}
    assert {topic: {number: (span.start, span.end) for number, span in spans.items()} for topic, spans in dataset.offsets().items()} == expected
    assert read == [1, 2, 3, 4, 5, 6, 7]
    dataset.columns = columns_of([manifests[0]] * 3 + [manifests[4]] * 3 + [manifests[1]])
    read.clear()
    dataset.offsets()
    assert read == [1, 4, 6, 7]


def test_the_offsets_of_all_versions_hold_what_was_read_before_a_loss_that_was_accepted(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = read_manifest(root, 1)
    loss = LostOffsets.model_construct(topic="a", partition=0, kind=LossKind.RECREATED, expected=30)
    accepted = AcceptedLoss.model_construct(by="ann", reason="retention", lost=[loss])
    manifests = [with_offsets(first, a=[end]) for end in (10, 20, 30, 0, 5, 7, 8)]  # the topic was created again after version 3
    manifests[3] = manifests[3].model_copy(update={"accepted_loss": accepted})
    dataset = Dataset(root)
    dataset.columns = columns_of(manifests)
    monkeypatch.setattr(Dataset, "read", lambda self, version: manifests[version - 1])
    assert dataset.offsets()["a"][0] == OffsetRange(start=0, end=30)
