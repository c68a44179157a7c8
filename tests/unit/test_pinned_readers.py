"""Readers compare a pinned file with its hash first: one flipped byte stops the reader with an error that names the file.

Quality models have this test beside their others (test_quality_model_scores.py).
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from pipelines.dataset.boilerplate import Boilerplate, counts_files
from pipelines.dataset.compaction import compact, index_files
from pipelines.dataset.dataset import Dataset
from pipelines.dataset.duplicates import Duplicates
from pipelines.drift.drift import Judge
from pipelines.drift.state import FILE, load_state, save_state
from pipelines.semantic.store import EmbeddingStore, read_made_from, write_list
from pipelines.tokenizers.tokenizer import load_tokenizer
from pipelines.views.decontamination import read_table, stored_table
from schemas.errors import HeadraceError
from schemas.semantic import DUPLICATES, SemanticList
from schemas.settings_drift import DriftSettings
from tests.factories import clock, commit_records, text_settings

WORDS = ["mill", "water", "stone", "grain", "wheel", "river", "bank", "side", "house", "work", "barn", "field", "cart", "horse", "gate", "roof"]


class Pinned(NamedTuple):
    """A file, and who reads it."""

    path: Path
    read: Callable[[], object]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rng = np.random.default_rng(5)
    settings = text_settings(tmp_path, **{"dedup.boilerplate": True})
    for version in range(2):
        texts = [" ".join(rng.choice(WORDS, 40)) + f" {version} {index}." for index in range(8)]
        commit_records(tmp_path, [(None, json.dumps({"id": f"{version}-{at}", "text": text}).encode()) for at, text in enumerate(texts)], settings)
    return tmp_path


def segment(root: Path) -> Pinned:
    dataset, settings = Dataset(root), text_settings(root)
    return Pinned(root / index_files(dataset).segments[0].path, lambda: Duplicates(settings.dedup).open(dataset))


def segment_of_a_compaction(root: Path) -> Pinned:
    dataset = Dataset(root)
    return Pinned(root / index_files(dataset).segments[1].path, lambda: compact(dataset, text_settings(root), now=clock()))


def lines(root: Path) -> Pinned:
    dataset, settings = Dataset(root), text_settings(root, **{"dedup.boilerplate": True})
    return Pinned(root / counts_files(dataset)[0].entry.path, lambda: Boilerplate(settings.dedup).open(dataset))


def tokenizer(root: Path) -> Pinned:
    ref = Dataset(root).tokenizer
    return Pinned(root / ref.path / "tokenizer.json", lambda: load_tokenizer(root, ref))


def passages(root: Path) -> Pinned:
    entry = stored_table(root, "view", "kind", DUPLICATES.empty_table())
    return Pinned(root / entry.path, lambda: read_table(root, entry))


def embeddings(root: Path) -> Pinned:
    EmbeddingStore(root, "a" * 64, 4).add([b"x" * 16], np.ones((1, 4), np.float32))
    (path,) = (root / "semantic").rglob("*.arrow")
    return Pinned(path, lambda: EmbeddingStore(root, "a" * 64, 4))


def list_of_meanings(root: Path) -> Pinned:
    made_from = SemanticList(
        dataset_version=1, manifest_sha256="a" * 64, model_sha256="b" * 64, num_documents=1, num_unreadable=0, num_duplicates=0, num_ambiguous=0
    )
    path = write_list(root, DUPLICATES.empty_table().to_pydict(), made_from)
    return Pinned(path, lambda: read_made_from(path))


@pytest.mark.parametrize("kind", [segment, segment_of_a_compaction, lines, tokenizer, passages, embeddings, list_of_meanings])
@pytest.mark.parametrize("place", [0.3, 0.5, 0.7])
def test_one_flipped_byte_stops_the_reader_with_the_files_name(root: Path, kind: Callable[[Path], Pinned], place: float) -> None:
    pinned = kind(root)
    data = bytearray(pinned.path.read_bytes())
    data[int(place * len(data))] ^= 1
    pinned.path.write_bytes(data)
    with pytest.raises(HeadraceError) as stopped:
        pinned.read()
    assert str(pinned.path) in str(stopped.value)


def test_a_base_of_another_size_stops_whoever_opens_the_index(root: Path) -> None:
    settings = text_settings(root)
    compact(Dataset(root), settings, now=clock())
    dataset = Dataset(root)
    (base,) = dataset.manifest.dedup_base
    Duplicates(settings.dedup).open(dataset)
    with (root / base.path).open("ab") as file:
        file.write(b"x")
    with pytest.raises(HeadraceError, match=rf"{base.path} has {base.size_bytes + 1:,} bytes"):
        Duplicates(settings.dedup).open(dataset)


def test_a_damaged_state_of_drift_is_not_believed(root: Path) -> None:
    settings, released = DriftSettings(), frozenset[int]()
    save_state(root, "drift", 1, Judge(settings, released), settings, released)
    path = root / "drift" / FILE
    assert load_state(root, "drift", settings, released, 2, lambda _: pytest.fail("nothing is read")) is not None
    path.write_bytes(path.read_bytes().replace(b'"waiting":[]', b'"waiting":[1]'))
    assert load_state(root, "drift", settings, released, 2, lambda _: pytest.fail("nothing is read")) is None
