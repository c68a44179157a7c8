"""Retractions and replays against the rules told one record at a time; how the records are cut into blocks and versions of it does not matter."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipelines.dataset.dataset import Dataset, latest_version
from pipelines.dataset.retractions.masks import read_masks, retracted_ordinals
from pipelines.dataset.retractions.retractions import Retractions
from pipelines.dataset.writer import ResolvedBlock, VersionPlan, build_manifest, publish, write_version
from pipelines.dedup.resolve import RESOLUTION
from schemas.arrow import SEGMENT, Outcome, prepared
from schemas.manifest import OffsetRange
from schemas.settings_sources import load_settings
from tests.factories import TOPIC, clock, tokenizer_ref

PARTITIONS = 2


@dataclass(frozen=True)
class Item:
    """A record: a document with a text, its replay, or a retraction; ``at`` is its Kafka timestamp."""

    kind: str
    doc_id: str
    text: int
    at: int | None


class ExactIndex:
    """Drops equal texts; what the index of duplicates does, without near duplicates."""

    def __init__(self) -> None:
        self.kept: list[tuple[str, bytes]] = []
        self.out: list[int] = []

    def resolve(self, rows: pa.Table) -> pa.Table:
        """Verdicts in order."""
        return pa.Table.from_pylist(
            [self._one(row["doc_id"], row["content_hash"], row["is_retraction"]) for row in rows.to_pylist()], schema=RESOLUTION
        )

    def retracted_rows(self) -> tuple[npt.NDArray[np.int64], pa.Array]:
        """What was forgotten, in order."""
        return np.array(self.out, dtype=np.int64), pa.array([self.kept[ordinal][0] for ordinal in self.out], pa.string())

    def live_ids(self, doc_ids: set[str]) -> set[str]:
        """Which of them are kept."""
        return {kept_id for ordinal, (kept_id, _) in enumerate(self.kept) if kept_id in doc_ids and ordinal not in self.out}

    def _one(self, doc_id: str, text: bytes, is_retraction: bool) -> dict[str, object]:
        if is_retraction:
            self.out += [ordinal for ordinal, (kept_id, _) in enumerate(self.kept) if kept_id == doc_id and ordinal not in self.out]
            return dict.fromkeys(RESOLUTION.names)
        for ordinal, (kept_id, kept_text) in enumerate(self.kept):
            if ordinal not in self.out and kept_text == text:
                return {"duplicate_of": kept_id, "reason": "exact", "similarity": 1.0}
        self.kept.append((doc_id, text))
        return {"duplicate_of": None, "reason": None, "similarity": None}


items = st.builds(
    Item, st.sampled_from(["document", "document", "retraction", "replay"]), st.sampled_from("abc"), st.integers(0, 5), st.none() | st.integers(0, 4)
)
versions = st.lists(st.lists(st.lists(items, max_size=6), min_size=PARTITIONS, max_size=PARTITIONS), min_size=1, max_size=3)
"""version -> partition -> records"""


def naive(history: list[list[list[Item]]]) -> tuple[list[tuple[str, str | None]], dict[int, tuple[str, int, int, int]]]:
    """(outcome, reason) of each record in commit order; ordinal of each document that is out -> its id, and the retraction that took it out."""
    outcomes: list[tuple[str, str | None]] = []
    kept: list[tuple[str, int]] = []
    out: dict[int, tuple[str, int, int, int]] = {}
    seen: list[tuple[str, int, float]] = []
    next_offset = [0] * PARTITIONS
    for number, version in enumerate(history, 1):
        for partition, records in enumerate(version):
            for item in records:
                offset, next_offset[partition] = next_offset[partition], next_offset[partition] + 1
                live = [index for index, (doc_id, _) in enumerate(kept) if index not in out and doc_id == item.doc_id]
                equal = [index for index, (_, text) in enumerate(kept) if index not in out and text == item.text]
                published = float("-inf") if item.at is None else item.at
                if item.kind == "retraction":
                    out |= dict.fromkeys(live, (item.doc_id, number, partition, offset))
                    seen.append((item.doc_id, partition, float("inf") if item.at is None else item.at))
                    outcomes.append(("retracted", None))
                elif any(doc_id == item.doc_id and place != partition and at >= published for doc_id, place, at in seen):
                    outcomes.append(("rejected", "retracted"))
                elif item.kind == "replay" and live:
                    outcomes.append(("duplicate", "replayed"))
                elif equal:
                    outcomes.append(("duplicate", "exact"))
                else:
                    kept.append((item.doc_id, item.text))
                    outcomes.append(("kept", None))
    return outcomes, out


def block_of(records: list[Item], partition: int, first_offset: int) -> pa.Table:
    rows = [
        {
            "topic": TOPIC,
            "partition": partition,
            "offset": first_offset + index,
            "timestamp_ms": item.at,
            "doc_id": item.doc_id,
            "outcome": "retracted" if item.kind == "retraction" else "kept",
            "replay_of": f"{TOPIC}/0/7" if item.kind == "replay" else None,
            "fingerprint": item.text,
            "content_hash": bytes([item.text]) * 16,
            "sketch": bytes(32),
            "split": "train",
            "tokens": [item.text + 2] * 3,
        }
        for index, item in enumerate(records)
    ]
    return pa.Table.from_pylist(rows, schema=prepared(300))


def commit(root: Path, version: list[list[Item]], cut: int, state: Retractions, index: ExactIndex) -> None:
    dataset = Dataset(root) if latest_version(root) else None
    number = dataset.version + 1 if dataset else 1
    starts = dataset.next_offsets(TOPIC) if dataset else dict.fromkeys(range(PARTITIONS), 0)
    offsets = {partition: OffsetRange(start=starts[partition], end=starts[partition] + len(records)) for partition, records in enumerate(version)}
    plan = VersionPlan(number, f"f{number:011x}", {TOPIC: "A" * 22}, {TOPIC: offsets}, tokenizer_ref(300))
    values = load_settings("", {}, {"root": str(root), "packing.sequence_length": 8})
    blocks = [
        block_of(records[start : start + cut], partition, starts[partition] + start)
        for partition, records in enumerate(version)
        for start in range(0, len(records), cut)
    ]
    state.open(dataset)
    resolved = (ResolvedBlock(admitted, state.resolve(admitted, index)) for admitted in map(state.admit, blocks))
    files = write_version(root, plan, values, resolved, SEGMENT.empty_table, state.masks)
    publish(root, build_manifest(plan, files, values, parent=dataset.manifest if dataset else None, now=clock()))
    state.committed(number)


def test_a_replay_is_known_without_reading_the_audit_trail(tmp_path: Path) -> None:
    state, index = Retractions(), ExactIndex()
    commit(tmp_path, [[Item("document", "a", 0, 0)], []], 4, state, index)
    commit(tmp_path, [[Item("document", "b", 1, 0)], []], 4, state, index)
    for path in (tmp_path / "documents").iterdir():
        path.unlink()
    replays = [Item("replay", "a", 2, 0), Item("replay", "c", 3, 0), Item("replay", "c", 4, 0), Item("replay", "b", 5, 0)]
    commit(tmp_path, [replays, []], 4, Retractions(), index)
    assert Dataset(tmp_path).manifest.reasons == {"duplicate/replayed": 3}
    assert index.kept[2:] == [("c", bytes([3]) * 16)]


def test_a_republished_document_retracted_from_a_later_partition_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whether it would have been kept or was a duplicate of what is retracted; not if it was published before, or comes again."""
    state, index = Retractions(), ExactIndex()
    commit(
        tmp_path,
        [[Item("document", doc_id, text, 0) for text, doc_id in enumerate(("same", "other", "before", "again", "theirs"))], []],
        4,
        state,
        index,
    )
    again = [("same", 0, 5), ("other", 7, 5), ("before", 2, 4), ("again", 3, 5)]
    retractions = [Item("retraction", doc_id, 0, 4) for doc_id in ("same", "other", "before", "again", "theirs")]
    documents = [Item("document", doc_id, text, at) for doc_id, text, at in again]
    commit(tmp_path, [[*documents, Item("document", "mine", 4, 5)], [*retractions, Item("document", "again", 3, 6)]], 4, state, index)
    (message,) = [record.getMessage() for record in caplog.records if "retracted although" in record.getMessage()]
    assert "in another partition: 2 documents: 'same', 'other'; publish them once more" in message
    caplog.clear()
    commit(tmp_path, [[Item("document", "same", 0, 6)], []], 4, state, index)
    assert Dataset(tmp_path).manifest.outcomes[Outcome.KEPT] == 1 and "so they count as new: 1 document: 'same'" in caplog.text


def test_a_document_that_an_earlier_version_republished_and_a_later_partition_retracts_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state, index = Retractions(), ExactIndex()
    names = ("same", "other", "before", "mine", "again")
    commit(tmp_path, [[Item("document", name, text, 0) for text, name in enumerate(names)], []], 4, state, index)
    republished = [("same", 0, 5), ("other", 7, 5), ("before", 2, 4), ("again", 8, 5)]
    own = [Item("document", "mine", 3, 5)]
    commit(tmp_path, [[Item("document", name, text, at) for name, text, at in republished], own], 4, state, index)
    commit(tmp_path, [[Item("document", "unrelated", 9, 9)], []], 4, state, index)
    assert "retracted although" not in caplog.text
    last = [*(Item("retraction", name, 0, 4) for name in names), Item("document", "again", 3, 6)]
    commit(tmp_path, [[], last], 4, Retractions(), index)
    (message,) = [record.getMessage() for record in caplog.records if "retracted although" in record.getMessage()]
    assert "were read before the retraction, in another partition: 2 documents: 'same', 'other'; publish them once more" in message


AGAIN = [Item("document", "a", 0, 0), Item("retraction", "a", 0, 0), Item("document", "a", 1, 0), Item("retraction", "a", 0, 0)]


@settings(max_examples=15, deadline=None)
@example(history=[[AGAIN, []]], cut=4, carries_on=True)
@given(history=versions, cut=st.integers(1, 7), carries_on=st.booleans())
def test_every_record_fares_as_the_rules_say_and_masks_are_the_documents_that_are_out(
    history: list[list[list[Item]]], cut: int, carries_on: bool
) -> None:
    expected, out = naive(history)
    with tempfile.TemporaryDirectory() as folder:
        root, state, index = Path(folder), Retractions(), ExactIndex()
        for version in history:
            commit(root, version, cut, state if carries_on else Retractions(), index)
        dataset = Dataset(root)
        audit = pa.concat_tables([pa.parquet.read_table(root / entry.path) for manifest in dataset.manifests() for entry in manifest.documents])
        assert list(zip(audit["outcome"].to_pylist(), audit["reason"].to_pylist(), strict=True)) == expected
        masks = [row | {"in": manifest.version} for manifest in dataset.manifests() for row in read_masks(root, manifest).to_pylist()]
        assert {row["ordinal"]: (row["doc_id"], row["in"], row["partition"], row["offset"]) for row in masks} == out
        assert len(masks) == len(out) == dataset.manifest.totals.num_masked_documents
        kept = [row for row in audit.to_pylist() if row["outcome"] == "kept"]
        assert all({name: kept[row["ordinal"]][name] for name in SPAN} == {name: row[name] for name in SPAN} for row in masks)
        assert retracted_ordinals(dataset).tolist() == sorted(out)


SPAN = ("doc_id", "shard", "row", "start", "length")
