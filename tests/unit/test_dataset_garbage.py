"""Garbage goes, and only garbage: what no manifest lists or can list, whatever folder it lies in, and never what somebody is writing."""

import os
import shutil
from pathlib import Path

import pytest

from pipelines.dataset.dataset import Dataset, latest_version
from pipelines.dataset.gc import collect_garbage, orphans
from pipelines.dataset.names import base_path, documents_path
from pipelines.dataset.verify import verify
from pipelines.storage.commit_log import CommitLog
from pipelines.storage.durable import durable_file, durable_folder
from pipelines.storage.model_log import MODEL_LOG
from pipelines.tokenizers.folders import CARD_FILE
from tests.factories import commit_records, make_seven_versions
from tests.ingest_harness import ENGLISH, document
from tests.unit.test_dataset_audit import model_manifest


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
    files = [*left[:-2], "models/.tmp-run-0123456789ab/model.bin", "models/.tmp-run-0123456789ab/.tmp-part-0123456789ab", left[-1]]
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


def touched(root: Path, paths: list[str]) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def test_files_of_a_version_that_may_still_come_stay_also_when_a_person_asks(root: Path) -> None:
    names = "log/.tmp-0000000{}.json-0123456789ab", "shards/.tmp-v0000000{}-train-0000-0123456789ab.arrow-0123456789ab"
    gone, stay = ([name.format(version) for name in names] for version in (7, 8))
    stay.append(documents_path(8, "f" * 12))
    touched(root, [*gone, *stay])
    assert sorted(collect_garbage(root, grace_s=0)) == sorted(gone)
    assert collect_garbage(root, grace_s=0, by_hand=True) == []
    assert all((root / path).exists() for path in stay)


def test_files_of_a_first_version_stay_because_all_of_them_may_still_come(tmp_path: Path) -> None:
    paths = [base_path(1, "f" * 12), documents_path(1, "f" * 12)]
    touched(tmp_path, paths)
    assert sorted(orphans(tmp_path)) == sorted(paths)
    assert collect_garbage(tmp_path, grace_s=0, by_hand=True) == []


def test_a_folder_is_as_young_as_the_youngest_file_in_it(root: Path) -> None:
    folder = "models/.tmp-run-0123456789ab"
    touched(root, [f"{folder}/config.json", f"{folder}/deep/model.bin"])
    for path in (f"{folder}/config.json", f"{folder}/deep", folder):
        os.utime(root / path, (0, 0))
    assert collect_garbage(root, grace_s=3600, by_hand=True) == []
    os.utime(root / folder / "deep/model.bin", (0, 0))
    assert collect_garbage(root, grace_s=3600, by_hand=True) == [folder]


def test_of_tokenizers_those_go_that_neither_a_dataset_nor_a_model_names_and_no_person_made(root: Path, tmp_path: Path) -> None:
    of_model, of_person, left = "a" * 64, "b" * 64, "c" * 64
    model = model_manifest(root, 1, 7)
    model = model.model_copy(update={"tokenizer": model.tokenizer.model_copy(update={"sha256": of_model})})
    CommitLog(root / MODEL_LOG).publish(1, model.model_dump_json().encode())
    folders = [Dataset(root).tokenizer.sha256, of_model, of_person, left, "notes"]
    for place in (root, tmp_path / "without a dataset"):
        touched(place, [*(f"tokenizer/{name}/tokenizer.json" for name in folders), f"tokenizer/{of_person}/{CARD_FILE}"])
        assert collect_garbage(place, grace_s=0) == []
        assert collect_garbage(place, grace_s=0, by_hand=True) == ([f"tokenizer/{left}/tokenizer.json"] if place == root else [])
    assert not (root / "tokenizer" / left).exists()
