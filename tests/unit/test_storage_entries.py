"""A manifest says who wrote it, names no file outside its root, and one that is newer than its reader is told from one that is damaged."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipelines.dataset.dataset import Dataset, dataset_log, read_manifest
from pipelines.storage.version import code_version
from schemas.errors import ManifestCorrupt, ManifestNewer
from schemas.manifest import FileEntry, TokenizerRef
from tests.factories import make_dataset, tokenizer_ref

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
