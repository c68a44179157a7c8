"""Incremental detokenization, for any split of any bytes into tokens and any stop strings."""

import codecs
from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from ray_apps.serving.engine.text import TextStream

TEXTS = st.text(alphabet=st.sampled_from("ab水渠é😀 \n"), max_size=30)
RAW = st.one_of(TEXTS.map(str.encode), st.binary(max_size=40))
STOPS = st.lists(st.text(alphabet=st.sampled_from("ab水é😀 "), min_size=1, max_size=4), max_size=4)


def pieces_of(raw: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(raw), *(cut % (len(raw) + 1) for cut in cuts)})
    return [raw[begin:end] for begin, end in pairwise(edges)]


def shown(pieces: list[bytes], stops: list[str]) -> tuple[list[str], bool]:
    stream = TextStream(pieces, stops)
    parts = []
    for token_id in range(len(pieces)):
        parts.append(stream.push(token_id))
        if stream.stopped:
            return parts, True
    return [*parts, stream.finish()], False


def whole_characters(raw: bytes) -> str:
    return codecs.getincrementaldecoder("utf-8")(errors="replace").decode(raw)


@given(RAW, st.lists(st.integers(0, 1000), max_size=12))
def test_the_pieces_join_to_the_decoded_bytes_however_they_are_split(raw: bytes, cuts: list[int]) -> None:
    assert "".join(shown(pieces_of(raw, cuts), [])[0]) == whole_characters(raw)


@given(TEXTS, st.lists(st.integers(0, 1000), max_size=12))
def test_no_piece_of_valid_text_holds_half_a_character(text: str, cuts: list[int]) -> None:
    assert all("\ufffd" not in part for part in shown(pieces_of(text.encode(), cuts), [])[0])


@given(TEXTS, st.lists(st.integers(0, 1000), max_size=12), STOPS)
@example("aab", [1, 2], ["ab"])
@example("a😀b", [1, 2, 3, 4], ["😀"])
def test_nothing_from_a_stop_string_on_is_ever_shown(text: str, cuts: list[int], stops: list[str]) -> None:
    parts, stopped = shown(pieces_of(text.encode(), cuts), stops)
    joined = "".join(parts)
    assert stopped == any(stop in text for stop in stops)
    assert text.startswith(joined)
    assert not any(stop in joined for stop in stops)
    if not stopped:
        assert joined == text
    else:
        assert any(text[len(joined) :].startswith(stop) for stop in stops)


@given(TEXTS, STOPS)
def test_only_what_could_begin_a_stop_string_is_held_back(text: str, stops: list[str]) -> None:
    stream = TextStream([character.encode() for character in text], stops)
    joined = ""
    for token_id in range(len(text)):
        joined += stream.push(token_id)
        held = text[len(joined) : token_id + 1]
        assert stream.stopped or not held or any(stop.startswith(held) for stop in stops)
        if stream.stopped:
            return
