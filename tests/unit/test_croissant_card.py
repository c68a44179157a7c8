"""The Croissant card: valid by MLCommons' own library, which reads the audit trail with it."""

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipelines.dataset.dataset import Dataset
from pipelines.lineage.croissant import croissant
from schemas.arrow import DOCUMENTS
from schemas.errors import ShardCorrupt
from tests.factories import commit_records
from tests.ingest_harness import sample_records


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("card")
    for seed in (0, 1):
        commit_records(folder, [(record.key, record.value) for record in sample_records(60, seed)])
    return folder


@pytest.fixture
def card(root: Path) -> dict[str, Any]:
    return croissant(Dataset(root))


def test_every_file_stands_in_the_card_with_its_hash(root: Path, card: dict[str, Any]) -> None:
    files = {entry["@id"]: entry["sha256"] for entry in card["distribution"] if entry["@type"] == "cr:FileObject"}
    on_disk = {path.relative_to(root).as_posix() for folder in ("documents", "shards") for path in (root / folder).iterdir()}
    assert set(files) == on_disk
    assert all(hashlib.sha256((root / path).read_bytes()).hexdigest() == sha256 for path, sha256 in files.items())


def test_every_plain_column_of_the_audit_trail_is_described(card: dict[str, Any]) -> None:
    assert {field["name"] for field in card["recordSet"][0]["field"]} == set(DOCUMENTS.names) - {"pii"}


def test_a_column_that_an_older_file_lacks_is_left_out(tmp_path: Path) -> None:
    for seed in (0, 1):
        commit_records(tmp_path, [(record.key, record.value) for record in sample_records(20, seed)])
    oldest = tmp_path / Dataset(tmp_path, 1).manifest.documents[0].path
    pq.write_table(pq.read_table(oldest).drop_columns(["url"]), oldest)
    assert {field["name"] for field in croissant(Dataset(tmp_path))["recordSet"][0]["field"]} == set(DOCUMENTS.names) - {"pii", "url"}
    oldest.unlink()
    with pytest.raises(ShardCorrupt, match="missing"):
        croissant(Dataset(tmp_path))


def test_mlcroissant_finds_no_error_and_reads_the_rows(root: Path, card: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the library and what it rests on
        mlcroissant = pytest.importorskip("mlcroissant", reason="mlcroissant is not installed")
        path = root / "croissant.json"
        path.write_text(json.dumps(card), encoding="utf-8")
        loaded = mlcroissant.Dataset(jsonld=path)
        assert not loaded.metadata.ctx.issues.errors
        assert str(loaded.metadata.ctx.conforms_to.value).endswith("/1.1")
        (root / "documents" / "v00000003-0123456789ab.parquet").write_bytes(b"of a commit that never was")
        rows = list(loaded.records("documents"))
        shards = list(loaded.records("shards"))
    manifests = Dataset(root).manifests()
    assert len(rows) == sum(manifest.num_records for manifest in manifests)
    assert {row["documents/outcome"].decode() for row in rows} >= {"kept", "rejected"}
    assert sum(row["shards/tokens"] for row in shards) == sum(manifest.num_tokens for manifest in manifests)


def test_the_card_of_an_older_version_lists_only_its_files(root: Path, card: dict[str, Any]) -> None:
    older = croissant(Dataset(root, 1))
    assert len(older["distribution"]) < len(card["distribution"]) and older["version"] == "1.0.0"
