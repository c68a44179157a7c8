"""Garbage goes, and only garbage: what no manifest lists or can list, whatever folder it lies in, and never what somebody is writing."""

import shutil
from pathlib import Path

import pytest

from pipelines.dataset.dataset import latest_version
from pipelines.dataset.gc import collect_garbage, orphans
from pipelines.dataset.names import base_path, documents_path
from pipelines.dataset.verify import verify
from pipelines.storage.durable import durable_file, durable_folder
from tests.factories import commit_records, make_seven_versions
from tests.ingest_harness import ENGLISH, document


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_seven_versions(tmp_path_factory.mktemp("made"))


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(made, tmp_path / "root"))


def test_garbage_is_found_by_the_columns_of_the_log(root: Path) -> None:
    garbage, base = documents_path(2, "f" * 12), base_path(3, "f" * 12)  # a writer may still publish the base
    for path in (garbage, base):
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).touch()
    assert orphans(root) == [base, garbage]
    assert collect_garbage(root, grace_s=0) == [garbage]


DURABLE_FOLDERS: tuple[str, ...] = ("drift", "log/checkpoints", "quality", "views/fine", "views/fine/files", "semantic", "semantic/embeddings/abc")
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


def test_a_copy_that_takes_the_log_first_is_sound_whatever_is_committed_meanwhile(tmp_path: Path) -> None:
    root, copy = tmp_path / "root", tmp_path / "copy"
    documents: list[tuple[bytes | None, bytes | None]] = [(None, document(f"doc-{n}", f"{ENGLISH} {n * 7919}", 0).value) for n in range(60)]
    commit_records(root, documents[:30])
    shutil.copytree(root / "log", copy / "log")
    commit_records(root, documents[30:])
    collect_garbage(root, grace_s=0)
    shutil.copytree(root, copy, ignore=lambda folder, _: ["log"] if Path(folder) == root else [], dirs_exist_ok=True)
    report = verify(copy)
    assert (latest_version(copy), report.problems) == (1, [])
