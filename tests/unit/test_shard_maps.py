"""Readers hold a bounded number of shards mapped, and what they gave out stays valid."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipelines.dataset import shard_maps
from pipelines.dataset.dataset import Dataset, dataset_log
from pipelines.dataset.loader import TokenRows
from pipelines.dataset.merging import merge
from pipelines.dataset.shard_maps import ShardMaps
from pipelines.dataset.shards import open_shard
from pipelines.storage import pinned
from pipelines.storage.durable import sha256_file
from pipelines.views.export import export
from pipelines.views.rows import ViewRows
from pipelines.views.selection import whole
from schemas.arrow import Split
from schemas.errors import ShardCorrupt
from tests.factories import clock, make_dataset, text_settings

NUM_SHARDS, NUM_ROWS, SEQUENCE_LENGTH = 7, 3, 32


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    for _ in range(NUM_SHARDS):
        make_dataset(root, num_rows=NUM_ROWS, num_validation_rows=1)
    return root


@pytest.fixture(autouse=True)
def few_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_maps, "MAX_MAPS", 2)


def mapped(root: Path) -> int:
    """Maps of shards under the root that this process has."""
    return sum(f"{root}/shards/" in line for line in Path("/proc/self/maps").read_text().splitlines())


@pytest.mark.parametrize("view", [False, True])
def test_a_reader_of_more_shards_than_it_may_map_reads_every_row(root: Path, view: bool) -> None:
    dataset = Dataset(root)
    expected = np.concatenate([open_shard(root / entry.path) for entry in dataset.shards(Split.TRAIN)])
    rows = ViewRows(whole(dataset)) if view else TokenRows(root, None, Split.TRAIN)
    assert mapped(root) == 0
    order = np.random.default_rng(0).permutation(NUM_SHARDS * NUM_ROWS)
    for ids in (order, np.sort(order), order[:1]):
        assert np.array_equal(rows.gather(ids), expected[ids])
        assert mapped(root) <= 2
    del rows
    assert mapped(root) == 0


def maps(root: Path) -> ShardMaps:
    return ShardMaps(Dataset(root))


def test_a_span_that_ends_with_its_file_is_read_and_one_that_ends_behind_it_is_not(root: Path) -> None:
    shard = Dataset(root).shards(Split.TRAIN)[1]
    found = maps(root).span(shard.path, NUM_ROWS - 1, 0, SEQUENCE_LENGTH)
    assert np.array_equal(found, open_shard(root / shard.path)[-1])
    with pytest.raises(ShardCorrupt, match=f"{shard.path} ends before row {NUM_ROWS - 1}, position 1, {SEQUENCE_LENGTH} tokens"):
        maps(root).span(shard.path, NUM_ROWS - 1, 1, SEQUENCE_LENGTH)


def test_the_rows_and_spans_of_each_shard_are_read_from_the_file_that_has_them_now(root: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(root, tmp_path / "root"))
    before = Dataset(other)
    shards = before.shards(Split.TRAIN)
    expected = [open_shard(root / entry.path) for entry in shards]
    opened_before = ShardMaps(before)
    settings = text_settings(other, **{"ingest.merge_shards": NUM_SHARDS, "packing.shard_rows": 200})
    assert merge(before, settings, now=clock()) is not None
    for entry in shards:
        (other / entry.path).unlink()
    for shard_maps_of in (opened_before, maps(other)):
        for entry, rows in zip(shards, expected, strict=True):
            assert np.array_equal(shard_maps_of.rows(entry.path, NUM_ROWS), rows)
            assert np.array_equal(shard_maps_of.span(entry.path, 1, 2, SEQUENCE_LENGTH), rows.reshape(-1)[SEQUENCE_LENGTH + 2 :][:SEQUENCE_LENGTH])
    numbers = [before.placement.file_of(before.placement.first_row(entry.path)) for entry in shards]
    assert all(np.array_equal(opened_before[number], rows) for number, rows in zip(numbers, expected, strict=True))


def test_a_shard_of_another_shape_than_its_manifest_promised_is_not_read(root: Path, tmp_path: Path) -> None:
    """Its bytes are those of the manifest, but its rows are not so many."""
    other = Path(shutil.copytree(root, tmp_path / "root"))
    log = dataset_log(other).path(NUM_SHARDS)
    value = json.loads(log.read_text())
    value["shards"][0]["rows"] += 1
    log.write_text(json.dumps(value))
    with pytest.raises(
        ShardCorrupt, match=rf"has shape \({NUM_ROWS}, {SEQUENCE_LENGTH}\), its manifest promised \({NUM_ROWS + 1}, {SEQUENCE_LENGTH}\)"
    ):
        maps(other)[NUM_SHARDS - 1]


def test_a_view_stays_valid_after_its_shard_gave_way(root: Path) -> None:
    shards = maps(root)
    view = shards[0]
    expected = view.copy()
    for number in range(NUM_SHARDS):
        shards[number]
    assert mapped(root) == 3
    assert np.array_equal(view, expected)
    del view
    assert mapped(root) == 2


@pytest.mark.parametrize("number", [0, 3, NUM_SHARDS - 1])
@pytest.mark.parametrize("view", [False, True])
def test_a_missing_shard_is_told_when_the_reader_is_opened(root: Path, tmp_path: Path, view: bool, number: int) -> None:
    other = Path(shutil.copytree(root, tmp_path / "root"))
    path = other / Dataset(other).shards(Split.TRAIN)[number].path
    path.unlink()
    with pytest.raises(ShardCorrupt, match=f"{path} is missing"):
        ViewRows(whole(Dataset(other))) if view else TokenRows(other, None, Split.TRAIN)


READ_WITHOUT_FILES = """
import resource, sys
from pathlib import Path
from pipelines.dataset.shards import open_shard
from schemas.errors import DatasetError
resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
try:
    open_shard(Path(sys.argv[1]))
except DatasetError as error:
    print(type(error).__name__, error)
"""


def test_a_process_without_room_for_another_map_says_so_and_blames_no_file(root: Path) -> None:
    path = root / Dataset(root).shards(Split.TRAIN)[0].path
    done = subprocess.run([sys.executable, "-c", READ_WITHOUT_FILES, str(path)], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.startswith("DatasetError") and "vm.max_map_count" in done.stdout and "restore" not in done.stdout


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


READERS: dict[str, Callable[[Path], object]] = {
    "training": lambda root: TokenRows(root, None, Split.TRAIN).gather(np.arange(NUM_SHARDS * NUM_ROWS)),
    "view": lambda root: ViewRows(whole(Dataset(root))).gather(np.arange(NUM_SHARDS * NUM_ROWS)),
    "export": lambda root: export(whole(Dataset(root)), "bin", root.parent / "exported"),
}


@pytest.mark.parametrize("reader", READERS)
def test_one_flipped_bit_in_a_shard_stops_every_reader_with_the_name_of_the_file(root: Path, tmp_path: Path, reader: str) -> None:
    other = Path(shutil.copytree(root, tmp_path / "root"))
    path = other / Dataset(other).shards(Split.TRAIN)[4].path
    flip(path)
    with pytest.raises(ShardCorrupt, match=f"{path} has SHA-256"):
        READERS[reader](other)
    flip(path)
    READERS[reader](other)


@pytest.mark.parametrize("kind", ["documents", "masks"])
@pytest.mark.parametrize("reader", READERS)
def test_one_flipped_bit_in_an_audit_trail_or_a_mask_stops_those_who_read_it(tmp_path: Path, reader: str, kind: str) -> None:
    root = tmp_path / "root"
    make_dataset(root, num_rows=NUM_ROWS * NUM_SHARDS, mask=lambda kept: kept.tail(1))
    path = root / getattr(Dataset(root).manifest, kind)[0].path
    flip(path)
    if (reader, kind) == ("training", "documents"):
        READERS[reader](root)  # reads rows of whole shards, no audit trail
        return
    with pytest.raises(ShardCorrupt, match=f"{path} has SHA-256"):
        READERS[reader](root)


def test_a_shard_that_gave_way_and_is_mapped_again_is_hashed_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []
    monkeypatch.setattr(pinned, "sha256_file", lambda path: hashed.append(path) or sha256_file(path))  # type: ignore[func-returns-value]
    monkeypatch.setattr(pinned, "_verified", set())
    for _ in range(3):
        rows = TokenRows(root, None, Split.TRAIN)
        rows.gather(np.arange(rows.num_rows))
    assert sorted(hashed) == sorted(root / entry.path for entry in Dataset(root).shards(Split.TRAIN))
