"""A compaction of the duplicate index is a version like any other, which adds no documents: every reader copes with it."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.dataset import checkpoints
from pipelines.dataset.checkpoints import Range, save_checkpoint
from pipelines.dataset.compaction import (
    GROWTH,
    MANY_ROWS,
    MAX_SEGMENTS_FACTOR,
    compact,
    index_files,
    is_due,
    is_superseded,
    pays_off,
    publish_base,
    write_new_base,
)
from pipelines.dataset.dataset import Dataset, dataset_log, latest_version
from pipelines.dataset.gc import collect_garbage, orphans
from pipelines.dataset.loader import TokenRows
from pipelines.dataset.verify import verify
from pipelines.dataset.writer import manifest_without_documents, publish
from pipelines.lineage.lineage import trace
from pipelines.runtime.background import Background
from schemas.arrow import VERSIONS, Outcome, Split
from schemas.errors import CommitConflict, ShardCorrupt
from schemas.settings import data_fingerprint
from tests.factories import TOPIC, clock, commit_records, text_settings

Record = tuple[bytes | None, bytes | None]


def document(name: str, text: str) -> Record:
    return name.encode(), json.dumps({"id": name, "text": text}).encode()


def story(number: int) -> str:
    names = ["Anna", "Bela", "Cyril", "Dora", "Emil", "Frida"]
    words = [f"{names[(number * step) % 6]} counted {number * step + 3} sacks of grain near the {step}th mill" for step in range(1, 9)]
    return f"Story number {number} of the river valley. " + ", then ".join(words) + "."


def test_a_compaction_is_due_when_enough_segments_hold_enough_documents() -> None:
    assert not pays_off(0, 3, 30, 4)
    assert pays_off(0, 4, 40, 4)
    assert not pays_off(0, 4, 40, 0)
    assert pays_off(0, 3, MANY_ROWS, 4)
    assert not pays_off(0, 3, MANY_ROWS, 0)
    assert not pays_off(MANY_ROWS * GROWTH + 1, 3, MANY_ROWS, 4)
    assert pays_off(40 * GROWTH, 4, 40, 4)
    assert not pays_off(40 * GROWTH + 1, 4, 40, 4)
    assert pays_off(10**9, 4 * MAX_SEGMENTS_FACTOR, 4 * MAX_SEGMENTS_FACTOR, 4)


def test_what_is_due_follows_from_the_segments_that_no_base_covers(compacted: Path) -> None:
    assert [is_due(Dataset(compacted, version), 2) for version in (1, 2, 3, 4, 5)] == [False, True, False, False, False]
    assert [is_due(Dataset(compacted, version), 1) for version in (1, 2, 3, 4, 5)] == [True, True, False, True, False]


def test_how_the_index_is_kept_is_not_part_of_the_data_fingerprint(tmp_path: Path) -> None:
    plain = data_fingerprint(text_settings(tmp_path))
    assert data_fingerprint(text_settings(tmp_path, **{"dedup.compact_segments": 3, "dedup.index_shards": 4})) == plain
    assert data_fingerprint(text_settings(tmp_path, **{"dedup.max_hamming": 3})) != plain


@pytest.fixture
def compacted(tmp_path: Path) -> Path:
    """Versions 1 and 2 with documents, 3 a compaction, 4 with a duplicate, a retraction and the retracted text again, 5 a compaction."""
    root, settings = tmp_path, text_settings(tmp_path)
    commit_records(root, [document(f"d{number}", story(number)) for number in range(6)])
    commit_records(root, [document(f"d{number}", story(number)) for number in range(6, 12)])
    compact(Dataset(root), settings, now=clock())
    commit_records(root, [document("copy", story(7)), (b"d3", None), document("again", story(3)), document("copy of again", story(3))])
    compact(Dataset(root), settings, now=clock())
    return root


def test_every_reader_copes_with_versions_without_documents(compacted: Path) -> None:
    dataset = Dataset(compacted)
    assert (dataset.version, dataset.next_offsets(TOPIC)) == (5, {0: 16})
    assert verify(compacted).problems == []
    assert orphans(compacted) == collect_garbage(compacted, grace_s=0) == []
    assert [fate.outcome for fate in trace(compacted, "d1", deadletter_topic="dead")] == [Outcome.KEPT]
    assert TokenRows(compacted, 3, Split.TRAIN).num_rows == TokenRows(compacted, 2, Split.TRAIN).num_rows > 0
    assert dataset.manifest.totals == Dataset(compacted, 4).manifest.totals


def test_documents_before_a_compaction_are_still_known_after_it_and_retracted_ones_stay_out(compacted: Path) -> None:
    found = {name: trace(compacted, name, deadletter_topic="dead")[0] for name in ("copy", "again", "copy of again")}
    assert (found["copy"].reason, found["copy"].duplicate_of) == ("exact", "d7")
    assert found["again"].outcome == Outcome.KEPT
    assert found["copy of again"].duplicate_of == "again"
    manifest = commit_records(compacted, [document("d3 once more", story(3)), document("new", story(40)), document("d1 too", story(1))])
    assert manifest.outcomes[Outcome.DUPLICATE] == 2
    assert trace(compacted, "d3 once more", deadletter_topic="dead")[0].duplicate_of == "again"
    assert trace(compacted, "d1 too", deadletter_topic="dead")[0].duplicate_of == "d1"


def test_versions_keep_the_files_that_they_list(compacted: Path) -> None:
    for version, num_segments, has_base in ((2, 2, False), (3, 0, True), (4, 1, True), (5, 0, True)):
        files = index_files(Dataset(compacted, version))
        assert (len(files.segments), files.base is not None) == (num_segments, has_base)
        assert all((compacted / file.path).exists() for file in (*files.segments, *([files.base] if files.base else [])))


def test_a_base_written_in_the_background_covers_the_versions_before_it_and_those_after_stay_segments(tmp_path: Path) -> None:
    settings = text_settings(tmp_path)
    commit_records(tmp_path, [document("d1", story(1)), document("d2", story(2))])
    dataset = Dataset(tmp_path)
    background = Background(lambda: write_new_base(dataset, settings.dedup.max_hamming), "compaction")
    commit_records(tmp_path, [document("d7", story(7))])
    manifest = publish_base(Dataset(tmp_path), background.result(), settings, now=clock())
    assert (manifest.version, manifest.dedup_base_version, background.is_done()) == (3, 1, True)
    assert [len(index_files(Dataset(tmp_path, version)).segments) for version in (2, 3)] == [2, 1]
    commit_records(tmp_path, [document("again", story(1)), document("and again", story(7))])
    assert trace(tmp_path, "again", deadletter_topic="dead")[0].duplicate_of == "d1"
    assert trace(tmp_path, "and again", deadletter_topic="dead")[0].duplicate_of == "d7"
    assert verify(tmp_path).problems == []
    assert orphans(tmp_path) == []


def test_a_base_that_versions_have_passed_is_not_collected_while_a_writer_may_publish_it(tmp_path: Path) -> None:
    settings = text_settings(tmp_path)
    commit_records(tmp_path, [document("d1", story(1))])
    begun = write_new_base(Dataset(tmp_path), settings.dedup.max_hamming)
    for number in (2, 3, 4):
        commit_records(tmp_path, [document(f"d{number}", story(number))])
    assert orphans(tmp_path) == [begun.entry.path]
    assert collect_garbage(tmp_path, grace_s=0, by_hand=True) == []
    manifest = publish_base(Dataset(tmp_path), begun, settings, now=clock())
    assert (manifest.version, manifest.dedup_base_version, verify(tmp_path).problems) == (5, 1, [])


def test_a_base_that_another_one_has_passed_is_never_listed_and_goes(tmp_path: Path) -> None:
    settings = text_settings(tmp_path)
    commit_records(tmp_path, [document("d1", story(1))])
    late = write_new_base(Dataset(tmp_path), settings.dedup.max_hamming)
    commit_records(tmp_path, [document("d2", story(2))])
    compact(Dataset(tmp_path), settings, now=clock())
    assert collect_garbage(tmp_path, grace_s=0) == [late.entry.path]
    with pytest.raises(CommitConflict, match="holds as much"):
        publish_base(Dataset(tmp_path), late, settings, now=clock())
    assert (Dataset(tmp_path).version, verify(tmp_path).problems) == (3, [])


def test_of_two_bases_that_hold_as_much_only_the_first_is_listed(tmp_path: Path) -> None:
    settings = text_settings(tmp_path)
    commit_records(tmp_path, [document("d1", story(1))])
    first, second = (write_new_base(Dataset(tmp_path), settings.dedup.max_hamming) for _ in range(2))
    publish_base(Dataset(tmp_path), first, settings, now=clock())
    assert is_superseded(Dataset(tmp_path), second)
    with pytest.raises(CommitConflict, match="holds as much"):
        publish_base(Dataset(tmp_path), second, settings, now=clock())
    assert collect_garbage(tmp_path, grace_s=0) == [second.entry.path]


def test_a_base_that_a_later_version_lists_stays_also_if_a_checkpoint_says_that_none_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "GROWTH", 2)
    settings = text_settings(tmp_path)
    commit_records(tmp_path, [document("d1", story(1))])
    begun = write_new_base(Dataset(tmp_path), settings.dedup.max_hamming)
    for number in (2, 3):
        commit_records(tmp_path, [document(f"d{number}", story(number))])
    assert publish_base(Dataset(tmp_path), begun, settings, now=clock()).version == 4
    rows = [row | {"attempt": row["attempt"] + 1} for row in Dataset(tmp_path).columns.to_pylist()]
    save_checkpoint(tmp_path, dataset_log(tmp_path), Range(1, 4), pa.Table.from_pylist(rows, schema=VERSIONS))
    assert begun.entry.path in orphans(tmp_path)
    assert collect_garbage(tmp_path, grace_s=0, by_hand=True) == []


def test_a_version_without_documents_goes_on_where_its_parent_ended(tmp_path: Path) -> None:
    committed = commit_records(tmp_path, [document("d1", story(1))])
    parent = committed.model_copy(update={"leader_epochs": {TOPIC: {0: 7}}, "record_bytes": {TOPIC: {0: 400}}})
    after = manifest_without_documents(parent, "a" * 12, text_settings(tmp_path), clock())
    for name in ("topic_ids", "leader_epochs", "record_bytes", "totals", "tokenizer", "sequence_length"):
        assert getattr(after, name) == getattr(parent, name), name
    assert (after.version, after.parent, after.num_records, after.files) == (2, 1, 0, [])
    assert (after.offsets[TOPIC][0].start, after.offsets[TOPIC][0].end) == (1, 1)


@pytest.mark.parametrize("kind", ["shards", "documents", "dedup_segments", "dedup_base", "boilerplate", "masks"])
def test_no_manifest_lists_a_file_that_is_gone_whatever_its_kind(tmp_path: Path, kind: str) -> None:
    settings = text_settings(tmp_path, **{"dedup.boilerplate": True})
    commit_records(tmp_path, [document(f"d{number}", story(number)) for number in range(4)], settings)
    manifest = commit_records(tmp_path, [document("d9", story(9)), (b"d1", None)], settings)
    if kind == "dedup_base":
        manifest = compact(Dataset(tmp_path), settings, now=clock())
    dataset_log(tmp_path).path(manifest.version).unlink()
    gone = tmp_path / getattr(manifest, kind)[0].path
    gone.unlink()
    with pytest.raises(ShardCorrupt, match=f"{gone.name} is gone, or no longer has its"):
        publish(tmp_path, manifest)
    assert latest_version(tmp_path) == manifest.version - 1


def test_what_went_wrong_in_the_background_is_raised(tmp_path: Path) -> None:
    manifest = commit_records(tmp_path, [document("d1", story(1))])
    (tmp_path / manifest.dedup_segments[0].path).unlink()
    with pytest.raises(ShardCorrupt, match="is missing"):
        Background(lambda: write_new_base(Dataset(tmp_path), 6), "compaction").result()


def test_a_second_compaction_of_the_same_version_is_fenced_and_leaves_garbage(tmp_path: Path) -> None:
    commit_records(tmp_path, [document("a", story(1))])
    dataset, settings = Dataset(tmp_path), text_settings(tmp_path)
    compact(dataset, settings, now=clock())
    with pytest.raises(CommitConflict):
        compact(dataset, settings, now=clock())
    left = orphans(tmp_path)
    assert len(left) == 1 and "-base-" in left[0]
    assert collect_garbage(tmp_path, grace_s=0) == left
    assert verify(tmp_path).problems == []
