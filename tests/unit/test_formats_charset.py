"""Bytes without a declared character set are read in the one that they are in."""

import pytest

from benchmarks.charset import LENGTHS, accuracy, cases, headrace
from benchmarks.corpus import CORPUS
from pipelines.steps.formats.charset import DETECTED_BYTES, decode_text
from schemas.errors import EnvelopeError

ENGLISH = "The old mill stands by the river and its wheel has not stopped for a hundred years. "
CHINESE = "这座老磨坊立在河边。它的水轮已经一百年没有转动了，但水渠里依然有水流过。"


@pytest.mark.skipif(not CORPUS.exists(), reason="needs the shared corpus")
def test_at_least_96_of_100_texts_come_out_as_they_were() -> None:
    shares = accuracy(cases(CORPUS, 12), headrace)
    for length in LENGTHS:
        of_length = [share for key, share in shares.items() if key[1] == length]
        assert sum(of_length) / len(of_length) >= 0.96
    east_asian = [share for (name, _), share in shares.items() if name.startswith(("zh", "ja", "ko"))]
    assert min(east_asian) >= 0.9


@pytest.mark.parametrize("text", [ENGLISH, CHINESE + "\n", "一 一一 一", "Привет, мир! " * 3, "오래된 물레방아가 강가에 서 있다."])
@pytest.mark.parametrize("order", ["utf-16-le", "utf-16-be"])
def test_utf16_needs_no_byte_order_mark(text: str, order: str) -> None:
    assert decode_text(text.encode(order), None) == text
    assert decode_text(text.encode(order), "utf-8") == text


def test_utf8_with_nulls_is_not_taken_for_utf16() -> None:
    for text in ("abcd\0efgh\0", CHINESE + "\0\0", "a\0\n"):
        assert decode_text(text.encode(), None) == text


def test_letters_that_look_like_a_byte_order_mark_are_letters() -> None:
    text = "яют старые мельницы у реки, и вода течёт по каналу."
    assert decode_text(text.encode("cp1251"), None) == text


def test_the_first_foreign_letter_may_come_late() -> None:
    text = ENGLISH * (2 * DETECTED_BYTES // len(ENGLISH)) + "Die alte Mühle steht am Fluß, über den Kanal fließt noch Wasser."
    assert decode_text(text.encode("cp1252"), None) == text


@pytest.mark.parametrize("text", [CHINESE, "Die alte Mühle steht am Fluß, über den Kanal fließt noch Wasser, fünf Brücken."])
def test_damaged_utf8_is_not_read_as_something_else(text: str) -> None:
    data = text.encode()
    at = data.index(text[10].encode()) + 1
    for damaged in (data[:-1] if text is CHINESE else data[:8] + b"\xff" + data[8:], data[:at] + b"\xff" + data[at:]):
        with pytest.raises(EnvelopeError) as caught:
            decode_text(damaged, None)
        assert caught.value.rule == "not_utf8"
