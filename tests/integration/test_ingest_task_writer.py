"""What tasks write, each a part of a version, is byte for byte the same as what one writer writes."""

import itertools
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray

from pipelines.dataset import trail_writer
from pipelines.dataset.boilerplate import Boilerplate
from pipelines.dataset.settling import DUPLICATES, DecidedBlock, Decision, Layout, changed_rows, duplicates_named, settle
from pipelines.dataset.writer import MakeWriter, ResolvedBlock, VersionFiles, VersionPlan, VersionWriter, Writer, kept_rows, write_version
from pipelines.dedup.resolve import KeptApart
from pipelines.ingest import task_writer
from pipelines.ingest.decisive import MadeOf, decisive_of, signed_lengths
from pipelines.ingest.task_writer import TaskWriter
from pipelines.runtime.cluster import ray_session
from pipelines.runtime.ray_errors import has_cause, original
from pipelines.runtime.roles import nodes_of
from schemas.arrow import MASKS, SEGMENT, Outcome, Split
from schemas.errors import BlockChanged, DatasetError
from schemas.manifest import OffsetRange
from schemas.settings import Settings
from tests.factories import TOPIC, prepared_block, text_settings, tokenizer_ref

NOW = datetime(2026, 1, 1, tzinfo=UTC)
VOCAB = 300


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with ray_session(Settings().ray):
        yield


def rows(number: int, seed: int) -> tuple[pa.Table, pa.Table]:
    """A prepared block of all outcomes with names that repeat and one document longer than a shard, and verdicts that drop some documents."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 90, number)
    lengths[number // 2] = 900
    block = prepared_block(
        [rng.integers(2, VOCAB, length) for length in lengths],
        [Split.VALIDATION if rng.random() < 0.2 else Split.TRAIN for _ in range(number)],
        vocab_size=VOCAB,
    )
    outcomes = rng.choice([Outcome.KEPT, Outcome.REJECTED, Outcome.CONTROL, Outcome.RETRACTED], number, p=[0.7, 0.1, 0.1, 0.1])
    is_kept = outcomes == Outcome.KEPT
    columns = {
        "outcome": outcomes.astype(str).tolist(),
        "reason": [None if kept else "rule" for kept in is_kept],
        "domain": [f"{rng.integers(9)}.example" for _ in range(number)],
        "source": [f"source {rng.integers(4)}" for _ in range(number)],
        "timestamp_ms": rng.integers(1_700_000_000_000, 1_700_000_100_000, number).tolist(),
        "paragraphs": [rng.integers(50, size=3).tolist() for _ in range(number)],
        "size_bytes": [0] * number,
    }
    for name, values in columns.items():
        kind = block.schema.field(name) if name in block.schema.names else pa.field(name, pa.int64())
        place = block.schema.get_field_index(name)
        block = block.append_column(kind, pa.array(values, kind.type)) if place < 0 else block.set_column(place, kind, pa.array(values, kind.type))
    is_dropped = rng.random(int(is_kept.sum())) < 0.2
    verdicts = {
        "duplicate_of": pa.array(["doc-0" if dropped else None for dropped in is_dropped], pa.string()),
        "reason": pa.array(["near" if dropped else None for dropped in is_dropped], pa.string()),
        "similarity": pa.array(np.full(len(is_dropped), 0.5, np.float32), mask=~is_dropped),
    }
    return block, pa.table(verdicts)


def blocks(block: pa.Table, verdicts: pa.Table, borders: list[int], *, apart: bool) -> Iterator[ResolvedBlock | DecidedBlock]:
    done = 0
    for start, end in itertools.pairwise([0, *borders, len(block)]):
        part = block.slice(start, end - start)
        num_kept = len(kept_rows(part))
        verdict = verdicts.slice(done, num_kept)
        done += num_kept
        yield decided(part, verdict) if apart else ResolvedBlock(part, verdict)


def decided(part: pa.Table, verdict: pa.Table) -> DecidedBlock:
    """Every other duplicate is one of a document whose id stands in another block. The first row was prepared as one that is not kept, or is."""
    named = duplicates_named(verdict).to_pylist()
    for row in named[::2]:
        row |= {"duplicate_of": None, "block": 1, "block_position": 2}
    names = [pa.array(["no"], pa.string()), pa.array(["no", "nor this", "doc-0"], pa.string())] if named else []
    candidates = signed_lengths(kept_rows(part)).to_numpy()
    before = prepared_otherwise(part)
    changed = changed_rows(before, part)
    return DecidedBlock(ray.put(before), len(part), candidates, pa.Table.from_pylist(named, DUPLICATES), list(map(ray.put, names)), changed)


def prepared_otherwise(part: pa.Table) -> pa.Table:
    """The block as it was before the committer changed its first row."""
    outcomes, reasons = part["outcome"].to_pylist(), part["reason"].to_pylist()
    was_kept = outcomes[0] == Outcome.KEPT
    outcomes[0], reasons[0] = (str(Outcome.REJECTED), "other rule") if was_kept else (str(Outcome.KEPT), None)
    for name, values in (("outcome", outcomes), ("reason", reasons)):
        part = part.set_column(part.schema.get_field_index(name), part.schema.field(name), pa.array(values, pa.string()))
    return part


def writer_in(root: Path, make_writer: MakeWriter) -> Writer:
    settings = text_settings(root)
    plan = VersionPlan(1, "0" * 12, {TOPIC: "A" * 22}, {TOPIC: {0: OffsetRange(start=0, end=1)}}, tokenizer_ref(VOCAB))
    return make_writer(root, plan, settings, Boilerplate(settings.dedup))


def written(root: Path, resolved: Iterator[ResolvedBlock | DecidedBlock], make_writer: MakeWriter) -> VersionFiles:
    settings = text_settings(root, **{"packing.shard_rows": 8, "dedup.boilerplate": True})
    plan = VersionPlan(1, "0" * 12, {TOPIC: "A" * 22}, {TOPIC: {0: OffsetRange(start=0, end=1)}}, tokenizer_ref(VOCAB))
    boilerplate = Boilerplate(settings.dedup)
    boilerplate.open(None)
    nothing = SEGMENT.empty_table()
    segment: Any = nothing if make_writer is VersionWriter else [nothing]
    return write_version(root, plan, settings, resolved, lambda: segment, lambda _: MASKS.empty_table(), boilerplate, make_writer)


@pytest.mark.parametrize(("seed", "borders"), [(0, []), (1, [1, 2, 60, 61]), (2, [70, 140]), (3, list(range(7, 300, 7)))])
def test_files_and_statistics_do_not_depend_on_who_writes_them_nor_on_the_cut_into_blocks(
    tmp_path: Path, seed: int, borders: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (trail_writer, task_writer):
        monkeypatch.setattr(module, "TRAIL_FILE_ROWS", 70)  # five files: a worker, which does not know of this, gets 70 rows for each
    block, verdicts = rows(300, seed)
    alone = written(tmp_path / "alone", blocks(block, verdicts, [100], apart=False), VersionWriter)
    tasks = written(tmp_path / "tasks", blocks(block, verdicts, borders, apart=True), TaskWriter)
    assert len(alone.documents) == 5 and len(alone.shards) > 4
    assert (tasks.shards, tasks.documents, tasks.boilerplate) == (alone.shards, alone.documents, alone.boilerplate)  # paths, counts and SHA-256
    assert tasks.statistics.finish(NOW) == alone.statistics.finish(NOW)
    assert {path.relative_to(tmp_path / "tasks") for path in (tmp_path / "tasks").rglob("*.*")} == {
        path.relative_to(tmp_path / "alone") for path in (tmp_path / "alone").rglob("*.*")
    }


def test_what_a_task_cannot_write_is_raised_as_it_is_and_nothing_is_left(tmp_path: Path) -> None:
    block, verdicts = rows(50, 0)
    (tmp_path / "shards").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="shards") as caught:
        written(tmp_path, blocks(block, verdicts, [], apart=True), TaskWriter)
    assert (type(caught.value), caught.value.filename) == (FileExistsError, str(tmp_path / "shards"))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "shards"]


def test_a_write_that_failed_stops_the_version_long_before_its_last_block(tmp_path: Path) -> None:
    block, verdicts = rows(50, 0)
    (tmp_path / "shards").write_text("a file where the folder should be")
    taken: list[int] = []

    def many() -> Iterator[DecidedBlock]:
        for number in range(200):
            taken.append(number)
            yield decided(block, verdicts)

    with pytest.raises(FileExistsError):
        written(tmp_path, many(), TaskWriter)
    assert len(taken) < 100


def test_fingerprints_that_stay_elsewhere_are_written_as_those_that_are_here(tmp_path: Path) -> None:
    block, _ = rows(60, 0)
    candidates, kept = kept_rows(block), np.array([0, 3, 4, 20])
    segment = candidates.select(SEGMENT.names).cast(SEGMENT).take(pa.array(kept))
    decisive, ids = decisive_of(block, None)
    parts: list[pa.Table | KeptApart] = [segment.slice(0, 1), KeptApart(MadeOf(ray.put(decisive), ray.put(ids)), kept[1:])]
    here, elsewhere = (
        writer_in(tmp_path / name, make_writer).write_segment(found)
        for name, make_writer, found in (("here", VersionWriter, segment), ("elsewhere", TaskWriter, parts))
    )
    assert elsewhere == here and here[0].rows == 4


def test_a_block_that_was_prepared_again_with_other_tokens_is_refused() -> None:
    block, verdicts = rows(50, 0)
    kept = [np.flatnonzero(block["split"].to_numpy() == split) for split in Split]
    decision = Decision(None, duplicates_named(verdicts), [[], []], [np.ones(len(of_split), np.int32) for of_split in kept])
    layout = Layout("root", 1, "0" * 12, tokenizer_ref(VOCAB), 32)
    with pytest.raises(BlockChanged, match="does not give the same result twice"):
        settle(block, decision, layout)


def test_an_error_is_found_behind_others_also_where_the_chain_has_a_circle() -> None:
    error = OSError("the innermost")
    error.__cause__ = error
    assert original(error) is error
    assert has_cause(error, (OSError,)) and not has_cause(error, (DatasetError,))


def test_only_the_nodes_of_a_role_are_counted() -> None:
    here = nodes_of("")
    assert here.number == 1 and here.num_cpus >= 1
    assert nodes_of("CPU") == here
    assert nodes_of("a resource that no node has") == (0, 0)
