"""A version whose audit trail is in several files reads as one whose trail is in one file."""

import json
from pathlib import Path

import pytest

from pipelines.dataset.dataset import Dataset
from pipelines.dataset.retractions.lost import lost_duplicates, retractions_of
from pipelines.dataset.verify import verify
from pipelines.lineage.lineage import trace
from tests.factories import commit_records, text_settings

TEXT = "The mill stands by the river and its wheel turns when the water comes down from the hill in spring, said the miller to his daughter. " * 6


def document(doc_id: str, text: str) -> tuple[bytes, bytes]:
    return doc_id.encode(), json.dumps({"id": doc_id, "text": text}).encode()


def other(number: int) -> str:
    return " ".join(f"word{number}x{index} the of and river number {index * number + 7} stands" for index in range(60))


@pytest.mark.parametrize("file_rows", [5, 100])
def test_the_order_of_documents_and_retractions_is_that_of_the_offsets(tmp_path: Path, file_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.dataset.trail_writer.TRAIL_FILE_ROWS", file_rows)
    twice, taken_back = [document("orig", TEXT), document("copy", TEXT)], (b"copy", None)
    before = [*twice, document("f1", other(1)), document("f2", other(2)), document("x", other(3))]
    after = [taken_back, document("f3", other(4)), (b"x", None), document("x", other(9)), document("f5", other(8))]
    settings = text_settings(tmp_path, **{"quality.rule_sets": []})
    manifest = commit_records(tmp_path, [*before, *after], settings)
    assert len(manifest.documents) == (2 if file_rows == 5 else 1)
    dataset = Dataset(tmp_path)
    assert lost_duplicates(dataset, {"orig"}) == []  # the copy was dropped, and taken back later
    assert [place["offset"] for place in retractions_of(dataset, {"x"})["x"]] == [7]
    assert [found.offset for found in trace(tmp_path, "x", deadletter_topic="d")] == [4, 7, 8]
    assert verify(tmp_path).problems == []
