"""``verify`` sees every kind of damage, ``trace`` tells every outcome, the garbage collector takes only what nobody can ever need."""

import json
import os
import random
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from ops.cli.trace import sentence
from pipelines.dataset import checkpoints
from pipelines.dataset.dataset import Dataset, dataset_log
from pipelines.dataset.gc import collect_garbage, orphans
from pipelines.dataset.names import data_files, documents_path, segment_path, shard_path, version_of
from pipelines.dataset.shard_maps import ShardMaps
from pipelines.dataset.shards import open_shard, read_batch
from pipelines.dataset.verify import verify
from pipelines.lineage.lineage import Fate, trace
from pipelines.steps.declared import NAMES as DECLARED
from pipelines.storage.commit_log import CommitLog
from pipelines.storage.durable import sha256_file
from pipelines.storage.model_log import MODEL_LOG
from pipelines.tokenizers.tokenizer import load_tokenizer
from schemas.arrow import Outcome, Split
from schemas.errors import DatasetError, DatasetNotFound, ManifestCorrupt, ShardCorrupt
from schemas.manifest import FileEntry, ModelManifest, TrainingSummary
from tests.factories import TOPIC, commit_records

DEADLETTER = "headrace.deadletter"
Values = list[tuple[bytes | None, bytes | None]]


WORDS = "water comes down from the hill and turns mill all day while grain is ground between two stones that people cut by hand long ago"


def text_of(number: int) -> str:
    """Texts that are no near duplicates of each other."""
    return " ".join(random.Random(number).choices(WORDS.split(), k=20)) + "; 水推动石磨。"


def value(doc_id: str, text: str) -> tuple[bytes | None, bytes | None]:
    return None, json.dumps({"id": doc_id, "text": text}, ensure_ascii=False).encode()


def values(first: int = 0, number: int = 30) -> Values:
    return [value(f"doc-{index}", text_of(index)) for index in range(first, first + number)]


ODD: Values = [value("copy", text_of(3)), value("short", "No."), (None, b"\xff"), (b"doc-4", None), (None, None)]
"""A duplicate, a rejected, a dead and a retracted record, and an offset without a record."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    commit_records(root, values() + ODD)
    commit_records(root, values(30))
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(made, tmp_path / "data"))


def edit_manifest(root: Path, version: int, change: Callable[[dict[str, Any]], None]) -> None:
    path = dataset_log(root).path(version)
    manifest = json.loads(path.read_bytes())
    change(manifest)
    path.write_text(json.dumps(manifest))


def relist(root: Path, relative: str, version: int = 1) -> None:
    """Make the manifest promise what the file is now: damage that a hash does not show."""

    def change(manifest: dict[str, Any]) -> None:
        for entry in (*manifest["shards"], *manifest["documents"], *manifest["dedup_segments"]):
            if entry["path"] == relative:
                entry["sha256"], entry["size_bytes"] = sha256_file(root / relative), (root / relative).stat().st_size

    edit_manifest(root, version, change)


def flip_byte(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0xFF
    path.write_bytes(data)


def problems(root: Path) -> str:
    return "\n".join(f"{problem.version} {problem.path}: {problem.what}" for problem in verify(root).problems)


def test_an_undamaged_dataset_has_no_problems(made: Path) -> None:
    report = verify(made)
    assert (report.problems, report.versions, report.orphans) == ([], 2, 0)
    assert report.documents_decoded == Dataset(made).manifest.totals.outcomes[Outcome.KEPT]


@pytest.mark.parametrize("kind", ["shards", "documents", "dedup_segments"])
def test_verify_sees_a_changed_byte_and_a_missing_file(root: Path, kind: str) -> None:
    entry = getattr(Dataset(root, 1).manifest, kind)[0]
    flip_byte(root / entry.path, entry.size_bytes // 2)
    assert f"1 {entry.path}: SHA-256 is" in problems(root)
    (root / entry.path).unlink()
    assert f"1 {entry.path}: the file is missing" in problems(root)


def test_verify_sees_token_ids_that_do_not_decode_to_what_was_ingested(root: Path) -> None:
    entry = Dataset(root, 1).manifest.shards[0]
    needle = open_shard(root / entry.path)[0, :8].tobytes()
    path = root / entry.path
    path.write_bytes(path.read_bytes().replace(needle, needle[:6] + (99).to_bytes(2, "little") + needle[8:], 1))
    relist(root, entry.path)
    assert "does not decode to the text that was ingested" in problems(root)


def test_verify_sees_a_document_without_its_end(root: Path) -> None:
    entry = Dataset(root, 1).manifest.shards[0]
    flat = open_shard(root / entry.path).reshape(-1)
    end = int((flat == 0).argmax())
    needle = flat[end - 4 : end + 1].tobytes()
    path = root / entry.path
    path.write_bytes(path.read_bytes().replace(needle, needle[:8] + (7).to_bytes(2, "little"), 1))
    relist(root, entry.path)
    assert "does not end in the end-of-text token" in problems(root)


def test_verify_sees_text_behind_the_last_document_of_a_shard(root: Path) -> None:
    dataset = Dataset(root, 1)
    entry = next(entry for entry in dataset.manifest.shards if entry.rows * dataset.manifest.sequence_length > entry.tokens)
    path = root / entry.path
    needle = open_shard(path).reshape(-1)[entry.tokens - 4 :].tobytes()
    path.write_bytes(path.read_bytes().replace(needle, needle[:-2] + (7).to_bytes(2, "little"), 1))
    relist(root, entry.path)
    assert "something other than padding follows the last document" in problems(root)


def test_verify_sees_a_shard_that_lists_other_beginnings_of_documents_than_the_audit_trail(root: Path) -> None:
    entry = Dataset(root, 1).manifest.shards[0]
    path = root / entry.path
    needle = read_batch(path).column("starts").flatten().to_numpy()[:4].tobytes()
    path.write_bytes(path.read_bytes().replace(needle, needle[:-4] + (31).to_bytes(4, "little"), 1))
    relist(root, entry.path)
    assert "the starts column does not list where documents begin" in problems(root)


@pytest.mark.parametrize(("rows", "what"), [(1, "shape is"), (-1, "shape is")])
def test_verify_sees_a_shard_with_more_or_fewer_rows_than_the_manifest_says(root: Path, rows: int, what: str) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["shards"][-1]["rows"] += rows

    edit_manifest(root, 2, change)
    assert what in problems(root)


def test_verify_sees_a_manifest_that_counts_a_document_to_another_shard(root: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["shards"][0]["documents"] += 1
        manifest["shards"][1]["documents"] -= 1

    edit_manifest(root, 1, change)
    assert problems(root).count("the documents' spans do not tile the shard") == 2


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (pl.col("offset") + (pl.col("offset") == 5), "each once"),
        (pl.col("length") - (pl.col("ends_shard")).cast(pl.Int32), "do not tile"),
        (pl.when(pl.col("offset") == 5).then(pl.lit("rejected")).otherwise(pl.col("outcome")).alias("outcome"), "outcomes are"),
        (pl.when(pl.col("offset") == 5).then(pl.col("start") + 1).otherwise(pl.col("start")).alias("start"), "do not tile"),
        (pl.when(pl.col("offset") == 5).then(pl.lit("other")).otherwise(pl.col("doc_id")).alias("doc_id"), "not the kept documents"),
    ],
)
def test_verify_sees_an_audit_trail_that_does_not_add_up(root: Path, damage: pl.Expr, what: str) -> None:
    entry = Dataset(root, 1).manifest.documents[0]
    trail = pl.read_parquet(root / entry.path)
    ends_shard = pl.col("shard").is_not_null() & (pl.col("offset") == pl.col("offset").max().over("shard"))
    trail.with_columns(ends_shard=ends_shard).with_columns(damage).drop("ends_shard").write_parquet(root / entry.path)
    relist(root, entry.path)
    assert what in problems(root)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda manifest: manifest["offsets"][TOPIC]["0"].update(start=36, end=66), "does not go on at offset 35"),
        (lambda manifest: manifest["totals"].update(num_tokens=1), "totals are not"),
        (lambda manifest: manifest["topic_ids"].update({TOPIC: "B" * 22}), "another id"),
        (lambda manifest: manifest["tokenizer"].update(vocab_size=999), "tokenizer or sequence length differ"),
        (lambda manifest: manifest.update(num_records=1), "not a valid manifest"),
    ],
)
def test_verify_sees_manifests_that_do_not_join(root: Path, change: Callable[[dict[str, Any]], None], what: str) -> None:
    edit_manifest(root, 2, change)
    assert what in problems(root)


def test_verify_sees_statistics_that_are_not_those_of_the_audit_trail(root: Path) -> None:
    edit_manifest(root, 2, lambda manifest: manifest["statistics"]["total"]["chars"].update({"40": 1}))
    assert "statistics are not those of the audit trail" in problems(root)


def test_verify_sees_a_checkpoint_that_does_not_say_what_the_log_says(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "GROWTH", 2)
    dataset = Dataset(root)
    dataset.save_checkpoints()
    assert problems(root) == ""
    lies = pa.concat_tables([dataset.columns.slice(1, 1), dataset.columns.slice(0, 1)])
    checkpoints.save_checkpoint(root, dataset_log(root), checkpoints.Range(1, 2), lies)
    assert "the checkpoints do not say what the log says" in problems(root)


def test_verify_sees_another_tokenizer(root: Path) -> None:
    path = root / Dataset(root).tokenizer.path / "tokenizer.json"
    path.write_bytes(path.read_bytes() + b"\n")
    assert "the manifest says" in problems(root)


def test_verify_and_trace_without_a_dataset_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFound, match="headrace ingest"):
        verify(tmp_path)
    with pytest.raises(DatasetNotFound, match="headrace ingest"):
        trace(tmp_path, "doc-1", deadletter_topic=DEADLETTER)


def one(root: Path, query: str) -> Fate:
    (fate,) = trace(root, query, deadletter_topic=DEADLETTER)
    return fate


def test_trace_tells_the_fate_of_a_kept_document_down_to_its_tokens(made: Path) -> None:
    fate = one(made, "doc-31")
    assert (fate.outcome, fate.dataset_version, fate.offset, fate.models) == (Outcome.KEPT, 2, 36, [])
    assert fate == one(made, f"{TOPIC}/0/36")
    assert fate.shard is not None
    ids = ShardMaps(Dataset(made)).span(fate.shard, fate.row or 0, fate.start or 0, fate.length or 0)
    assert load_tokenizer(made, Dataset(made).tokenizer).decode(ids[:-1]) == text_of(31)
    assert "kept for" in sentence(fate)


def test_trace_tells_every_other_outcome(made: Path) -> None:
    copy, short = one(made, "copy"), one(made, "short")
    assert (copy.outcome, copy.reason, copy.duplicate_of, copy.similarity) == (Outcome.DUPLICATE, "exact", "doc-3", 1.0)
    assert "duplicate of document doc-3" in sentence(copy)
    assert (short.outcome, short.reason) == (Outcome.REJECTED, "too_short")
    assert "too_short" in sentence(short)
    dead, control = one(made, f"{TOPIC}/0/32"), one(made, f"{TOPIC}/0/34")
    assert (dead.outcome, dead.dead_letter) == (Outcome.DEAD, {"topic": DEADLETTER, "key": f"{TOPIC}/0/32"})
    assert DEADLETTER in sentence(dead)
    assert control.outcome == Outcome.CONTROL
    assert "no record" in sentence(control)
    kept, retracted = trace(made, "doc-4", deadletter_topic=DEADLETTER)
    assert (kept.outcome, retracted.outcome) == (Outcome.KEPT, Outcome.RETRACTED)
    assert "retraction" in sentence(retracted)


@pytest.mark.parametrize("query", ["nobody", f"{TOPIC}/0/65", f"{TOPIC}/1/0", "other.topic/0/0", ""])
def test_trace_of_an_unknown_document_is_an_error(made: Path, query: str) -> None:
    with pytest.raises(DatasetError, match="not known yet"):
        one(made, query)


def test_trace_finds_every_document_of_a_url_whatever_their_ids(tmp_path: Path) -> None:
    page, far = "https://www.example.org/磨坊?a=1", f"https://www.example.org/{'x' * 3000}"
    pages = [json.dumps({"id": f"page-{index}", "text": text_of(index), "url": url}).encode() for index, url in enumerate((page, far, page))]
    commit_records(tmp_path, [*values(10), *((None, sent) for sent in pages)])
    fates = trace(tmp_path, page, deadletter_topic=DEADLETTER)
    assert [(fate.doc_id, fate.outcome, fate.url) for fate in fates] == [("page-0", "kept", page), ("page-2", "kept", page)]
    assert f"(document page-0, from {page})" in sentence(fates[0])
    assert trace(tmp_path, page.replace("//", "//me:secret@"), deadletter_topic=DEADLETTER) == fates
    assert [fate.doc_id for fate in trace(tmp_path, far, deadletter_topic=DEADLETTER)] == ["page-1"]
    with pytest.raises(DatasetError, match="URL"):
        trace(tmp_path, "https://www.example.org/", deadletter_topic=DEADLETTER)


def test_an_audit_trail_without_a_column_that_came_later_is_read_as_if_it_said_nothing_there(root: Path) -> None:
    entry = Dataset(root, 1).manifest.documents[0]
    pl.read_parquet(root / entry.path).drop("replay_of", "url", *DECLARED).write_parquet(root / entry.path)
    relist(root, entry.path)
    fates = [trace(root, name, deadletter_topic=DEADLETTER)[0] for name in ("doc-1", "doc-31")]
    assert [(fate.dataset_version, fate.outcome, fate.replay_of) for fate in fates] == [(1, "kept", None), (2, "kept", None)]
    assert verify(root).problems == []


def test_trace_names_the_models_that_trained_on_a_document_and_none_for_one_held_out(root: Path) -> None:
    log = CommitLog(root / MODEL_LOG)
    for number, dataset_version in enumerate((1, 2, 2), 1):
        log.publish(number, model_manifest(root, number, dataset_version).model_dump_json().encode())
    documents = pl.concat([pl.read_parquet(root / entry.path) for entry in Dataset(root, 1).manifest.documents])
    kept = documents.filter(pl.col("outcome") == "kept")
    fates = {str(split): one(root, kept.filter(pl.col("shard").str.contains(split))["doc_id"][-1]) for split in Split}
    assert (fates["train"].models, fates["validation"].models) == ([1, 2, 3], [])
    assert "model versions 1, 2, 3" in sentence(fates["train"])
    assert "held out" in sentence(fates["validation"])
    assert one(root, "doc-31").models == ([2, 3] if one(root, "doc-31").split == "train" else [])


def model_manifest(root: Path, version: int, dataset_version: int) -> ModelManifest:
    dataset = Dataset(root, dataset_version)
    training = TrainingSummary(run_id="run", steps=1, tokens=1, first_loss=1.0, last_loss=1.0, duration_s=1.0, num_workers=1)
    return ModelManifest(
        version=version,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        files=[FileEntry(path="models/x", rows=0, size_bytes=0, sha256="0" * 64)],
        architecture="LlamaForCausalLM",
        num_parameters=1,
        dataset=dataset.ref(),
        tokenizer=dataset.tokenizer,
        training=training,
        evaluation=None,
        settings_fingerprint="0" * 64,
        code_version="test",
    )


def test_a_damaged_model_manifest_is_named(root: Path) -> None:
    CommitLog(root / MODEL_LOG).publish(1, b"{}")
    with pytest.raises(ManifestCorrupt, match="00000001"):
        one(root, "doc-1")


def touch(root: Path, relative: str, age_s: float = 0.0) -> str:
    path = root / relative
    path.write_bytes(b"x")
    modified_at = path.stat().st_mtime - age_s
    os.utime(path, (modified_at, modified_at))
    return relative


def test_garbage_is_what_no_manifest_lists_nor_ever_can(root: Path) -> None:
    attempt = "f" * 12
    old = [
        touch(root, shard_path(2, Split.TRAIN, 0, attempt), 100),
        touch(root, documents_path(1, attempt), 100),
        touch(root, segment_path(2, attempt), 100),
        touch(root, f"shards/.tmp-v00000001-train-0000-{attempt}.arrow-{attempt}", 100),
    ]
    young = touch(root, segment_path(1, attempt))
    running = touch(root, shard_path(3, Split.TRAIN, 0, attempt), 10_000)  # a slow writer may still publish version 3
    foreign = touch(root, "shards/notes.arrow", 10_000)
    assert orphans(root) == sorted([*old, young, running])
    assert sorted(collect_garbage(root, grace_s=50)) == sorted(old)
    assert collect_garbage(root, grace_s=50) == []
    assert (root / young).exists()
    assert (root / running).exists()
    assert (root / foreign).exists()
    assert problems(root) == ""


def test_file_names_carry_version_and_attempt(tmp_path: Path) -> None:
    paths = [shard_path(12, Split.VALIDATION, 3, "0" * 12), documents_path(12, "0" * 12), segment_path(12, "0" * 12)]
    for path in paths:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        touch(tmp_path, path)
    assert data_files(tmp_path) == sorted(paths)
    assert {version_of(path) for path in paths} == {12}


def test_a_shard_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "s.arrow").write_bytes(b"nothing")
    for path in ("s.arrow", "missing.arrow"):
        with pytest.raises(ShardCorrupt, match=path):
            open_shard(tmp_path / path)
