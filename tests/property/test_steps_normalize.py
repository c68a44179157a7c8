"""What normalization promises for every text."""

import unicodedata

import pyarrow as pa
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipelines.steps.normalize import _normalize_slowly, normalize
from pipelines.text.characters import CONTROL, HIDDEN, character_flags

# Everything that takes part in a rule, so that rules meet each other often.
SPECIAL = st.sampled_from(
    list("a é\n\r\t\x0b\x0c\x85\u2028\u3000\u00a0\u2009\u200b\u200c\u200d\ufe0f\ufe00\U000e0100\U000e0067\U000e007f\ufeff\u00ad\x00\x07\x08\x1b[m")
    + list(
        "\u0301\u0323\u0327\u093c\u0915\u094d\u0937\u0958\u0645\u06cc\u1100\u1161\u11a8가👩🚀🏽🏴❤中文。Ã©Â\u00a0â€™\u201cðŸ˜€ä¸\u00adÃ\u0083\ufffd\ufffe\u212b\u2126"
    )
)
TEXTS = st.one_of(st.text(SPECIAL, max_size=40), st.text(max_size=40), st.text(st.characters(min_codepoint=0x80, max_codepoint=0x17F), max_size=40))


def normalized(texts: list[str]) -> list[str]:
    return normalize(pa.array(texts, pa.large_string())).texts.to_pylist()  # type: ignore[no-any-return]


@settings(max_examples=400, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=6))
@example(["x\u0915\u200d ", "\u0645\u200d\x00", "\r\u200b\n", "Ã\u200b©"])
def test_normalizing_twice_changes_nothing(texts: list[str]) -> None:
    once = normalized(texts)
    assert normalized(once) == once


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_the_result_is_nfc_without_controls_loose_ends_or_empty_line_runs(text: str) -> None:
    (after,) = normalized([text])
    flags = character_flags()
    assert unicodedata.is_normalized("NFC", after)
    assert not any(flags[ord(character)] & (CONTROL | HIDDEN) for character in after)
    assert "\n\n\n" not in after
    lines = after.split("\n")
    ends = [line[len(line.rstrip(" \t\u3000")) :] for line in lines]
    assert all(end == "" or (end == "  " and line.strip() and behind) for end, line, behind in zip(ends, lines, [*lines[1:], ""], strict=True))
    assert after == after.strip("\n") and not (after.startswith(" ") and after[1:2].strip())


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(categories=["L", "N", "P", "Zs"]), max_size=60))
def test_letters_and_numbers_are_never_lost(text: str) -> None:
    def essence(value: str) -> str:
        return "".join(character for character in unicodedata.normalize("NFC", value) if unicodedata.category(character)[0] in "LN")

    (after,) = normalized([text])
    if not any("\x80" <= character <= "\u02ff" for character in text):  # nothing that could be mojibake
        assert essence(after) == essence(text)


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXTS, max_size=6))
def test_a_text_is_normalized_the_same_way_in_any_batch(texts: list[str]) -> None:
    assert normalized(texts) == [normalized([text])[0] for text in texts]


@settings(max_examples=400, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=6))
@example(["\u0915\u094d\u093c", "\u3000a", "a\u3000\nb", "a\n\n\nb", "\u1100\u1161", "é»", "a\u0323\u0307", "\U0002f800", "\n", " "])
def test_the_short_way_and_the_long_way_give_the_same_text(texts: list[str]) -> None:
    array = pa.array(texts, pa.large_string())
    short, long = normalize(array), _normalize_slowly(array)
    assert short.texts.to_pylist() == long.texts.to_pylist()
    assert short.num_controls.tolist() == long.num_controls.tolist()


def test_every_code_point_takes_the_short_way_only_where_the_long_way_changes_nothing() -> None:
    codes = [*range(0xD800), *range(0xE000, 0x32000), *range(0xE0000, 0xE0200), 0x10FFFF]
    for template in ("a{}b", "e{}", "\u0915\u094d{}", "\u1100{}", "\u00c3{}x", "{}\u00a9"):
        array = pa.array([template.format(chr(code)) for code in codes], pa.large_string())
        assert normalize(array).texts.equals(_normalize_slowly(array).texts)
