"""A writer goes by the history instead of all manifests: it says what they say, whatever became of its files, and nothing is removed on its word."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipelines.dataset import history
from pipelines.dataset.dataset import Dataset, dataset_log, latest_version
from pipelines.dataset.gc import collect_garbage, orphans
from pipelines.dataset.history import Holds, chunk_path, load_chunks, rows_of, save_chunks
from pipelines.dataset.names import base_path, documents_path
from pipelines.runtime.crash import HISTORY_CRASH_POINTS, VARIABLE
from pipelines.storage.durable import durable_file, durable_folder
from tests.factories import make_dataset

NUM_VERSIONS = 7
SAVE = """
import sys
from pathlib import Path
from pipelines.dataset import dataset, history
history.CHUNK = 2
dataset.Dataset(Path(sys.argv[1])).save_history()
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven versions, of which the third and sixth mask documents."""
    root = tmp_path_factory.mktemp("made")
    for version in range(1, NUM_VERSIONS + 1):
        make_dataset(root, num_rows=2, mask=(lambda kept: kept.tail(1)) if version % 3 == 0 else None)
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, and chunks of two versions."""
    monkeypatch.setattr(history, "CHUNK", 2)
    return Path(shutil.copytree(made, tmp_path / "root"))


def expected(root: Path) -> list[tuple[int, int, int]]:
    rows: list[tuple[int, int, int]] = rows_of(Dataset(root).manifests()).tolist()
    return rows


def saved(root: Path) -> int:
    return len(load_chunks(root, dataset_log(root), NUM_VERSIONS))


def test_the_history_is_the_same_read_anew_loaded_and_carried_along(root: Path) -> None:
    read_anew = Dataset(root)
    assert read_anew.history.tolist() == expected(root)
    assert read_anew.versions_with(Holds.MASKS) == [3, 6]
    read_anew.save_history()
    assert (saved(root), [path.name for path in sorted((root / history.FOLDER).iterdir())]) == (6, [f"{last:08d}.bin" for last in (2, 4, 6)])
    loaded, carried = Dataset(root), Dataset(root, 1)
    for version in range(2, NUM_VERSIONS + 1):
        carried = Dataset(root, version, before=carried)
        carried.save_history()
    assert loaded.history.tolist() == carried.history.tolist() == expected(root)


def test_a_writer_goes_on_where_the_chunks_end(root: Path) -> None:
    writer = Dataset(root, 3)
    for version in itertools.count(4):
        writer.save_history()
        assert len(load_chunks(root, dataset_log(root), version)) == (version - 1) // 2 * 2
        if version > NUM_VERSIONS:
            break
        writer = Dataset(root, version, before=writer)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
        lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
        lambda path: path.write_bytes(path.with_name("00000002.bin").read_bytes()),  # of other versions
    ],
)
def test_a_chunk_that_is_not_as_it_was_written_is_passed_over_and_written_again(root: Path, damage: Callable[[Path], None]) -> None:
    Dataset(root).save_history()
    whole = chunk_path(root, 4).read_bytes()
    damage(chunk_path(root, 4))
    assert saved(root) == 2
    dataset = Dataset(root)
    assert dataset.history.tolist() == expected(root)
    dataset.save_history()
    assert chunk_path(root, 4).read_bytes() == whole
    assert saved(root) == 6


def test_a_crash_leaves_whole_chunks_and_the_next_writer_goes_on(root: Path) -> None:
    environment = os.environ | {VARIABLE: f"{HISTORY_CRASH_POINTS[0]}:2"}
    done = subprocess.run([sys.executable, "-c", SAVE, str(root)], env=environment, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert saved(root) == 4
    dataset = Dataset(root)
    assert dataset.history.tolist() == expected(root)
    dataset.save_history()
    assert saved(root) == 6


def test_nothing_is_removed_because_a_history_that_looks_whole_is_wrong(root: Path) -> None:
    lies = np.array(Dataset(root).history)
    lies["attempt"] += 1
    save_chunks(root, dataset_log(root), lies, 0)
    assert orphans(root)
    assert collect_garbage(root, grace_s=0) == []


def test_garbage_is_found_by_the_history(root: Path) -> None:
    garbage, base = documents_path(2, "f" * 12), base_path(3, "f" * 12)  # a writer may still publish the base
    for path in (garbage, base):
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).touch()
    assert orphans(root) == [base, garbage]
    assert collect_garbage(root, grace_s=0) == [garbage]


DURABLE_FOLDERS: tuple[str, ...] = ("drift", "history", "quality", "views/fine", "views/fine/files", "semantic", "semantic/embeddings/abc")
DURABLE_FOLDERS += (
    "models",
    "models/log",
    "rollout",
    "loop",
    "training/run/checkpoints",
    "tokenizer/abc",
    "lineage",
    "blobs",
    "evaluations",
    "what-comes-next-year",
)


def test_what_crashes_left_beside_the_versions_goes_when_a_person_asks_whatever_the_folder(root: Path) -> None:
    left = [f"{folder}/.tmp-00000002.json-0123456789ab" for folder in DURABLE_FOLDERS] + ["models/.tmp-run-0123456789ab", ".tmp-link-0123456789ab"]
    files = [*left[:-2], "models/.tmp-run-0123456789ab/model.bin", left[-1]]
    stay = ["quality/notes.txt", "views/fine/00000001.json"]
    for path in (*files, *stay):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    assert collect_garbage(root, grace_s=0) == collect_garbage(root, grace_s=60, by_hand=True) == []
    assert sorted(collect_garbage(root, grace_s=0, by_hand=True, dry_run=True)) == sorted(left)
    assert sorted(collect_garbage(root, grace_s=0, by_hand=True)) == sorted(left)
    assert not any((root / path).exists() for path in left)
    assert all((root / path).exists() for path in stay)


def test_what_is_being_written_stays_without_any_grace(root: Path) -> None:
    running = root / documents_path(2, "f" * 12)  # its writer is fenced, and does not know it yet
    with durable_file(running) as file, durable_folder(root / "quality/model") as folder, durable_file(root / "drift/state.json") as state:
        (folder / "weights").touch()
        assert collect_garbage(root, grace_s=0, by_hand=True) == collect_garbage(root, grace_s=0, by_hand=True, dry_run=True) == []
        file.write(b"whole")
        state.write(b"{}")
    assert running.read_bytes() == b"whole"
    assert (root / "quality/model/weights").exists()
    assert collect_garbage(root, grace_s=0, by_hand=True) == [documents_path(2, "f" * 12)]


def test_the_newest_version_is_found_from_one_that_is_known(root: Path) -> None:
    assert [latest_version(root, known) for known in (0, 1, 5, NUM_VERSIONS)] == [NUM_VERSIONS] * 4
