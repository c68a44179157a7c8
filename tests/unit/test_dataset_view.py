"""A reader sees exactly what manifests list."""

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from pipelines.dataset.dataset import Dataset, dataset_log, latest_version
from pipelines.dataset.names import data_files
from pipelines.dataset.writer import ResolvedBlock, VersionPlan, publish, write_version
from pipelines.storage.durable import sha256_file
from schemas.arrow import SEGMENT, Outcome, Split
from schemas.errors import CommitConflict, DatasetNotFound, ManifestCorrupt
from tests.factories import TOPIC, commit_records, make_dataset, make_tokens, no_duplicates, no_masks, prepared_block, text_settings, tokenizer_ref


def test_a_version_is_the_union_of_its_manifests(tmp_path: Path) -> None:
    first, second = make_dataset(tmp_path, num_rows=20), make_dataset(tmp_path, num_rows=10)
    dataset = Dataset(tmp_path)
    assert (dataset.version, latest_version(tmp_path)) == (2, 2)
    assert list(dataset.manifests()) == [first, second]
    assert (dataset.manifests()[-1], list(dataset.manifests()[:1]), len(dataset.manifests())) == (second, [first], 2)
    assert [entry.rows for entry in dataset.shards(Split.TRAIN)] == [20, 10]
    assert dataset.next_offsets(TOPIC) == {0: first.num_records + second.num_records}
    assert dataset.next_offsets("other") == {}
    assert second.totals.num_tokens == first.num_tokens + second.num_tokens
    ref = dataset.ref()
    assert ref.offsets[TOPIC][0].start == 0
    assert ref.offsets[TOPIC][0].end == second.totals.num_records
    assert ref.manifest_sha256 == sha256_file(dataset_log(tmp_path).path(2))


def test_documents_file_has_one_row_per_offset_with_spans_that_add_up(tmp_path: Path) -> None:
    manifest = make_dataset(tmp_path, num_rows=20)
    documents = pl.read_parquet(tmp_path / manifest.documents[0].path)
    assert documents["offset"].to_list() == list(range(manifest.num_records))
    assert documents["outcome"].unique().to_list() == [Outcome.KEPT]
    assert documents["length"].sum() == documents["num_tokens"].sum() == manifest.num_tokens


def test_older_versions_stay_readable_and_missing_ones_are_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFound, match="headrace ingest"):
        Dataset(tmp_path)
    make_dataset(tmp_path)
    make_dataset(tmp_path)
    assert Dataset(tmp_path, 1).version == 1
    with pytest.raises(DatasetNotFound, match="1 to 2"):
        Dataset(tmp_path, 3)


def test_a_damaged_manifest_is_refused(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    make_dataset(tmp_path)
    path = dataset_log(tmp_path).path(2)
    path.write_bytes(dataset_log(tmp_path).read(1))
    with pytest.raises(ManifestCorrupt, match="says that it is version 1"):
        Dataset(tmp_path)
    path.write_bytes(b"{")
    with pytest.raises(ManifestCorrupt, match="not a valid manifest"):
        Dataset(tmp_path)


def test_only_whole_names_are_entries_of_a_log(tmp_path: Path) -> None:
    log = dataset_log(tmp_path)
    log.publish(1, b"first")
    for name in ("00000002.json~", "00000003.json.bak", "0000004.json", "00000005.JSON", ".tmp-00000006.json-0123456789ab"):
        (log.folder / name).touch()
    assert (log.latest(), log.latest(known=1)) == (1, 1)


def test_a_version_that_keeps_nothing_lists_no_fingerprints_and_adds_up(tmp_path: Path) -> None:
    kept = commit_records(
        tmp_path, [(None, b'{"text": "The mill by the river grinds the grain of the valley, and its wheel turns by day and night."}')]
    )
    nothing = commit_records(tmp_path, [(None, b"{"), (None, None)])
    assert (len(kept.dedup_segments), nothing.dedup_segments, nothing.shards) == (1, [], [])
    assert (nothing.totals.num_records, nothing.totals.num_tokens) == (3, kept.num_tokens)
    assert (nothing.totals.outcomes[Outcome.KEPT], nothing.totals.outcomes[Outcome.DEAD]) == (1, 1)


def test_row_groups_and_files_of_the_trail_end_by_the_number_of_rows_and_hold_each_row_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.dataset.trail_writer.ROW_GROUP_ROWS", 2)
    monkeypatch.setattr("pipelines.dataset.trail_writer.TRAIL_FILE_ROWS", 5)
    rng = np.random.default_rng(0)
    blocks = [prepared_block([make_tokens(rng, 9, 300)] * 3, [Split.TRAIN] * 3, vocab_size=300, first_offset=first) for first in (0, 3, 6)]
    plan = VersionPlan(1, "0" * 12, {}, {}, tokenizer_ref(300))
    settings = text_settings(tmp_path)
    files = write_version(tmp_path, plan, settings, [ResolvedBlock(block, no_duplicates(3)) for block in blocks], SEGMENT.empty_table, no_masks)
    written = [pq.ParquetFile(tmp_path / entry.path) for entry in files.documents]
    groups = [[file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)] for file in written]
    assert groups == [[2, 2, 1], [2, 2]]
    assert [entry.rows for entry in files.documents] == [5, 4]
    assert [offset for file in written for offset in file.read()["offset"].to_pylist()] == list(range(9))
    assert {entry.path for entry in files.documents} <= set(data_files(tmp_path))  # the collector knows all of their names


def test_a_writer_that_was_overtaken_is_told_so_also_when_its_files_were_collected(tmp_path: Path) -> None:
    manifest = make_dataset(tmp_path)
    (tmp_path / manifest.shards[0].path).unlink()
    with pytest.raises(CommitConflict, match="another writer"):
        publish(tmp_path, manifest)


def test_a_log_entry_is_created_once_and_in_order(tmp_path: Path) -> None:
    log = dataset_log(tmp_path)
    log.publish(1, b"first")
    with pytest.raises(CommitConflict, match="another writer"):
        log.publish(1, b"second")
    with pytest.raises(CommitConflict, match="before entry 2"):
        log.publish(3, b"third")
    assert (log.read(1), log.latest()) == (b"first", 1)
    assert [path.name for path in log.folder.iterdir()] == ["00000001.json"]
