"""Taking out lines holds for every text: nothing that is known stays, nothing else goes, and no document depends on its batch."""

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.dedup.paragraphs import ParagraphCounts, paragraph_hashes, remove_paragraphs

LINES = st.one_of(st.sampled_from(["", "alpha beta", "Alpha, Beta!", "版权所有", "gamma 1", "gamma 2"]), st.text(max_size=6))
TEXTS = st.lists(LINES, max_size=8).map(lambda lines: "\n".join(lines).encode("utf-8", "ignore").decode())
MIN_CHARS = 4


@settings(max_examples=200, deadline=None)
@given(st.lists(TEXTS, max_size=4), st.integers(0, 7))
def test_removal_takes_the_known_lines_and_only_those(texts: list[str], chosen: int) -> None:
    batch = pa.array(texts, pa.large_string())
    found = paragraph_hashes(batch, MIN_CHARS)
    known = np.unique(found.hashes[found.hashes % 8 <= chosen])
    removed, num_removed = remove_paragraphs(batch, known, MIN_CHARS)
    removed.validate(full=True)
    kept = paragraph_hashes(removed, MIN_CHARS)
    assert kept.hashes.tolist() == [value for value in found.hashes.tolist() if value not in known]
    assert num_removed.sum() == len(found.hashes) - len(kept.hashes)
    for row, text in enumerate(texts):
        assert remove_paragraphs(batch.slice(row, 1), known, MIN_CHARS)[0][0] == removed[row]
        if not num_removed[row]:
            assert removed[row].as_py() == text
        lines = [line for line in text.split("\n") if line]
        assert [line for line in removed[row].as_py().split("\n") if line] in (lines, [line for line in lines if _hash(line) not in known])


def _hash(line: str) -> int | None:
    found = paragraph_hashes(pa.array([line], pa.large_string()), MIN_CHARS).hashes
    return int(found[0]) if len(found) else None


COUNTS = st.dictionaries(st.integers(0, 30), st.one_of(st.integers(1, 9), st.just(2**32 - 1)), max_size=20)


def _counts(values: dict[int, int]) -> ParagraphCounts:
    return ParagraphCounts(np.array(sorted(values), np.uint64), np.array([values[line] for line in sorted(values)], np.uint32))


@settings(max_examples=200, deadline=None)
@given(COUNTS, COUNTS)
def test_merged_counts_are_the_sums_and_stop_where_the_number_ends(one: dict[int, int], other: dict[int, int]) -> None:
    merged = _counts(one).merge(_counts(other))
    expected = {line: min(one.get(line, 0) + other.get(line, 0), 2**32 - 1) for line in sorted(one | other)}
    assert dict(zip(merged.hashes.tolist(), merged.num_documents.tolist(), strict=True)) == expected
    assert merged.hashes.tolist() == list(expected)
