"""Exports open in the tools that they are for, hold what was chosen and nothing that was retracted, and appear whole or not at all."""

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from tokenizers import Tokenizer

from ops.cli.main import main
from pipelines.dataset.dataset import Dataset
from pipelines.storage.durable import sha256_file
from pipelines.views.export import export
from pipelines.views.making import create_view
from pipelines.views.selection import whole
from schemas.arrow import Outcome
from schemas.settings_dedup import DedupSettings
from schemas.view import ViewSpec
from tests.factories import EOS, clock, commit_records, make_dataset
from tests.unit.test_views_commands import record, text

HELD_OUT = "quiz-zh"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 documents, one of which is retracted later, and a view with a holdout."""
    made = tmp_path_factory.mktemp("exports")
    commit_records(made, [record(number, **declared(number)) for number in range(60)])
    commit_records(made, [(b"doc-4", None), record(60)])
    spec = ViewSpec.model_validate({"holdout": [{"name": HELD_OUT, "language": ["zh"]}], "group": [{"name": "all-of-it", "weight": 1}]})
    create_view(made, "apart", spec, [], DedupSettings(), clock())
    return made


def declared(number: int) -> dict[str, Any]:
    """What the producer says of a document; every third says nothing."""
    said = {"title": f"Mühle {number}", "license": "cc-by-4.0", "created_at": "2026-01-31T12:00:00Z", "meta": {"page": number}}
    return said if number % 3 else {}


def run(root: Path, kind: str, output: Path, *arguments: str) -> dict[str, Any]:
    assert main(["datasets", "export", "--format", kind, "--output", str(output), "--root", str(root), *arguments]) == 0
    told: dict[str, Any] = json.loads((output / "headrace.json").read_text())
    for split in told["splits"].values():
        assert all(sha256_file(output / file["path"]) == file["sha256"] for file in split["files"])
    return told


def kept(root: Path) -> dict[str, str]:
    """Id -> text of what is kept and not retracted."""
    files = [pl.read_parquet(root / entry.path) for manifest in Dataset(root).manifests() for entry in manifest.documents]
    ids = pl.concat(files).filter((pl.col("outcome") == "kept") & (pl.col("doc_id") != "doc-4"))["doc_id"].to_list()
    return {doc_id: text(int(doc_id.split("-")[1])) for doc_id in ids}


def test_json_lines_hold_the_texts_that_were_ingested(root: Path, tmp_path: Path) -> None:
    told = run(root, "jsonl", tmp_path / "out")
    rows = [json.loads(line) for split in told["splits"] for line in (tmp_path / "out" / f"{split}.jsonl").read_text().splitlines()]
    assert {row["id"]: row["text"] for row in rows} == kept(root)
    assert all(row["topic"] == "headrace.documents" and row["domain"] for row in rows)
    assert told["view"] is None and told["dataset_version"] == 2 and told["manifest_sha256"] == Dataset(root).sha256


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "hf"])
def test_every_row_says_its_licence_title_time_and_meta(root: Path, tmp_path: Path, kind: str) -> None:
    told = run(root, kind, tmp_path / "out")
    if kind == "jsonl":
        rows = [json.loads(line) for path in (tmp_path / "out").glob("*.jsonl") for line in path.read_text().splitlines()]
    else:
        rows = [{**row, "meta": json.loads(row["meta"] or "null")} for row in pl.read_parquet(tmp_path / "out" / "*" / "*.parquet").to_dicts()]
    names = ("title", "license", "created_at", "meta")
    for row in rows:
        number = int(row["id"].split("-")[1])
        assert {name: row[name] for name in names} == dict.fromkeys(names) | (declared(number) if number < 60 else {})
    counted = Counter(row["license"] or "" for row in rows)
    assert sum((Counter(split["licenses"]) for split in told["splits"].values()), Counter[str]()) == counted


def test_an_export_of_an_older_version_leaves_out_what_a_later_one_retracted_unless_it_is_asked_for(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in ("jsonl", "parquet", "hf", "bin"):
        told = run(root, kind, tmp_path / kind, "--version", "1")
        assert sum(split["documents"] for split in told["splits"].values()) == Dataset(root, 1).manifest.outcomes[Outcome.KEPT] - 1
        assert told["retracted_later"] == {"documents": 1, "included": False}
    files = list(tmp_path.rglob("*.jsonl"))
    assert files and not any(text(4) in path.read_text() for path in files)
    assert "later versions retracted 1 document of this version; the export leaves them out" in capsys.readouterr().err
    told = run(root, "jsonl", tmp_path / "as-it-was", "--version", "1", "--include-retracted-later")
    assert any(text(4) in path.read_text() for path in (tmp_path / "as-it-was").glob("*.jsonl"))
    assert told["retracted_later"] == {"documents": 1, "included": True}
    assert run(root, "bin", tmp_path / "newest")["retracted_later"] == {"documents": 0, "included": False}


def test_parquet_holds_token_ids_that_decode_to_the_text(root: Path, tmp_path: Path) -> None:
    told = run(root, "parquet", tmp_path / "out", "--view", "apart")
    assert told["view"]["name"] == "apart" and told["view"]["weights"] == {"all-of-it": 1.0}
    frames = {split: pl.read_parquet(tmp_path / "out" / split / "*.parquet") for split in told["splits"]}
    everything = pl.concat(frames.values())
    assert dict(everything.select("id", "text").iter_rows()) == kept(root)
    assert set(frames[HELD_OUT]["language"]) == {"zh"} and "zh" not in set(frames["train"]["language"])
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer" / "tokenizer.json"))
    assert [tokenizer.decode(ids, skip_special_tokens=False) for ids in everything["tokens"].to_list()] == everything["text"].to_list()
    assert everything["tokens"].dtype == pl.List(pl.UInt16)


def test_flat_tokens_are_the_documents_each_closed_by_the_end_of_text(root: Path, tmp_path: Path) -> None:
    told = run(root, "bin", tmp_path / "out", "--version", "1")
    for split, counts in told["splits"].items():
        tokens = np.fromfile(tmp_path / "out" / f"{split}.bin", "<u2")
        starts = np.fromfile(tmp_path / "out" / f"{split}.idx", "<i8")
        assert (len(tokens), len(starts)) == (counts["tokens"], counts["documents"] + 1) and starts[0] == 0 and starts[-1] == len(tokens)
        assert (tokens[starts[1:] - 1] == told["tokenizer"]["eos_token_id"]).all()
        assert (tokens == told["tokenizer"]["eos_token_id"]).sum() == counts["documents"]
        texts = [
            Tokenizer.from_file(str(tmp_path / "out/tokenizer/tokenizer.json")).decode(tokens[a : b - 1].tolist())
            for a, b in itertools.pairwise(starts)
        ]
        assert set(texts) <= set(kept(root).values())


def test_the_hugging_face_card_lists_every_split_and_column(root: Path, tmp_path: Path) -> None:
    told = run(root, "hf", tmp_path / "out", "--view", "apart")
    header = yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("---\n")[1])
    assert [entry["split"] for entry in header["configs"][0]["data_files"]] == ["train", "validation", "quiz_zh"]
    frame = pl.read_parquet(tmp_path / "out" / "train" / "*.parquet")
    assert [feature["name"] for feature in header["dataset_info"]["features"]] == frame.columns
    assert {split["name"]: split["num_examples"] for split in header["dataset_info"]["splits"]}["train"] == told["splits"]["train"]["documents"]


def test_the_datasets_package_opens_the_export(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="the package `datasets` is not installed")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    told = run(root, "hf", tmp_path / "out", "--view", "apart")
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {split.replace("_", "-"): len(rows) for split, rows in loaded.items()} == {
        name: split["documents"] for name, split in told["splits"].items()
    }
    assert {row["id"]: row["text"] for rows in loaded.values() for row in rows} == kept(root)


def test_an_export_is_the_same_every_time(root: Path, tmp_path: Path) -> None:
    for kind in ("hf", "parquet", "bin", "jsonl"):
        assert run(root, kind, tmp_path / "first" / kind) == run(root, kind, tmp_path / "second" / kind)


def test_an_existing_folder_is_refused_and_a_failure_leaves_nothing(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "there").mkdir()
    assert main(["datasets", "export", "--format", "jsonl", "--output", str(tmp_path / "there"), "--root", str(root)]) == 2
    assert "exists already" in capsys.readouterr().err
    (tmp_path / "there").rmdir()
    create_view(root, "nothing", ViewSpec.model_validate({"filter": {"domain": ["none"]}}), [], DedupSettings(), clock())
    assert main(["datasets", "export", "--format", "bin", "--view", "nothing", "--output", str(tmp_path / "out"), "--root", str(root)]) == 1
    assert "holds none of its" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_large_vocabularies_are_written_as_four_bytes(tmp_path: Path) -> None:
    make_dataset(tmp_path / "root", num_rows=20, vocab_size=70_000)
    export(whole(Dataset(tmp_path / "root")), "bin", tmp_path / "out")
    tokens = np.fromfile(tmp_path / "out" / "train.bin", "<u4")
    assert len(tokens) == 20 * 32 and tokens[-1] == EOS and tokens.max() > 65_535
