"""The sample is the same every time, and its parts are disjoint."""

import json
from importlib.resources import files
from itertools import islice

from ops.producing.samples import WHOLE, Share, sample_documents

NUM_TRIED = 300


def first_ids(share: Share) -> list[str]:
    return [found.origin for found in islice(sample_documents(share), NUM_TRIED)]


def test_the_order_is_always_the_same_and_has_something_of_each_kind_early() -> None:
    ids = first_ids(WHOLE)
    assert ids == first_ids(WHOLE)
    assert len(set(ids)) == NUM_TRIED
    assert {doc_id.split("/")[1] for doc_id in ids} == {"chinese", "topics", "packages", "docstrings"}


def test_parts_are_disjoint_and_belong_to_the_whole() -> None:
    parts = [Share(index, 3) for index in (1, 2, 3)]
    ids = [set(first_ids(part)) for part in parts]
    assert not (ids[0] & ids[1] or ids[0] & ids[2] or ids[1] & ids[2])
    for doc_id in set().union(*ids):
        assert sum(part.has(doc_id) for part in parts) == 1


def test_documents_are_prose_of_a_bounded_size() -> None:
    for found in islice(sample_documents(), NUM_TRIED):
        assert 150 <= len(found.document.text) <= 20_000
        assert found.document.id == found.origin


def test_the_chinese_set_is_of_its_own_and_as_long_as_promised() -> None:
    lines = files("ops.producing").joinpath("chinese.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert len(records) >= 58
    assert {record["lang"] for record in records} == {"zh", "zh-TW"}
    assert all(150 <= len(record["text"]) <= 500 for record in records)
    assert len({record["id"] for record in records}) == len({record["text"] for record in records}) == len(records)
