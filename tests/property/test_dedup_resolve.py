"""The resolver decides as a plain loop over all kept documents would, however the rows are cut into batches, versions and bases."""

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.dedup.base import write_base
from pipelines.dedup.deciding import EXACT
from pipelines.dedup.generations import Generation, look_up
from pipelines.dedup.ids import short_hashes
from pipelines.dedup.kept import MIN_CAPACITY
from pipelines.dedup.opening import MAX_SAME_FINGERPRINT, kept_parts
from pipelines.dedup.resolve import RESOLUTION, KeptApart, Resolver
from schemas.arrow import SEGMENT
from schemas.settings_dedup import DedupSettings

Row = tuple[int, bytes, bytes]
Event = tuple[Row | None, str]
"""A document, or a retraction, with its id."""


def table_of(rows: list[Row]) -> pa.Table:
    return table_of_events([(row, f"d{index}") for index, row in enumerate(rows)]).select(SEGMENT.names).cast(SEGMENT)


def table_of_events(events: list[Event]) -> pa.Table:
    columns = [[None if row is None else row[column] for row, _ in events] for column in range(3)]
    kinds = [SEGMENT.field(name).type for name in ("fingerprint", "content_hash", "sketch")]
    arrays = {field.name: pa.array(column, kind) for field, column, kind in zip(SEGMENT, columns, kinds, strict=False)}
    is_retraction = pa.array([row is None for row, _ in events], pa.bool_())
    return pa.table({**arrays, "doc_id": pa.array([doc_id for _, doc_id in events], pa.string()), "is_retraction": is_retraction})


def similarity(left: bytes, right: bytes) -> np.float32:
    filled = [(a, b) for a, b in zip(left, right, strict=True) if a or b]
    return np.float32(sum(a == b for a, b in filled)) / np.float32(len(filled)) if filled else np.float32(0)


def expected(table: pa.Table, options: DedupSettings) -> list[dict[str, Any]]:
    """Quadratic reference."""
    kept: list[dict[str, Any]] = []
    verdicts = []
    for row in table.to_pylist():
        if row.get("is_retraction"):
            for other in kept:
                other["retracted"] |= other["doc_id"] == row["doc_id"]
            verdicts.append(NEITHER)
            continue
        verdict = verdict_of(row, kept, options)
        verdicts.append(verdict)
        if verdict["reason"] is None:
            kept.append({**row, "retracted": False})
    return verdicts


def comparable(kept: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Kept rows with features, of each fingerprint the first MAX_SAME_FINGERPRINT, without the retracted ones among them."""
    seen: dict[int, int] = {}
    chosen = []
    for row in kept:
        if any(row["sketch"]):
            seen[row["fingerprint"]] = seen.get(row["fingerprint"], 0) + 1
            if seen[row["fingerprint"]] <= MAX_SAME_FINGERPRINT and not row["retracted"]:
                chosen.append(row)
    return chosen


def verdict_of(row: dict[str, Any], kept: list[dict[str, Any]], options: DedupSettings) -> dict[str, Any]:
    for other in kept:
        if other["content_hash"] == row["content_hash"] and not other["retracted"]:
            return {"duplicate_of": other["doc_id"], "reason": "exact", "similarity": 1.0}
    near = [other for other in comparable(kept) if (other["fingerprint"] ^ row["fingerprint"]).bit_count() <= options.max_hamming]
    if options.near and any(row["sketch"]) and near:
        best = max(near, key=lambda other: similarity(other["sketch"], row["sketch"]))  # max() returns the first of equals
        value = similarity(best["sketch"], row["sketch"])
        if value >= np.float32(options.min_similarity):
            return {"duplicate_of": best["doc_id"], "reason": "near", "similarity": float(value)}
    return NEITHER


NEITHER = {"duplicate_of": None, "reason": None, "similarity": None}


def write_segment(folder: Path, number: int, segment: pa.Table) -> Path:
    path = folder / f"{number}.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SEGMENT) as writer:
        writer.write_table(segment)
    return path


class Versions:
    """What is on disk between two runs: a base or none, the segments after it, the rows that were retracted."""

    def __init__(self, folder: Path, options: DedupSettings) -> None:
        self.folder, self.options = folder, options
        self.base: Path | None = None
        self.segments: list[Path] = []
        self.retracted = np.empty(0, np.int64)
        self.resolver = Resolver(options, [])

    def close(self) -> None:
        rows, ids = self.resolver.retracted_rows()
        assert len(rows) == len(ids) == len(set(rows.tolist()))
        self.retracted = np.concatenate([self.retracted, rows])
        new_rows = [part if isinstance(part, pa.Table) else self.taken(part) for part in self.resolver.new_rows()]
        segment = pa.concat_tables([SEGMENT.empty_table(), *new_rows])
        self.segments.append(write_segment(self.folder, len(list(self.folder.iterdir())), segment))

    def taken(self, part: KeptApart) -> pa.Table:
        return part.source.take(pa.array(part.positions))

    def compact(self, max_hamming: int) -> None:
        path = self.folder / f"{len(list(self.folder.iterdir()))}.base"
        with path.open("x+b") as file:
            write_base(file, kept_parts(self.base, self.segments), max_hamming)
        self.base, self.segments = path, []

    def reopen(self) -> None:
        self.resolver = Resolver(self.options, self.segments, base=self.base, retracted=self.retracted)


FEATURES = st.lists(st.sampled_from([0, 1, 2]), min_size=4, max_size=4).map(lambda quarter: bytes(quarter * 8))
SKETCH = st.one_of(FEATURES, FEATURES, FEATURES, FEATURES, st.just(bytes(32)))
FINGERPRINT = st.lists(st.integers(0, 63), max_size=5).map(lambda bits: sum({1 << bit for bit in bits}))
HASH = st.tuples(st.integers(0, 4), st.integers(0, 3)).map(lambda halves: bytes([halves[0]]) * 8 + bytes(4) + bytes([halves[1]]) * 4)
"""Few, so that many are equal, and many are equal in one half; all have the same place in the table of hashes."""
ROWS = st.lists(st.tuples(FINGERPRINT, HASH, SKETCH), min_size=20, max_size=40)
"""Without a least size Hypothesis would make five on average, and most cuts would lie behind them."""
OPTIONS = st.builds(
    DedupSettings, near=st.sampled_from([True, True, False]), max_hamming=st.integers(0, 6), min_similarity=st.sampled_from([0.0, 0.5, 0.75, 1.0])
)


@settings(max_examples=25, deadline=None)
@given(ROWS, OPTIONS, st.lists(st.tuples(st.integers(0, 40), st.booleans()), max_size=4))
def test_verdicts_equal_the_quadratic_reference_for_any_cut_into_batches_and_versions(
    rows: list[Row], options: DedupSettings, cuts: list[tuple[int, bool]]
) -> None:
    table = table_of(rows)
    parts = []
    with tempfile.TemporaryDirectory() as name:
        segments: list[Path] = []
        resolver = Resolver(options, segments)
        start = 0
        for cut, reopen in [*sorted(cuts), (len(rows), False)]:
            end = max(start, min(cut, len(rows)))
            parts.append(resolver.resolve(table.slice(start, end - start)))
            start = end
            if reopen:
                segments = [*segments, write_segment(Path(name), len(segments), resolver.new_segment())]
                resolver = Resolver(options, segments)
        assert pa.concat_tables(parts).to_pylist() == expected(table, options)


IDS = st.integers(0, 12).map(lambda number: f"d{number}")
DOCUMENT = st.tuples(FINGERPRINT, HASH, SKETCH)
EVENTS = st.lists(st.one_of(st.tuples(DOCUMENT, IDS), st.tuples(DOCUMENT, IDS), st.tuples(st.none(), IDS)), min_size=20, max_size=40)
CUTS = st.lists(st.tuples(st.integers(0, 40), st.sampled_from(["batch", "reopen", "compact", "compact for 2 bits"])), max_size=5)


@settings(max_examples=20, deadline=None)
@given(EVENTS, OPTIONS, CUTS, st.sampled_from([(8_192, 65_536), (3, 7)]))
def test_retractions_compactions_and_reopenings_anywhere_leave_the_verdicts_of_the_quadratic_reference(
    events: list[Event], options: DedupSettings, cuts: list[tuple[int, str]], sizes: tuple[int, int]
) -> None:
    table = table_of_events(events)
    parts = []
    looked_up_together = patch.multiple("pipelines.dedup.resolve", CHUNK_ROWS=sizes[0], BASE_LOOKUP_ROWS=sizes[1])
    with tempfile.TemporaryDirectory() as name, looked_up_together:
        versions = Versions(Path(name), options)
        start = 0
        for cut, what in [*sorted(cuts), (len(events), "batch")]:
            end = max(start, min(cut, len(events)))
            parts.append(versions.resolver.resolve(table.slice(start, end - start)))
            start = end
            if what != "batch":
                versions.close()
                if what != "reopen" and versions.resolver.num_kept:
                    versions.compact(2 if what.endswith("bits") else options.max_hamming)
                versions.reopen()
        assert pa.concat_tables(parts).to_pylist() == expected(table, options)
        assert versions.resolver.num_kept == sum(
            verdict["reason"] is None and not event.get("is_retraction")
            for verdict, event in zip(expected(table, options), table.to_pylist(), strict=True)
        )


STEPS = st.lists(st.tuples(st.integers(0, 40), st.sampled_from(["batch", "batch", "reopen", "compact"]), st.integers(0, 9)), max_size=8)


@settings(max_examples=40, deadline=None)
@given(EVENTS, OPTIONS, STEPS, st.sampled_from([2, 5]), st.booleans())
def test_verdicts_are_the_same_when_others_look_up_the_immutable_tiers_however_old_these_are(
    events: list[Event], options: DedupSettings, steps: list[tuple[int, str, int]], growing_rows: int, hash_is_constant: bool
) -> None:
    """A batch without retractions is decided apart: its ids are elsewhere, and it was looked up in some generation that there ever was, or in none.
    A reopening is what a crash leaves. Where all ids have one hash, each is compared itself.
    """
    table = table_of_events(events)
    hashes = (lambda ids: np.zeros(len(ids), np.uint32)) if hash_is_constant else short_hashes
    small = patch.multiple("pipelines.dedup.index", GROWING_ROWS=growing_rows, LARGE_TIER_ROWS=1)
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name, small, patch("pipelines.dedup.kept_ids.short_hashes", hashes):
        versions, start = Versions(Path(name), options), 0
        generations: list[Generation | None] = [None]
        for cut, what, age in [*sorted(steps), (len(events), "batch", 0)]:
            end = max(start, min(cut, len(events)))
            batch = table.slice(start, end - start)
            start = end
            generations.append(versions.resolver.generation())
            found += decided(versions.resolver, batch, generations[max(0, len(generations) - 1 - age)], hashes)
            if what != "batch":
                versions.close()
                if what == "compact" and versions.resolver.num_kept:
                    versions.compact(options.max_hamming)
                versions.reopen()
    assert found == expected(table, options)


def decided(resolver: Resolver, batch: pa.Table, generation: Generation | None, hashes: Callable[[pa.Array], Any]) -> list[dict[str, Any]]:
    """The verdicts of a batch: apart, unless it has retractions."""
    if batch["is_retraction"].to_numpy().any():
        return list(resolver.resolve(batch).to_pylist())
    ids = batch["doc_id"].combine_chunks()
    documents = batch.select(SEGMENT.names[:-1]).append_column("id_hash", pa.array(hashes(ids)))
    rows = batch.select(SEGMENT.names).cast(SEGMENT)
    looked_up = look_up(generation, documents) if generation else None
    answer = resolver.resolve_apart(documents, looked_up, rows, lambda source: source["doc_id"].combine_chunks())
    verdicts: list[dict[str, Any]] = [NEITHER] * len(batch)
    places = answer.duplicate_of
    names = [
        here or places.blocks[block].source["doc_id"][position].as_py()
        for here, block, position in zip(places.ids.to_pylist(), places.block.tolist(), places.position.tolist(), strict=True)
    ]
    for at, reason, similarity, of in zip(answer.duplicates.tolist(), answer.reason.tolist(), answer.similarity.tolist(), names, strict=True):
        verdicts[at] = {"duplicate_of": of, "reason": "exact" if reason == EXACT else "near", "similarity": similarity}
    return verdicts


def test_after_its_retraction_a_document_may_come_again_and_a_copy_before_stays_a_duplicate() -> None:
    sketch = bytes([1] * 32)
    document: Row = (5, b"a" * 16, sketch)
    events: list[Event] = [
        (document, "a"),
        (document, "b"),
        (None, "a"),
        (document, "a"),
        (document, "c"),
        (None, "unknown"),
        (None, "a"),
        (document, "d"),
    ]
    resolver = Resolver(DedupSettings(), [])
    assert resolver.resolve(table_of_events(events))["duplicate_of"].to_pylist() == [None, "a", None, None, "a", None, None, None]
    rows, ids = resolver.retracted_rows()
    assert (rows.tolist(), ids.to_pylist()) == ([0, 1], ["a", "a"])
    assert resolver.num_kept == 3


@pytest.mark.parametrize("is_compacted", [False, True])
def test_each_retraction_of_a_batch_takes_out_its_own_documents_when_its_turn_comes(tmp_path: Path, is_compacted: bool) -> None:
    versions = Versions(tmp_path, DedupSettings(near=False))
    kept = [(row, doc_id) for (row, _), doc_id in zip(documents_with([0] * 4), ("b", "a", "b", "c"), strict=True)]
    resolved(versions, kept)
    versions.close()
    if is_compacted:
        versions.compact(3)
    versions.reopen()
    resolved(versions, kept[:1])
    assert len(versions.resolver.new_segment()) == 0
    events: list[Event] = [(None, "a"), (kept[0][0], "copy"), (None, "b"), (kept[0][0], "again"), (None, "nobody"), (None, "b")]
    assert [verdict["duplicate_of"] for verdict in resolved(versions, events)] == [None, "b", None, None, None, None]
    rows, ids = versions.resolver.retracted_rows()
    assert (rows.tolist(), ids.to_pylist()) == ([1, 0, 2], ["a", "b", "b"])
    assert versions.resolver.live_ids({"a", "b", "c", "again", "copy"}) == {"c", "again"}
    assert versions.resolver.new_segment()["doc_id"].to_pylist() == ["again"]
    versions.resolver.segment_taken()
    assert len(versions.resolver.new_segment()) == 0


@pytest.mark.parametrize("in_one_batch", [True, False])
def test_a_copy_of_what_a_base_holds_is_compared_with_its_neighbours_once_that_was_retracted(tmp_path: Path, in_one_batch: bool) -> None:
    one, other = bytes([1] * 32), bytes([2] * 32)
    versions = Versions(tmp_path, DedupSettings())
    versions.resolver.resolve(table_of_events([((5, b"a" * 16, one), "a"), ((7, b"b" * 16, other), "b")]))
    versions.close()
    versions.compact(6)
    versions.reopen()
    events: list[Event] = [(None, "a"), ((5, b"a" * 16, other), "copy")]
    batches = [events] if in_one_batch else [[event] for event in events]
    answer = pa.concat_tables(versions.resolver.resolve(table_of_events(batch)) for batch in batches)
    assert answer["duplicate_of"].to_pylist() == [None, "b"]
    assert answer["reason"].to_pylist() == [None, "near"]


def documents_with(fingerprints: list[int], first: int = 0) -> list[Event]:
    """Documents that differ in text and sketch, with ids by their numbers."""
    rng = np.random.default_rng(first)
    return [((value, rng.bytes(16), rng.integers(1, 256, 32, dtype=np.uint8).tobytes()), f"d{first + at}") for at, value in enumerate(fingerprints)]


def copies_of(events: list[Event], numbers: list[int], fingerprint: int) -> list[Event]:
    """Documents with another text and the sketches of these ones."""
    sketches = [row[2] for row, _ in events if row is not None]
    return [((fingerprint, bytes([number, 77] * 8), sketches[number]), f"copy of {number}") for number in numbers]


def resolved(versions: Versions, events: list[Event]) -> list[dict[str, Any]]:
    answer = versions.resolver.resolve(table_of_events(events))
    assert answer.schema.equals(RESOLUTION)
    return list(answer.to_pylist())


@pytest.mark.parametrize("reopened_at", [[60], [60, 95], [40, 60], [40, 60, 80]])
def test_of_equal_fingerprints_the_first_ones_are_compared_with_wherever_they_lie_and_retracted_ones_count(
    tmp_path: Path, reopened_at: list[int]
) -> None:
    """The first 40 documents are compacted if they are a version."""
    versions = Versions(tmp_path, DedupSettings(max_hamming=2))
    kept = documents_with([7] * 100)
    events: list[Event] = [*kept[:90], (None, "d5"), *kept[90:], *copies_of(kept, [0, 5, 62, 63, 64, 65, 90, 99], 7)]
    found: list[dict[str, Any]] = []
    for start, end in itertools.pairwise([0, *reopened_at, len(events)]):
        found += resolved(versions, events[start:end])
        versions.close()
        if end == 40:
            versions.compact(2)
        versions.reopen()
    assert found == expected(table_of_events(events), versions.options)
    assert [verdict["duplicate_of"] for verdict in found[-8:]] == ["d0", None, "d62", "d63", None, None, None, None]


@pytest.mark.parametrize("num_in_tiers", [0, 128])
def test_more_neighbours_than_there_was_room_for_are_all_compared_with(tmp_path: Path, num_in_tiers: int) -> None:
    versions = Versions(tmp_path, DedupSettings(max_hamming=2))
    kept = documents_with([0, *(1 << bit for bit in range(64)), *(3 << bit for bit in range(63))])
    resolved(versions, kept[:num_in_tiers])
    versions.close()
    versions.reopen()
    resolved(versions, kept[num_in_tiers:])
    copies = copies_of(kept, list(range(len(kept))), 0)
    assert [verdict["duplicate_of"] for verdict in resolved(versions, copies)] == [doc_id for _, doc_id in kept]


def test_documents_are_known_and_stay_retracted_after_the_tables_in_memory_have_grown(tmp_path: Path) -> None:
    versions = Versions(tmp_path, DedupSettings(near=False))
    kept = documents_with([0] * (MIN_CAPACITY + 1))
    gone: list[Event] = [(None, f"d{number}") for number in range(0, 600, 30)]
    resolved(versions, kept[:600])
    resolved(versions, gone)
    assert resolved(versions, kept[600:]) == [NEITHER] * (len(kept) - 600)
    again = [(row, f"again {number}") for number, (row, _) in enumerate(kept)]
    forgotten = {doc_id for _, doc_id in gone}
    assert [verdict["duplicate_of"] for verdict in resolved(versions, again)] == [None if doc_id in forgotten else doc_id for _, doc_id in kept]
    rows, ids = versions.resolver.retracted_rows()
    assert (rows.tolist(), ids.to_pylist()) == (list(range(0, 600, 30)), [doc_id for _, doc_id in gone])


def test_a_dropped_document_drops_nothing_itself() -> None:
    # B is 3 bits from A and C is 3 bits from B, but C is 6 from A: B is dropped, and so C is kept.
    sketch = bytes([1] * 32)
    rows = [(0, b"a" * 16, sketch), (0b111, b"b" * 16, sketch), (0b111111, b"c" * 16, sketch)]
    options = DedupSettings(max_hamming=3)
    assert Resolver(options, []).resolve(table_of(rows))["duplicate_of"].to_pylist() == [None, "d0", None]
    assert Resolver(options, []).resolve(table_of(rows[1:]))["duplicate_of"].to_pylist() == [None, "d0"]


def test_the_most_similar_kept_document_is_named_and_of_equals_the_earliest() -> None:
    half, full = bytes([1] * 16 + [2] * 16), bytes([1] * 32)
    rows = [(0, b"a" * 16, half), (0b1, b"b" * 16, bytes([1] * 31 + [9])), (0b11, b"c" * 16, full), (0b111, b"d" * 16, bytes([1] * 31 + [8]))]
    answer = Resolver(DedupSettings(max_hamming=3, min_similarity=0.98), []).resolve(table_of(rows))
    assert answer["duplicate_of"].to_pylist() == [None, None, None, None]
    answer = Resolver(DedupSettings(max_hamming=3, min_similarity=0.9), []).resolve(table_of(rows))
    assert answer["duplicate_of"].to_pylist() == [None, None, "d1", "d1"]
