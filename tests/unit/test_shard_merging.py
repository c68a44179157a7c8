"""A merge of small shards is a version without documents: rows, documents and hashes are what they were, in fewer files."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ops.cli.main import main
from pipelines.dataset import merging, shard_maps
from pipelines.dataset.audit import live_texts
from pipelines.dataset.dataset import Dataset, dataset_log
from pipelines.dataset.gc import collect_garbage, orphans
from pipelines.dataset.loader import TokenRows
from pipelines.dataset.merging import Merge, due_runs, is_superseded, merge, newest_merged, publish_merge, write_merge
from pipelines.dataset.names import version_of
from pipelines.dataset.retractions.masks import Ids
from pipelines.dataset.shards import joined
from pipelines.dataset.verify import verify
from pipelines.dataset.verify_shards import ShardChecks
from pipelines.ingest.upkeep import Upkeep
from pipelines.lineage.croissant import _shard_files
from pipelines.lineage.lineage import trace
from pipelines.storage.durable import sha256_file
from pipelines.storage.holds import TEMPORARY_PREFIX, hold
from pipelines.storage.pinned import verify_once
from pipelines.views.rows import ViewRows
from pipelines.views.selection import whole
from schemas.arrow import Outcome, Split
from schemas.errors import CommitConflict, ShardCorrupt
from schemas.manifest import DatasetManifest, FileEntry
from schemas.settings import Settings, data_fingerprint
from tests.factories import clock, commit_records, make_dataset, text_settings

TOGETHER = 4
NUM_VERSIONS = 9
SEQUENCE_LENGTH = 16


def settings_of(root: Path, shard_rows: int = 200) -> Settings:
    return text_settings(
        root, **{"ingest.merge_shards": TOGETHER, "packing.shard_rows": shard_rows, "ingest.gc_grace_s": 0, "ingest.merged_grace_s": 0}
    )


def story(number: int) -> tuple[None, bytes]:
    words = [f"Anna counted {number * step + 3} sacks of grain near mill {number}-{step}" for step in range(1, 2 + number % 5)]
    return None, json.dumps({"id": f"d{number}", "text": f"Story {number} of the valley. " + ", then ".join(words) + "."}).encode()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions of a few documents each, the fourth with a retraction."""
    root = tmp_path_factory.mktemp("made")
    for version in range(NUM_VERSIONS):
        records = [story(3 * version + number) for number in range(3)]
        commit_records(root, [*records, *([(b"d1", None)] if version == 3 else [])], settings_of(root))
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "root"))


def merge_all(root: Path, settings: Settings) -> int:
    """Number of merges that were due one after the other."""
    for number in range(100):
        if merge(Dataset(root), settings, now=clock()) is None:
            return number
    raise AssertionError("merges never end")


def rows_of(root: Path, version: int, split: Split) -> Ids:
    rows = TokenRows(root, version, split)
    return rows.gather(np.arange(rows.num_rows))


def everything(root: Path) -> list[tuple[list[list[int]], list[list[int]], list[str]]]:
    """Of each version with documents: its rows, those of it as a view, and its texts."""
    found = []
    for version in range(1, NUM_VERSIONS + 1):
        dataset = Dataset(root, version)
        for split in Split:
            view = ViewRows(whole(dataset), split)
            texts = [text for block in live_texts(dataset) for text in block["text"].to_pylist()]
            found.append((rows_of(root, version, split).tolist(), view.gather(np.arange(view.num_rows)).tolist(), texts))
    return found


def names(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "shards").iterdir())


def test_every_version_reads_the_same_after_a_merge_and_after_the_shards_are_gone(root: Path) -> None:
    before, num_files = everything(root), len(names(root))
    assert merge_all(root, settings_of(root)) > 0
    assert everything(root) == before
    removed = collect_garbage(root, grace_s=0)
    assert sum(path.startswith("shards/") for path in removed) == len(removed) > num_files // 2
    assert everything(root) == before
    assert verify(root).problems == [] and orphans(root) == []


def test_a_merge_adds_nothing_and_later_versions_go_on_behind_it(root: Path) -> None:
    before = Dataset(root)
    manifest = merge(before, settings_of(root), now=clock())
    assert manifest is not None and manifest.merged
    assert (manifest.totals, manifest.num_records, manifest.shards) == (before.manifest.totals, 0, [])
    after = commit_records(root, [story(100), story(101), story(0)], settings_of(root))
    assert after.outcomes[Outcome.DUPLICATE] == 1
    assert [before.num_rows(split) for split in Split] == [Dataset(root, before.version + 1).num_rows(split) for split in Split]
    assert verify(root).problems == []


def test_a_reader_that_was_opened_before_finds_rows_whose_file_a_merge_and_the_collector_took(root: Path) -> None:
    expected = rows_of(root, NUM_VERSIONS, Split.TRAIN)
    reader, view = TokenRows(root, NUM_VERSIONS, Split.TRAIN), ViewRows(whole(Dataset(root)))
    of_view = ViewRows(whole(Dataset(root))).gather(np.arange(view.num_rows))
    merge_all(root, settings_of(root))
    assert collect_garbage(root, grace_s=0)
    assert np.array_equal(reader.gather(np.arange(reader.num_rows)), expected)
    assert np.array_equal(view.gather(np.arange(view.num_rows)), of_view)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ESTALE])
def test_a_file_that_the_collector_takes_while_it_is_opened_is_looked_for_again(root: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    expected = rows_of(root, NUM_VERSIONS, Split.TRAIN)
    reader = TokenRows(root, NUM_VERSIONS, Split.TRAIN)

    def goes(folder: Path, entry: FileEntry) -> Path:
        monkeypatch.setattr(shard_maps, "verify_once", verify_once)
        merge_all(folder, settings_of(folder))
        assert collect_garbage(folder, grace_s=0)
        raise OSError(number, os.strerror(number), entry.path)

    monkeypatch.setattr(shard_maps, "verify_once", goes)
    assert np.array_equal(reader.gather(np.arange(reader.num_rows)), expected)


@pytest.mark.parametrize("num_versions", [30, pytest.param(200, marks=pytest.mark.slow)])
def test_many_small_versions_end_in_a_few_files_and_no_row_is_copied_often(tmp_path: Path, num_versions: int) -> None:
    settings = settings_of(tmp_path, shard_rows=400)
    dataset = None
    for _ in range(num_versions):
        make_dataset(tmp_path, num_rows=2, sequence_length=SEQUENCE_LENGTH, num_validation_rows=1)
        dataset = Dataset(tmp_path, before=dataset)  # as a writer does that goes on
        merge(dataset, settings, now=clock())
    expected = rows_of(tmp_path, Dataset(tmp_path).version, Split.TRAIN)
    merge_all(tmp_path, settings)
    collect_garbage(tmp_path, grace_s=0)
    files = [Dataset(tmp_path).shard_files(split) for split in Split]
    assert len(names(tmp_path)) == sum(map(len, files)) <= min(30, num_versions // 2)
    assert max(max(part["copies"].to_pylist()) for part in files) <= 4
    assert max(part["rows"].to_numpy().max() for part in files) <= 400
    assert np.array_equal(rows_of(tmp_path, Dataset(tmp_path).version, Split.TRAIN), expected)


def test_what_is_due_are_small_files_in_a_row_that_were_copied_equally_often(root: Path) -> None:
    placement = Dataset(root).placement
    rows = placement.of_split(Split.TRAIN)["rows"].to_pylist()
    assert [run.split for run in due_runs(placement, TOGETHER, 10**6)][:1] == [Split.TRAIN]
    assert due_runs(placement, 0, 10**6) == due_runs(placement, NUM_VERSIONS + 1, 10**6) == []
    assert due_runs(placement, TOGETHER, max(rows)) == []  # none of so many in a row is small then
    (run, *_) = due_runs(placement, TOGETHER, 4 * max(rows) + 4)
    assert sum(part.rows for part in run.parts) <= 4 * max(rows) + 4 and 2 <= len(run.parts) <= NUM_VERSIONS
    merge(Dataset(root), settings_of(root), now=clock())
    assert due_runs(Dataset(root).placement, 2, 10**6) == []  # one file, copied once, and none beside it that was


def test_a_merged_file_says_how_often_its_rows_were_copied_and_which_version_it_is_of(root: Path) -> None:
    def merge_two() -> DatasetManifest:
        dataset = Dataset(root)
        return publish_merge(dataset, write_merge(dataset, due_runs(dataset.placement, 2, 10**4)), settings_of(root), now=clock())

    found = [merge_two()]
    for version in range(2):
        commit_records(root, [story(200 + 3 * version + number) for number in range(3)], settings_of(root))
    found += [merge_two(), merge_two()]
    assert [{entry.copies for entry in manifest.merged} for manifest in found] == [{1}, {1}, {2}]
    assert all(version_of(entry.path) == manifest.version for manifest in found for entry in manifest.merged)
    assert newest_merged(Dataset(root))[Split.TRAIN] == found[-1].version
    assert verify(root).problems == []


def test_how_shards_are_merged_is_not_part_of_the_data_fingerprint(tmp_path: Path) -> None:
    assert data_fingerprint(text_settings(tmp_path)) == data_fingerprint(text_settings(tmp_path, **{"ingest.merge_shards": 3}))


def written(root: Path) -> Merge:
    dataset = Dataset(root)
    return write_merge(dataset, due_runs(dataset.placement, TOGETHER, 200))


def test_a_merge_that_versions_have_passed_is_published_and_one_that_another_has_overtaken_is_garbage(root: Path) -> None:
    settings = settings_of(root)
    first, second = written(root), written(root)
    commit_records(root, [story(100)], settings)
    assert collect_garbage(root, grace_s=0, by_hand=True) == []  # a writer may still publish either
    publish_merge(Dataset(root), first, settings, now=clock())
    assert is_superseded(Dataset(root), second)
    with pytest.raises(CommitConflict, match="Start again from version"):
        publish_merge(Dataset(root), second, settings, now=clock())
    assert {entry.path for entry in second.entries} <= set(collect_garbage(root, grace_s=0))
    assert verify(root).problems == []


def test_a_merge_of_other_files_does_not_make_way_for_one_that_has_some_of_them(root: Path) -> None:
    settings = settings_of(root)
    early = written(root)
    merge(Dataset(root), settings, now=clock())
    late = early._replace(entries=[entry.model_copy(update={"path": entry.path.replace("v0", "v9")}) for entry in early.entries])
    assert is_superseded(Dataset(root), late)  # whatever its name says


def test_a_merge_makes_way_for_one_that_was_begun_no_earlier_also_if_they_have_no_file_in_common(root: Path) -> None:
    """The collector takes the file of the first as soon as the second is published."""
    dataset = Dataset(root)
    run = next(run for run in due_runs(dataset.placement, TOGETHER, 200) if run.split is Split.TRAIN)
    behind = run.first_row + sum(part.rows for part in run.parts[:4])
    early, late = (write_merge(dataset, [own]) for own in (run._replace(parts=run.parts[:4]), run._replace(parts=run.parts[4:], first_row=behind)))
    publish_merge(dataset, late, settings_of(root), now=clock())
    assert is_superseded(Dataset(root), early)
    assert early.entries[0].path in collect_garbage(root, grace_s=0)
    (other,) = [own for own in due_runs(dataset.placement, TOGETHER, 200) if own.split is not run.split]
    assert is_superseded(Dataset(root), write_merge(dataset, [other, early.runs[0]])), "also if the file of the other split has no rival"
    assert not is_superseded(Dataset(root), write_merge(dataset, [other])), "nor has it one by itself"


def test_the_collector_keeps_shards_within_the_grace_and_while_the_file_that_stands_for_them_is_damaged(root: Path) -> None:
    manifest = merge(Dataset(root), settings_of(root), now=clock())
    assert manifest is not None
    assert collect_garbage(root, grace_s=3600) == []
    for entry in manifest.merged:
        flip(root / entry.path)
    assert collect_garbage(root, grace_s=0, by_hand=True) == []
    assert not any("does not reproduce" in problem.what for problem in verify(root).problems), "nor is damage told again for each shard"
    for entry in manifest.merged:
        flip(root / entry.path)
    listed = collect_garbage(root, grace_s=0, dry_run=True)
    assert listed and all((root / path).exists() for path in listed)
    assert collect_garbage(root, grace_s=0) == listed


def flip(path: Path, place: int | None = None) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if place is None else place] ^= 1
    path.write_bytes(data)


def test_a_file_that_does_not_have_the_rows_of_its_shards_is_never_published(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "joined", lambda parts, num_rows: joined(reversed(list(parts)), num_rows))
    with pytest.raises(ShardCorrupt, match="nothing was published"):
        merge(Dataset(root), settings_of(root), now=clock())
    assert Dataset(root).version == NUM_VERSIONS and verify(root).problems == []
    assert orphans(root) == [], "and it is removed"


def test_every_shard_of_a_merge_is_compared_with_its_own_bytes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run,) = [run for run in due_runs(Dataset(root).placement, TOGETHER, 200) if run.split == Split.TRAIN]
    for wrong, part in enumerate(run.parts):

        def with_one_turned_round(parts: Iterable[pa.RecordBatch], num_rows: int, wrong: int = wrong) -> pa.Table:
            turned = (batch.take(list(reversed(range(len(batch))))) if at == wrong else batch for at, batch in enumerate(parts))
            return joined(turned, num_rows)

        monkeypatch.setattr(merging, "joined", with_one_turned_round)
        with pytest.raises(ShardCorrupt, match=f"does not reproduce the bytes of {part.path}"):
            write_merge(Dataset(root), [run])


def test_verify_sees_rows_that_a_merged_file_does_not_have_as_they_were(root: Path) -> None:
    """The file hashes as its manifest says, so only the shards that it stands for tell."""
    manifest = merge(Dataset(root), settings_of(root), now=clock())
    assert manifest is not None
    entry = manifest.merged[0]
    whole_file = (root / entry.path).read_bytes()
    needle = rows_of(root, 1, Split.TRAIN)[0, :8].astype("<u2").tobytes()
    changed = whole_file.replace(needle, needle[::-1], 1)
    (root / entry.path).write_bytes(changed)
    log = dataset_log(root).path(manifest.version)
    log.write_text(log.read_text().replace(entry.sha256, hashlib.sha256(changed).hexdigest()))
    first = Dataset(root, 1).manifest.shards[0].path
    assert f"it does not reproduce the bytes of {first}" in [problem.what for problem in verify(root).problems]
    collect_garbage(root, grace_s=0)
    assert [problem.path for problem in verify(root).problems] == [entry.path]


def test_verify_sees_a_merge_of_rows_that_are_not_whole_shards(root: Path) -> None:
    manifest = merge(Dataset(root), settings_of(root), now=clock())
    assert manifest is not None
    log = dataset_log(root).path(manifest.version)
    value = json.loads(log.read_text())
    value["merged"][0]["tokens"] += 1
    log.write_text(json.dumps(value))
    assert any("not those of whole shards of earlier versions" in problem.what for problem in verify(root).problems)


def test_verify_sees_damage_in_the_own_file_of_a_shard_as_long_as_it_is_there(root: Path) -> None:
    assert merge(Dataset(root), settings_of(root), now=clock()) is not None
    shard = Dataset(root, 1).manifest.shards[0]
    flip(root / shard.path)
    (problem,) = verify(root).problems
    assert problem.path == shard.path and problem.what.startswith("SHA-256 is")


def test_a_damaged_shard_is_not_merged_and_ingest_goes_on(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    flip(root / Dataset(root, 2).manifest.shards[0].path)
    upkeep = Upkeep(settings_of(root), in_background=False)
    made = [upkeep.merge(Dataset(root)) for _ in range(3)]
    assert made[0] is not None and [entry.split for entry in made[0].merged] == [Split.VALIDATION]
    assert made[1:] == [None, None]
    assert "small shards are not merged" in caplog.text and "restore it from a copy" in caplog.text
    assert Dataset(root).version == NUM_VERSIONS + 1
    with pytest.raises(ShardCorrupt):
        merge(Dataset(root), settings_of(root), now=clock())


def test_commands_say_where_the_rows_of_a_merged_shard_lie(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = merge(Dataset(root), settings_of(root), now=clock())
    assert manifest is not None
    collect_garbage(root, grace_s=0)
    file = manifest.merged[0]
    (fate,) = trace(root, "d6", deadletter_topic="dead")
    assert fate.file in {entry.path for entry in manifest.merged} and fate.file != fate.shard and fate.file_row is not None
    for command, said in (
        (["datasets", "list"], f"merged small shards into {len(manifest.merged)} larger"),
        (["datasets", "show", "1"], "from row"),
        (["datasets", "verify"], "no problems"),
        (["trace", "d6"], f"of {fate.file})"),
    ):
        assert main([*command, "--root", str(root)]) == 0
        out = capsys.readouterr()
        assert said in out.out + out.err
    assert main(["datasets", "show", str(manifest.version), "--json", "--root", str(root)]) == 0
    assert json.loads(capsys.readouterr().out)["merged"][0]["path"] == file.path


def test_the_card_of_a_version_before_a_merge_lists_files_that_are_there(root: Path) -> None:
    early = Dataset(root, 2)
    num_files = len(_shard_files(early))
    assert merge(Dataset(root), settings_of(root), now=clock()) is not None
    collect_garbage(root, grace_s=0)
    found = _shard_files(early)
    assert found and len(found) < num_files
    assert all(sha256_file(root / entry["path"]) == entry["sha256"].hex() for entry in found)


@pytest.mark.parametrize("is_held", [True, False])
def test_a_merge_that_is_being_written_or_was_killed_while_it_was_does_not_disturb_the_collector(root: Path, is_held: bool) -> None:
    version = Dataset(root).version
    temporary = root / "shards" / f"{TEMPORARY_PREFIX}v{version:08d}-train-merged-{'a' * 12}.arrow-{'b' * 12}"
    temporary.touch()
    with temporary.open("rb") as file:
        if is_held:
            hold(file.fileno())
        assert collect_garbage(root, grace_s=0) == ([] if is_held else [temporary.relative_to(root).as_posix()])


def test_a_damaged_shard_keeps_neither_the_other_split_from_being_merged_nor_leaves_a_file(root: Path) -> None:
    dataset = Dataset(root)
    flip(root / dataset.shards(Split.TRAIN)[0].path)
    runs = due_runs(dataset.placement, TOGETHER, 200)
    assert {run.split for run in runs} == set(Split)
    before = orphans(root)
    found = write_merge(dataset, runs)
    assert [entry.split for entry in found.entries] == [run.split for run in found.runs] == [Split.VALIDATION]
    assert set(orphans(root)) - set(before) == {found.entries[0].path}
    with pytest.raises(ShardCorrupt, match="has SHA-256"):
        write_merge(dataset, [run for run in runs if run.split is Split.TRAIN])
    assert set(orphans(root)) - set(before) == {found.entries[0].path}


def test_replaced_shards_have_a_grace_period_of_their_own_which_begins_with_the_merge(root: Path) -> None:
    manifest = publish_merge(Dataset(root), written(root), settings_of(root), now=datetime.now(UTC))
    for entry in manifest.merged:
        os.utime(root / entry.path, (0, 0))
    assert collect_garbage(root, grace_s=0, merged_grace_s=3600) == []
    assert collect_garbage(root, grace_s=3600, merged_grace_s=0)


def test_verification_that_began_before_a_merge_follows_the_rows(root: Path) -> None:
    dataset = Dataset(root)
    checks = ShardChecks(root, dataset.placement)
    assert merge(dataset, settings_of(root), now=clock()) is not None
    assert collect_garbage(root, grace_s=0)
    assert [problem for manifest in dataset.manifests() for entry in manifest.shards for problem in checks.file_problems(entry)] == []
