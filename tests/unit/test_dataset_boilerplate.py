"""The counts of lines from version to version: few files, exact sums, a bound, and nothing at all where the setting is off."""

import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from pipelines.dataset.boilerplate import Boilerplate, counts_files
from pipelines.dataset.compaction import compact
from pipelines.dataset.dataset import Dataset
from pipelines.dataset.verify import verify
from pipelines.dedup.paragraphs import EMPTY, ParagraphCounts
from schemas.manifest import DatasetManifest
from schemas.settings import Settings
from tests.factories import clock, commit_records, text_settings

FOOTER = "All rights reserved by the Example Publishing House."
Records = list[tuple[bytes | None, bytes | None]]


def on(root: Path, **overrides: object) -> Settings:
    return text_settings(root, **{"dedup.boilerplate": True, "dedup.boilerplate_min_documents": 4, **overrides})


def articles(version: int, number: int, num_lines: int = 3) -> Records:
    """Articles whose lines stand in no other one, under one footer."""
    rng = np.random.default_rng(version)
    words = [f"{first}{second}" for first in ("mill", "water", "stone", "grain", "wheel", "river") for second in ("work", "bank", "side", "house")]
    records: Records = []
    for index in range(number):
        lines = [" ".join(rng.choice(words, 9)) + f" {version} {index} {line}." for line in range(num_lines)]
        records.append((None, json.dumps({"id": f"{version}-{index}", "text": "\n".join([*lines, FOOTER])}).encode()))
    return records


def total(dataset: Dataset) -> ParagraphCounts:
    counts = EMPTY
    for file in counts_files(dataset):
        counts = counts.merge(ParagraphCounts.load(dataset.root / file.entry.path))
    return counts


def test_few_files_hold_the_exact_counts_of_all_versions(tmp_path: Path) -> None:
    for version in range(1, 13):
        commit_records(tmp_path, articles(version, 3), on(tmp_path))
    dataset = Dataset(tmp_path)
    files = counts_files(dataset)
    assert len(files) <= 4
    firsts = [file.first_version for file in files]
    assert firsts[0] == 1
    assert firsts == sorted(set(firsts))
    counts = total(dataset)
    assert len(counts.hashes) == 12 * 3 * 3 + 1
    assert sorted(counts.num_documents.tolist())[-2:] == [1, 36]
    assert verify(tmp_path).problems == []


def test_versions_without_counts_stand_in_nobodys_way(tmp_path: Path) -> None:
    commit_records(tmp_path, articles(1, 3), on(tmp_path))
    commit_records(tmp_path, articles(2, 3), text_settings(tmp_path))
    compact(Dataset(tmp_path), on(tmp_path), now=clock())
    commit_records(tmp_path, articles(4, 3), on(tmp_path))
    assert [bool(manifest.boilerplate) for manifest in Dataset(tmp_path).manifests()] == [True, False, False, True]
    assert total(Dataset(tmp_path)).num_documents.max() == 6


def test_without_the_setting_nothing_is_counted_written_or_taken_out(tmp_path: Path) -> None:
    for version in (1, 2):
        manifest = commit_records(tmp_path, articles(version, 10), text_settings(tmp_path))
        assert manifest.boilerplate == []
    assert not (tmp_path / "boilerplate").exists()


def test_the_rarest_lines_are_forgotten_when_there_are_too_many_and_known_ones_stay_known(tmp_path: Path) -> None:
    settings = on(tmp_path, **{"dedup.boilerplate_max_entries": 1_000})
    for version in range(1, 5):
        commit_records(tmp_path, articles(version, 5, num_lines=60), settings)
    dataset = Dataset(tmp_path)
    assert [file.first_version for file in counts_files(dataset)] == [1]
    counts = total(dataset)
    assert counts.num_documents.tolist() == [20]
    boilerplate = Boilerplate(settings.dedup)
    boilerplate.open(dataset)
    assert boilerplate.known.tolist() == counts.hashes.tolist()


def test_a_manifest_with_counts_of_no_versions_cannot_be_read(tmp_path: Path) -> None:
    manifest = commit_records(tmp_path, articles(1, 3), on(tmp_path))
    for first_version in (0, 2):
        with pytest.raises(ValidationError, match="files of lines"):
            DatasetManifest.model_validate(manifest.model_dump() | {"boilerplate_first_version": first_version})
