"""Redaction holds for every text: idempotent, complete, a function of the document alone, and never an exception."""

import random

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.pii import ALL, NEGATIVE, POSITIVE
from pipelines.steps.pii import redact
from schemas.settings_pii import PiiSettings

COUNT = PiiSettings(**dict.fromkeys(POSITIVE, "count"))

_CHARACTERS = "0123456789０１９ .-+()（）@＠:：=＝/_<>\n\"'aAfFxX转号密码张éЖ😀\u20e3，。１３８"


def _values() -> st.SearchStrategy[str]:
    makers = [*POSITIVE.values(), *(maker for makers in NEGATIVE.values() for maker in makers)]
    return st.builds(lambda maker, seed: maker(random.Random(seed)), st.sampled_from(makers), st.integers(0, 10_000))


TEXTS = st.lists(st.one_of(_values(), st.text(_CHARACTERS, max_size=12), st.text(max_size=8)), max_size=8).map("".join)


def _strings(texts: list[str]) -> pa.Array:
    return pa.array([text.encode("utf-8", "ignore").decode() for text in texts], pa.large_string())


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXTS, max_size=4))
def test_redaction_is_idempotent_and_leaves_no_match(texts: list[str]) -> None:
    once = redact(_strings(texts), ALL)
    again = redact(once.texts, ALL)
    assert again.texts is once.texts
    assert redact(once.texts, COUNT).counts.null_count == len(texts)


@settings(max_examples=50, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=5))
def test_a_document_does_not_depend_on_its_batch(texts: list[str]) -> None:
    batch = _strings(texts)
    together = redact(batch, PiiSettings(phone="drop"))
    for row in range(len(texts)):
        alone = redact(batch.slice(row, 1), PiiSettings(phone="drop"))
        assert [column[0] for column in alone] == [column[row] for column in together]


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXTS, max_size=4))
def test_counting_changes_no_text_and_counts_exactly_where_redaction_writes(texts: list[str]) -> None:
    batch = _strings(texts)
    counted = redact(batch, COUNT)
    assert counted.texts is batch
    assert counted.counts.is_null().equals(redact(batch, ALL).counts.is_null())


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200))
def test_text_outside_the_matches_stays(text: str) -> None:
    source = _strings([text])
    result = redact(source, ALL)
    if not result.counts[0].is_valid:
        assert result.texts is source
