"""Excerpts for language identification."""

import itertools
import unicodedata

import pyarrow as pa
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipelines.steps.excerpt import EXCERPT_CHARS, excerpts
from pipelines.text.buffers import utf8_views

CHARACTERS = "aZ \u00df\u0416\u6c34\u3042\ud55c9.\U00020000\U0001f600\n"


def plain(text: str) -> str:
    """The same in Python, for CHARACTERS."""
    seen = text[:EXCERPT_CHARS]
    if len(text.encode()) > 4 * EXCERPT_CHARS:
        middle = len(text) // 2
        seen += " " + text[middle : middle + EXCERPT_CHARS]
    kept = (character.lower() if unicodedata.category(character)[0] == "L" else " " for character in seen)
    return " ".join("".join(kept).split())


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.text(CHARACTERS, min_size=1, max_size=40), st.integers(0, 120)), max_size=4))
@example([("\u6c34", 3 * 400), ("a\u6c34", 700), ("\U00020000", 999)])
def test_an_excerpt_is_the_start_and_the_middle_character_for_character(parts: list[tuple[str, int]]) -> None:
    texts = [part * times for part, times in parts]
    texts += ["".join(texts), "x" + "".join(texts)]
    taken = excerpts(*utf8_views(pa.array(texts, pa.large_string())))
    found = [taken.data[start:end].tobytes().decode() for start, end in itertools.pairwise(taken.offsets)]
    assert [" ".join(text.split()) for text in found] == [plain(text) for text in texts]
