"""Verdicts on any text: none raises, each depends on its document alone, and what is cleaned is valid and no longer than before."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipelines.steps.normalize import normalize
from pipelines.steps.quality import judge, measure
from pipelines.steps.rules.columns import IS_UNSPACED
from schemas.settings import Settings
from schemas.settings_quality import RULE_SETS, C4Settings, GopherQualitySettings, QualitySettings

STRICT = Settings(quality=QualitySettings(rule_sets=RULE_SETS, code="reject", logs="reject", chinese="simplified", remove_boilerplate_lines=True))
LENIENT = Settings(
    quality=QualitySettings(rule_sets=RULE_SETS, words="unicode", min_words=1),
    c4=C4Settings(min_sentences=0, require_terminal_punctuation=False, min_words_per_line=0),
    gopher_quality=GopherQualitySettings(min_words=0, min_stop_words=0),
)
_MARKS = [
    *"aB…。！[]{#•😀.!」",
    '"',
    "\u200d",
    "\u0301",
    "\ufffd",
    "\U0010ffff",
    "...",
    "磨坊",
    "のは",
    "[1]",
    "ไทย",
    "版权所有",
    "10:20:30",
    "2026-01-01",
]
_PHRASES = ["the ", "and ", "\n", "\n\n", " ", "\t", "- ", "lorem ipsum", "JavaScript", "privacy policy", " | ", "x" * 40]
PIECES = st.sampled_from([*_MARKS, *_PHRASES])
TEXTS = st.lists(st.lists(PIECES, max_size=30).map("".join) | st.text(max_size=80), max_size=6)
LANGUAGES = st.sampled_from(["en", "zh", "ja", "und", "xx"])


def is_unspaced(text: str) -> bool:
    return bool(measure(pa.array([text], pa.large_string()), pa.array(["en"]), Settings()).counts[0, IS_UNSPACED])


def answers(texts: list[str], language: str, chosen: Settings) -> list[tuple[Any, ...]]:
    judged = judge(pa.array(texts, pa.large_string()), pa.array([language] * len(texts), pa.string()), np.zeros(len(texts), np.int64), chosen)
    for column in judged:
        column.validate(full=True)
    return list(zip(*(column.to_pylist() for column in judged), strict=True))


@pytest.mark.parametrize("chosen", [STRICT, LENIENT], ids=["strict", "lenient"])
@settings(max_examples=150, deadline=None)
@given(texts=TEXTS, language=LANGUAGES, cut=st.integers(0, 6))
@example(texts=["\n", " \n ", "[1]\n[2]", "[", "\ufffd" * 9], language="en", cut=2)
def test_a_verdict_depends_on_its_document_alone(chosen: Settings, texts: list[str], language: str, cut: int) -> None:
    together = answers(texts, language, chosen)
    assert answers(texts[:cut], language, chosen) + answers(texts[cut:], language, chosen) == together
    assert answers(texts[::2], language, chosen) == together[::2]
    for text, (cleaned, _, num_chars) in zip(texts, together, strict=True):
        assert num_chars == len(cleaned)
        assert len(cleaned.encode()) <= len(text.encode())


@settings(max_examples=60, deadline=None)
@given(texts=TEXTS)
def test_texts_stay_as_they_are_when_nothing_cleans(texts: list[str]) -> None:
    chosen = Settings(quality=QualitySettings(rule_sets=("headrace", "gopher_quality", "gopher_repetition", "fineweb")))
    assert [answer[0] for answer in answers(texts, "en", chosen)] == texts


@settings(max_examples=100, deadline=None)
@given(texts=TEXTS)
@example(texts=["a磨坊 | 。\na"])
def test_cleaning_by_c4_is_stable(texts: list[str]) -> None:
    """A cleaned text is cleaned already, but for what cutting a citation out of it leaves (another citation, too few words), and but for one
    whose lines of spaced script went, so that what is left is of unspaced script, or the other way round."""
    chosen = Settings(quality=QualitySettings(rule_sets=("c4",)), c4=C4Settings(min_sentences=1))
    normalized = normalize(pa.array(texts, pa.large_string())).texts.to_pylist()
    uncited = [text for text in normalized if "[" not in text]
    judged = zip(uncited, answers(uncited, "en", chosen), strict=True)
    once = [answer for text, answer in judged if answer[1] is None and is_unspaced(text) == is_unspaced(answer[0])]
    assert answers([cleaned for cleaned, _, _ in once], "en", chosen) == once


def test_slices_and_nulls_are_judged_like_any_other_text() -> None:
    texts = pa.array([None, "x", None, "The old mill stands by the river and its wheel turns.", None], pa.string())[1:4]
    judged = judge(texts, pa.array(["en"] * 3), np.zeros(3, np.int64), Settings(quality=QualitySettings(rule_sets=("headrace", "c4"))))
    assert judged.rules.to_pylist() == ["c4/too_few_sentences"] * 3
