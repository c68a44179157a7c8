"""Boilerplate lines: what counts as the same line, what is taken out, and what is remembered from version to version."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipelines.dedup.paragraphs import EMPTY, ParagraphCounts, distinct_paragraphs, paragraph_hashes, remove_paragraphs
from schemas.errors import ManifestCorrupt

FOOTER = "© 2024 Example Publishing. All rights reserved."
CHINESE_FOOTER = "版权所有，未经许可不得转载。"
MIN_CHARS = 20


def strings(*texts: str | None) -> pa.Array:
    return pa.array(texts, pa.large_string())


def articles(first: int, last: int) -> pa.Array:
    return strings(
        *(
            f"Article number {number} tells its own story.\n\n第{number}篇文章讲述自己的故事，内容各不相同。\n\n{FOOTER}\n{CHINESE_FOOTER}"
            for number in range(first, last)
        )
    )


def test_footers_of_earlier_versions_are_taken_out_of_later_documents() -> None:
    counts = ParagraphCounts.of(distinct_paragraphs(articles(0, 6), MIN_CHARS)).merge(
        ParagraphCounts.of(distinct_paragraphs(articles(6, 10), MIN_CHARS))
    )
    known = counts.known(10)
    texts, num_removed = remove_paragraphs(articles(20, 22), known, MIN_CHARS)
    expected = [f"Article number {number} tells its own story.\n\n第{number}篇文章讲述自己的故事，内容各不相同。" for number in (20, 21)]
    assert texts.to_pylist() == expected
    assert num_removed.tolist() == [2, 2]
    assert remove_paragraphs(texts, known, MIN_CHARS)[0] is texts


def test_spaces_case_and_punctuation_make_no_other_line_but_digits_do() -> None:
    lines = strings(
        "All Rights Reserved: Example Press",
        "  all rights reserved — example press!",
        "版权所有，未经许可，不得转载",
        "【版权所有】未经许可不得转载",
        "Chapter 1 of the long book of lines",
        "Chapter 2 of the long book of lines",
    )
    hashes = paragraph_hashes(lines, MIN_CHARS).hashes
    assert hashes[0] == hashes[1]
    assert hashes[2] == hashes[3]
    assert hashes[4] != hashes[5]


def test_short_lines_are_never_boilerplate() -> None:
    texts = strings("Yes.\nNo.\n好的。", None, "", "\n\n")
    assert paragraph_hashes(texts, MIN_CHARS).offsets.tolist() == [0, 0, 0, 0, 0]
    assert paragraph_hashes(strings("版权所有不得转载谢谢"), 20).offsets.tolist() == [0, 1]


def test_spans_are_the_lines() -> None:
    texts = strings("x", f"a\n{FOOTER}\n\n{CHINESE_FOOTER}").slice(1)
    found = paragraph_hashes(texts, MIN_CHARS)
    data = texts[0].as_py().encode()
    assert [data[start:stop].decode() for start, stop in found.spans] == [FOOTER, CHINESE_FOOTER]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{FOOTER}\nbody", "body"),
        (f"body\n{FOOTER}", "body"),
        (f"one\n{FOOTER}\ntwo", "one\ntwo"),
        (f"one\n\n{FOOTER}\n\ntwo", "one\n\ntwo"),
        (f"one\n\n{FOOTER}\ntwo", "one\n\ntwo"),
        (f"one\n{FOOTER}\n{FOOTER}\n\n{FOOTER}\ntwo\n\nthree", "one\n\ntwo\n\nthree"),
        (f"{FOOTER}\n\n{FOOTER}", ""),
        ("\n\n\nuntouched\n\nlines", "\n\n\nuntouched\n\nlines"),
    ],
)
def test_no_blank_lines_are_left_behind(text: str, expected: str) -> None:
    known = paragraph_hashes(strings(FOOTER), MIN_CHARS).hashes
    texts, _ = remove_paragraphs(strings("before", text, "behind"), known, MIN_CHARS)
    assert texts.to_pylist() == ["before", expected, "behind"]


def test_a_line_counts_once_for_each_document() -> None:
    lists = distinct_paragraphs(strings(f"{FOOTER}\n{FOOTER}", FOOTER, "other"), MIN_CHARS)
    assert [len(entry) for entry in lists.to_pylist()] == [1, 1, 0]
    assert ParagraphCounts.of(lists).num_documents.tolist() == [2]
    assert ParagraphCounts.of(lists.filter(pa.array([False, True, False]))).num_documents.tolist() == [1]


def test_counts_come_back_from_their_file_and_anything_else_is_refused(tmp_path: Path) -> None:
    counts = ParagraphCounts.of(distinct_paragraphs(articles(0, 3), MIN_CHARS))
    counts.save(tmp_path / "counts.arrow")
    loaded = ParagraphCounts.load(tmp_path / "counts.arrow")
    assert np.array_equal(loaded.hashes, counts.hashes)
    assert np.array_equal(loaded.num_documents, counts.num_documents)
    assert np.array_equal(EMPTY.merge(counts).hashes, counts.hashes)
    (tmp_path / "broken.arrow").write_bytes(b"nothing")
    with pytest.raises(ManifestCorrupt, match=r"broken\.arrow"):
        ParagraphCounts.load(tmp_path / "broken.arrow")


def test_pruning_bounds_the_counts_and_forgets_the_rarest_whatever_the_order() -> None:
    counts = ParagraphCounts(np.arange(10, dtype=np.uint64), np.array([1, 5, 1, 2, 9, 1, 2, 1, 1, 3], np.uint32))
    assert counts.pruned(10) is counts
    assert counts.pruned(4).hashes.tolist() == [1, 4, 9]
    assert counts.pruned(5).hashes.tolist() == [1, 3, 4, 6, 9]
    assert counts.pruned(0).hashes.tolist() == []
