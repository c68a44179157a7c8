"""A manifest says who wrote it, adds up, names no file outside its root; one that is newer than its reader is told from one that is damaged."""

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipelines.dataset.dataset import Dataset, dataset_log, read_manifest
from pipelines.dataset.writer import manifest_without_documents
from pipelines.storage.version import code_version
from schemas.arrow import FILE_LISTS, Outcome
from schemas.errors import ManifestCorrupt, ManifestNewer
from schemas.lost_offsets import LossKind
from schemas.manifest import DatasetManifest, FileEntry, MergedShard, OffsetRange, TokenizerRef
from tests.factories import TOPIC, clock, make_dataset, text_settings, tokenizer_ref

Change = Callable[[dict[str, Any]], object]


def edited(root: Path, change: Change) -> None:
    path = dataset_log(root).path(1)
    manifest = json.loads(path.read_bytes())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_a_manifest_says_which_headrace_wrote_it(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    assert Dataset(tmp_path).manifest.code_version == code_version()


def test_a_manifest_of_before_that_does_not_say_so_is_read(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    edited(tmp_path, lambda manifest: manifest.pop("code_version"))
    assert Dataset(tmp_path).manifest.code_version is None


NEWER: list[Change] = [
    lambda manifest: manifest.update(a_later_field=1),
    lambda manifest: manifest.update(format=2),
    lambda manifest: manifest["outcomes"].update(a_later_outcome=0),
]


@pytest.mark.parametrize("change", NEWER)
def test_a_newer_manifest_is_not_called_corrupt_and_its_writer_is_named(tmp_path: Path, change: Change) -> None:
    make_dataset(tmp_path)
    edited(tmp_path, lambda manifest: (change(manifest), manifest.update(code_version="99.1")))
    told = f"was written by Headrace 99.1; this is Headrace {code_version()}, which does not know"
    with pytest.raises(ManifestNewer, match=f"{re.escape(told)}.*use Headrace 99.1 or a later one"):
        read_manifest(tmp_path, 1)


DAMAGED: list[Change] = [
    lambda manifest: manifest.update(num_records=1),
    lambda manifest: manifest.update(a_later_field=1, num_tokens="many"),
    lambda manifest: manifest.pop("totals"),
]


@pytest.mark.parametrize("change", DAMAGED)
def test_a_damaged_manifest_is_called_corrupt_whoever_wrote_it(tmp_path: Path, change: Change) -> None:
    make_dataset(tmp_path)
    edited(tmp_path, lambda manifest: (change(manifest), manifest.update(code_version="99.1")))
    with pytest.raises(ManifestCorrupt, match="restore it from a copy"):
        read_manifest(tmp_path, 1)


def test_what_this_very_version_does_not_know_is_damage_and_no_news(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    edited(tmp_path, lambda manifest: manifest.update(a_later_field=1))
    with pytest.raises(ManifestCorrupt, match="a_later_field"):
        read_manifest(tmp_path, 1)


OUTSIDE = ["../x", "/x", "a/../../x", "a\n/../../x", "\n/..", "..", "a/..", "", "a\0b"]


@pytest.mark.parametrize("path", OUTSIDE)
def test_no_entry_names_a_file_outside_the_root(path: str) -> None:
    with pytest.raises(ValidationError, match="leaves the root"):
        FileEntry(path=path, rows=0, size_bytes=0, sha256="0" * 64)
    with pytest.raises(ValidationError, match="leaves the root"):
        TokenizerRef.model_validate(tokenizer_ref(300).model_dump() | {"path": path})


@pytest.mark.parametrize("path", ["shards/a.arrow", "a..b/c", "a\nb", "...", "磨坊/x"])
def test_an_entry_names_any_file_inside_the_root(path: str) -> None:
    assert FileEntry(path=path, rows=0, size_bytes=0, sha256="0" * 64).path == path


def test_no_pattern_of_a_record_lets_a_line_feed_follow() -> None:
    for given in ({"sha256": "0" * 64 + "\n"}, {"sha256": "0" * 63 + "\n"}):
        with pytest.raises(ValidationError, match="sha256"):
            FileEntry.model_validate({"path": "x", "rows": 0, "size_bytes": 0, **given})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Fields of version 2, which masks a document, and of a version 3 without documents."""
    root = tmp_path_factory.mktemp("made")
    make_dataset(root, num_rows=4)
    second = make_dataset(root, num_rows=4, mask=lambda kept: kept.tail(1))
    return [manifest.model_dump() for manifest in (second, manifest_without_documents(second, "a" * 12, text_settings(root), clock()))]


ENTRY: dict[str, Any] = {"path": "x", "rows": 0, "size_bytes": 1, "sha256": "0" * 64}
SHARD = ENTRY | {"split": "train", "tokens": 0, "documents": 0}
MERGED = SHARD | {"first_row": 0, "copies": 1}
GONE = {"topic": TOPIC, "partition": 7, "kind": LossKind.RECREATED, "expected": 5}
LOSS = {"by": "ann", "reason": "retention", "lost": [GONE]}


def read_one_record(manifest: dict[str, Any]) -> None:
    manifest["offsets"][TOPIC][0]["end"] += 1
    manifest["outcomes"][Outcome.DEAD] = manifest["num_records"] = 1
    manifest["documents"] = [ENTRY | {"rows": 1}]


def merge_and_read_one_record(manifest: dict[str, Any]) -> None:
    read_one_record(manifest)
    manifest["merged"] = [MERGED]


def kept_instead_of_duplicate(manifest: dict[str, Any]) -> None:
    manifest["outcomes"][Outcome.KEPT] -= 1
    manifest["outcomes"][Outcome.DUPLICATE] += 1


LIES: list[tuple[Change, str]] = [
    (lambda manifest: manifest["offsets"][TOPIC][0].update(end=manifest["offsets"][TOPIC][0]["end"] + 1), "offsets do not add up"),
    (lambda manifest: manifest["outcomes"].update({Outcome.DEAD: 1}), "offsets do not add up"),
    (lambda manifest: manifest["documents"].append(ENTRY | {"rows": 1}), "offsets do not add up"),
    (lambda manifest: manifest.update(num_records=manifest["num_records"] + 1), "offsets do not add up"),
    (lambda manifest: manifest.update(num_tokens=manifest["num_tokens"] + 1), "tokens do not add up"),
    (lambda manifest: manifest["shards"][0].update(documents=0), "kept documents do not add up"),
    (kept_instead_of_duplicate, "kept documents do not add up"),
    (lambda manifest: manifest.update(num_masked_documents=0), "retracted documents do not add up"),
    (lambda manifest: manifest.update(parent=0), "version 2 cannot follow version 0"),
    (lambda manifest: manifest.update(merged=[MERGED]), "cannot do both"),
    (lambda manifest: manifest.update(accepted_loss=LOSS), "these are two versions"),
]
LIES_WITHOUT_DOCUMENTS: list[tuple[Change, str]] = [
    (lambda manifest: manifest.update(dedup_base=[ENTRY, ENTRY], dedup_base_version=2), "lists 2 base files"),
    (lambda manifest: manifest.update(dedup_base=[ENTRY]), "lists 1 base files for versions 1 to 0"),
    (lambda manifest: manifest.update(dedup_base_version=2), "lists 0 base files for versions 1 to 2"),
    (lambda manifest: manifest.update(dedup_base=[ENTRY], dedup_base_version=4), "lists 1 base files for versions 1 to 4"),
    (lambda manifest: manifest.update(boilerplate=[ENTRY, ENTRY], boilerplate_first_version=2), "lists 2 files of lines"),
    (lambda manifest: manifest.update(boilerplate=[ENTRY]), "lists 1 files of lines from version 0 on"),
    (lambda manifest: manifest.update(boilerplate_first_version=2), "lists 0 files of lines from version 2 on"),
    (lambda manifest: manifest.update(boilerplate=[ENTRY], boilerplate_first_version=4), "lists 1 files of lines from version 4 on"),
    (merge_and_read_one_record, "cannot do both"),
    (lambda manifest: manifest.update(merged=[MERGED], shards=[SHARD]), "cannot do both"),
    (lambda manifest: manifest.update(accepted_loss=LOSS | {"lost": [GONE | {"resumed": 3}]}), "goes on at 3 after the loss"),
    (lambda manifest: manifest.update(accepted_loss=LOSS | {"lost": [GONE | {"partition": 0}]}), "goes on at None after the loss"),
    (lambda manifest: manifest.update(accepted_loss=LOSS | {"lost": [GONE | {"partition": 0, "resumed": 3}]}), "goes on at 3 after the loss"),
]


@pytest.mark.parametrize(("place", "change", "what"), [(0, *lie) for lie in LIES] + [(1, *lie) for lie in LIES_WITHOUT_DOCUMENTS])
def test_a_manifest_whose_parts_contradict_each_other_cannot_be_built(made: list[dict[str, Any]], place: int, change: Change, what: str) -> None:
    manifest = copy.deepcopy(made[place])
    change(manifest)
    with pytest.raises(ValidationError, match=re.escape(what)):
        DatasetManifest.model_validate(manifest)


TRUTHS: list[Change] = [
    read_one_record,
    lambda manifest: manifest.update(dedup_base=[ENTRY], dedup_base_version=2),
    lambda manifest: manifest.update(boilerplate=[ENTRY], boilerplate_first_version=3),
    lambda manifest: manifest.update(merged=[MERGED]),
    lambda manifest: manifest.update(accepted_loss=LOSS),
]


@pytest.mark.parametrize("change", TRUTHS)
def test_a_manifest_whose_parts_agree_is_built(made: list[dict[str, Any]], change: Change) -> None:
    manifest = copy.deepcopy(made[1])
    change(manifest)
    assert DatasetManifest.model_validate(manifest).version == 3


def test_the_files_of_a_manifest_are_those_of_all_its_lists(made: list[dict[str, Any]]) -> None:
    entries = {name: (MergedShard.model_validate(MERGED) if name == "merged" else FileEntry.model_validate(ENTRY)) for name in FILE_LISTS}
    lists = {name: [entry.model_copy(update={"path": name})] for name, entry in entries.items()}
    assert sorted(entry.path for entry in DatasetManifest.model_construct(**made[1] | lists).files) == sorted(FILE_LISTS)


def test_a_range_of_offsets_may_be_empty_and_never_runs_backwards() -> None:
    assert [len(OffsetRange(start=5, end=end)) for end in (5, 7)] == [0, 2]
    with pytest.raises(ValidationError, match="runs backwards: start 5, end 4"):
        OffsetRange(start=5, end=4)
