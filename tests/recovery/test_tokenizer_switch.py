"""A switched tokenizer begins a lineage that goes on exactly where the old one stood: same offsets, outcomes, duplicates, nothing retracted."""

import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipelines.dataset.audit import live_texts
from pipelines.dataset.boilerplate import Boilerplate
from pipelines.dataset.dataset import Dataset, latest_version
from pipelines.dataset.gc import orphans
from pipelines.dataset.loader import TokenRows
from pipelines.dataset.switch import WITHDRAWN, switch
from pipelines.dataset.verify import verify
from pipelines.dataset.writer import publish
from pipelines.lineage.lineage import trace
from pipelines.runtime.crash import SWITCH_CRASH_POINTS, VARIABLE
from pipelines.storage.durable import sha256_file
from pipelines.tokenizers.folders import TokenizerCard, keep_tokenizer
from pipelines.tokenizers.tokenizer import train_tokenizer
from schemas.arrow import Outcome, Split
from schemas.errors import DatasetError, TokenizerMismatch
from schemas.settings_data import TokenizerSettings
from tests.broker_process import BrokerProcess
from tests.commands import run_command
from tests.factories import clock
from tests.ingest_harness import CHINESE, ENGLISH, Ingest, Record, document, sample_records

SECRET = f"{CHINESE} a private matter that its author took back: {' '.join(ENGLISH.split()[:14])} 7531"


@pytest.fixture(scope="module")
def old(broker: BrokerProcess, tmp_path_factory: pytest.TempPathFactory) -> Ingest:
    """Several versions with everything in them, the document ``secret`` retracted, the duplicate index compacted."""
    ingest = Ingest(tmp_path_factory.mktemp("old"), broker.bootstrap_servers, "switch", {"dedup.compact_segments": 2, "dedup.boilerplate": True})
    ingest.publish([document("secret", SECRET, 0), *sample_records(250, seed=11)])
    ingest.once()
    ingest.publish([Record(None, 0, b"secret"), *sample_records(60, seed=12)])
    ingest.once()
    manifests = Dataset(ingest.root).manifests()
    assert any(manifest.masks for manifest in manifests)
    assert any(manifest.dedup_base for manifest in manifests)
    return ingest


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """Another tokenizer."""
    return train_tokenizer([ENGLISH, CHINESE * 3, ENGLISH.upper()], TokenizerSettings(vocab_size=330))


def moved(old: Ingest, root: Path) -> Ingest:
    """The same stream into another root; the settings need not name its tokenizer."""
    return replace(old, root=root)


def rows_of(root: Path) -> pl.DataFrame:
    paths = [root / entry.path for manifest in Dataset(root).manifests() for entry in manifest.documents]
    return pl.concat([pl.read_parquet(path) for path in paths])


def texts_of(root: Path) -> list[tuple[str, str]]:
    return [pair for block in live_texts(Dataset(root), ["doc_id"]) for pair in zip(*block.to_pydict().values(), strict=True)]


def content(root: Path) -> dict[str, Any]:
    """What two switches of one version must have in common."""
    manifest = Dataset(root, 1).manifest
    attempt_free = pl.col("shard").str.replace(manifest.attempt, "", literal=True)
    return {
        "rows": pl.read_parquet(root / manifest.documents[0].path).with_columns(attempt_free).to_dicts(),
        "shards": [entry.sha256 for entry in manifest.shards],
        "segments": [entry.sha256 for entry in manifest.dedup_segments],
        "statistics": manifest.statistics,
    }


@pytest.fixture(scope="module")
def new(old: Ingest, files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Ingest:
    """The new lineage, as it begins."""
    root = tmp_path_factory.mktemp("new") / "data"
    before = {path: path.read_bytes() for path in sorted(old.root.rglob("*")) if path.is_file()}
    assert switch(Dataset(old.root), files, root, old.settings, clock()).is_new
    assert {path: path.read_bytes() for path in sorted(old.root.rglob("*")) if path.is_file()} == before
    return moved(old, root)


def test_the_first_version_covers_the_same_offsets_and_keeps_every_outcome(old: Ingest, new: Ingest) -> None:
    before, after = Dataset(old.root), Dataset(new.root, 1)
    assert after.offsets() == before.offsets()
    assert (after.manifest.topic_ids, after.manifest.record_bytes) == (before.manifest.topic_ids, before.manifest.record_bytes)
    assert after.tokenizer.sha256 != before.tokenizer.sha256
    derived = after.manifest.derived_from
    assert derived is not None
    assert (derived.manifest_sha256, derived.version, derived.tokenizer_sha256) == (before.sha256, before.version, before.tokenizer.sha256)
    place = ["topic", "partition", "offset"]
    spans = ["num_tokens", "shard", "row", "start", "length"]
    old_rows, new_rows = rows_of(old.root), rows_of(new.root)
    withdrawn = new_rows["reason"].eq_missing(WITHDRAWN)
    assert old_rows.select(place).equals(new_rows.select(place))
    assert old_rows.filter(~withdrawn).drop(spans).equals(new_rows.filter(~withdrawn).drop(spans))
    assert set(old_rows.filter(withdrawn)["outcome"]) == {"kept"}
    masked = before.manifest.totals.num_masked_documents
    assert withdrawn.sum() == masked > 0
    assert new_rows.filter(withdrawn).select("fingerprint", *spans).null_count().row(0) == (masked,) * 6
    assert after.manifest.totals.outcomes[Outcome.KEPT] == before.manifest.totals.outcomes[Outcome.KEPT] - masked
    assert verify(new.root).problems == []


def test_lines_that_were_counted_stay_counted(old: Ingest, new: Ingest) -> None:
    before, after = (Boilerplate(old.settings.dedup.model_copy(update={"boilerplate_min_documents": 1})) for _ in range(2))
    before.open(Dataset(old.root))
    after.open(Dataset(new.root))
    assert len(before.known)
    assert after.known.tolist() == before.known.tolist()


def test_documents_decode_to_the_same_texts_in_the_same_split(old: Ingest, new: Ingest) -> None:
    assert texts_of(new.root) == texts_of(old.root)
    assert "secret" not in dict(texts_of(new.root))
    is_train = pl.col("shard").str.contains("-train-")
    kept = [rows_of(root).filter(pl.col("outcome") == "kept").select("partition", "offset", is_train) for root in (old.root, new.root)]
    assert kept[1].join(kept[0], on=kept[0].columns, how="semi").height == kept[1].height


def test_training_reads_the_new_lineage(new: Ingest) -> None:
    rows = TokenRows(new.root, None, Split.TRAIN)
    tokens = rows.gather(np.arange(rows.num_rows))
    assert tokens.max() < Dataset(new.root).tokenizer.vocab_size
    assert (tokens != Dataset(new.root).tokenizer.pad_token_id).sum() == Dataset(new.root).manifest.totals.num_train_tokens


def test_statistics_are_those_of_the_documents_that_went_along(new: Ingest) -> None:
    manifest = Dataset(new.root, 1).manifest
    statistics = manifest.statistics
    assert statistics is not None
    assert statistics.total.num_records == manifest.num_records
    assert statistics.total.num_kept == manifest.outcomes[Outcome.KEPT]
    assert sum(totals.tokens for totals in statistics.total.languages.values()) == manifest.num_tokens


def test_switching_again_says_that_it_is_done_and_another_switch_is_refused(
    old: Ingest, new: Ingest, files: dict[str, bytes], tmp_path: Path
) -> None:
    again = switch(Dataset(old.root), files, new.root, old.settings, clock())
    assert not again.is_new
    assert again.manifest == Dataset(new.root, 1).manifest
    assert latest_version(new.root) == 2
    for source, root in ((Dataset(old.root, 1), new.root), (Dataset(new.root), old.root)):
        with pytest.raises(DatasetError, match="holds another dataset already"):
            switch(source, files, root, old.settings, clock())


@pytest.mark.parametrize("points", [("switch_written", "published"), pytest.param(SWITCH_CRASH_POINTS, marks=pytest.mark.slow)], ids=["two", "all"])
def test_a_crash_at_any_step_leaves_no_dataset_and_the_same_command_completes_it(
    old: Ingest, new: Ingest, files: dict[str, bytes], tmp_path: Path, points: tuple[str, ...]
) -> None:
    ref = keep_tokenizer(old.root, files, TokenizerCard(origin="trained", created_at=clock()))
    command = ["tokenizer", "switch", ref.sha256[:12], "--json"]
    command += [part for name, value in old.values.items() for part in ("--set", f"{name}={value}")]

    def crash(point: str) -> "subprocess.CompletedProcess[str]":
        environment = {**os.environ, VARIABLE: point}
        return run_command([*command, "--into", str(tmp_path / point)], tmp_path, environment)

    with ThreadPoolExecutor(2) as pool:
        crashed = dict(zip(points, pool.map(crash, points), strict=True))
    for point, child in crashed.items():
        assert child.returncode == -signal.SIGKILL, child.stderr
        root, is_published = tmp_path / point, point == "published"
        assert latest_version(root) == int(is_published)
        assert switch(Dataset(old.root), files, root, old.settings, clock()).is_new is not is_published
        assert content(root) == content(new.root)
        assert [entry.sha256 for entry in Dataset(root, 2).manifest.dedup_base] == [
            entry.sha256 for entry in Dataset(new.root, 2).manifest.dedup_base
        ]
    assert orphans(tmp_path / "switch_written")
    assert verify(tmp_path / "switch_written").problems == []


def test_a_text_that_does_not_come_back_stops_the_switch_and_names_the_document(old: Ingest, files: dict[str, bytes], tmp_path: Path) -> None:
    source = Ingest(tmp_path / "one", old.bootstrap_servers, "switch-damaged")
    source.publish([document("only", f"{ENGLISH} 1", 0)])
    [manifest] = source.once()
    path = source.root / manifest.shards[0].path
    data = bytearray(path.read_bytes())
    span = rows_of(source.root).filter(pl.col("outcome") == "kept").row(0, named=True)
    tokens = TokenRows(source.root, None, Split.TRAIN if "-train-" in path.name else Split.VALIDATION).gather(np.array([0]))[0].astype("<u2")
    place = data.index(tokens.tobytes())
    data[place : place + 2] = (int(tokens[0]) ^ 1).to_bytes(2, "little")
    path.write_bytes(data)
    log = source.root / "log" / "00000001.json"
    log.write_text(log.read_text().replace(manifest.shards[0].sha256, sha256_file(path)))  # as it was written: the tokens are not those of the text
    assert span["doc_id"] == "only"
    with pytest.raises(DatasetError, match=r"document 'only' .*does not decode to the text that was ingested"):
        switch(Dataset(source.root), files, tmp_path / "data", source.settings, clock())
    assert latest_version(tmp_path / "data") == 0


def test_the_new_lineage_goes_on_exactly_once_and_finds_duplicates_of_old_documents(old: Ingest, files: dict[str, bytes], tmp_path: Path) -> None:
    """On a topic of its own: what is published here belongs to no other test."""
    stream = Ingest(tmp_path / "old", old.bootstrap_servers, "switch-goes-on", old.overrides)
    stream.publish([document("secret", SECRET, 0), document("stays", f"{ENGLISH} once more in the spring", 1)])
    stream.once()
    stream.publish([Record(None, 0, b"secret")])
    stream.once()
    new = moved(stream, tmp_path / "new")
    switch(Dataset(stream.root), files, new.root, stream.settings, clock())
    assert new.once() == []
    stream.publish(
        [
            document("copy", f"{ENGLISH} once more in the spring", 0),
            document("alike", SECRET.replace("private", "secret"), 0),
            document("other", CHINESE[::-1] * 2, 1),
        ]
    )
    [manifest] = new.once()
    assert manifest.version == 2
    assert manifest.derived_from is None
    outcome = {row["doc_id"]: (row["outcome"], row["duplicate_of"]) for row in rows_of(new.root).to_dicts()[-3:]}
    assert outcome == {"copy": ("duplicate", "stays"), "alike": ("kept", None), "other": ("kept", None)}
    assert verify(new.root).problems == []
    fates = trace(new.root, "secret", deadletter_topic="dead")
    assert [(fate.outcome, fate.reason) for fate in fates] == [("retracted", WITHDRAWN), ("retracted", None)]
    assert trace(new.root, "alike", deadletter_topic="dead")[0].dataset_version == 2
    [parallel] = stream.once()
    assert [{**row, "reason": None} for row in outcomes_of(parallel, stream)] == [{**row, "reason": None} for row in outcomes_of(manifest, new)]


def test_accepted_losses_go_along_as_versions_of_their_own_and_a_crash_between_them_is_completed(
    old: Ingest, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Ingest(tmp_path / "old", old.bootstrap_servers, "switch-lossy", old.overrides)
    stream.publish([document("secret", SECRET, 0), *sample_records(60, seed=21)])
    stream.once()
    for round_number in (1, 2):
        stream.recreate_topic()
        starts = [f"{partition}@0" for partition in range(2)]
        assert stream.run("--accept-loss", *starts, "--reason", f"made anew {round_number}").returncode == 0
        stream.publish([Record(None, 0, b"secret"), *sample_records(40, seed=21 + round_number)])
        stream.once()
    source, new = Dataset(stream.root), moved(stream, tmp_path / "new")
    published: list[int] = []

    def interrupted(root: Path, manifest: Any) -> None:
        if len(published) == 3:
            raise KeyboardInterrupt
        published.append(manifest.version)
        publish(root, manifest)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("pipelines.dataset.switch.publish", interrupted)
        switch(source, files, new.root, stream.settings, clock())
    assert published == [1, 2, 3]
    made = switch(source, files, new.root, stream.settings, clock())
    assert (made.is_new, made.manifest.version) == (True, 5)
    assert not switch(source, files, new.root, stream.settings, clock()).is_new
    manifests = [Dataset(new.root).read(version) for version in range(1, 6)]
    before = [manifest.accepted_loss for manifest in source.manifests() if manifest.accepted_loss]
    assert [manifest.accepted_loss for manifest in manifests] == [None, before[0], None, before[1], None]
    assert {manifest.derived_from.version for manifest in manifests if manifest.derived_from} == {source.version}
    assert manifests[-1].totals.num_lost == source.manifest.totals.num_lost
    assert Dataset(new.root, 5).offsets() == source.offsets()
    place = ["topic", "partition", "offset"]
    assert rows_of(new.root).select(place).equals(rows_of(stream.root).select(place))
    assert texts_of(new.root) == texts_of(stream.root)
    assert verify(new.root).problems == []
    assert new.once() == []
    stream.publish([document("more", f"{ENGLISH} and more of it", 0)])
    assert [manifest.num_records for manifest in new.once()] == [1]
    assert verify(new.root).problems == []


def outcomes_of(manifest: Any, ingest: Ingest) -> list[dict[str, Any]]:
    return pl.read_parquet(ingest.root / manifest.documents[0].path).select("doc_id", "partition", "offset", "outcome", "reason").to_dicts()


def test_settings_with_another_tokenizer_are_refused_and_the_switch_is_named(old: Ingest, tmp_path: Path) -> None:
    other = replace(old, overrides={**old.overrides, "tokenizer.vocab_size": 400})
    with pytest.raises(TokenizerMismatch, match="headrace tokenizer switch"):
        other.once()
