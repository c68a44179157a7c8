"""Normalization, character by character: what goes, what stays, and what becomes something else."""

import pyarrow as pa
import pytest

from pipelines.steps.mojibake import repair
from pipelines.steps.normalize import normalize


def normalized(text: str) -> str:
    return str(normalize(pa.array([text])).texts[0].as_py())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\r\nb\rc\u2028d\u2029e\x85f\x0bg\x0ch", "a\nb\nc\nd\ne\nf\ng\nh"),
        ("a\r\n\r\nb\n\n\n\n\nc", "a\n\nb\n\nc"),
        ("  \n\n a \t \n\tb\u3000\n \n", "a\n\tb"),
        ("Line  \nbroken   \r\ntwice  \n\nnot here  \n \nnor here  \n", "Line  \nbroken  \ntwice\n\nnot here\n\nnor here"),
        ("a \t\nb\u00a0\u00a0\nc\t  \n    d", "a\nb  \nc  \n    d"),
        ("    code()\n    more()", "    code()\n    more()"),
        ("\n \n\tcode", "\tcode"),
        ("\u3000\u3000第一段\n\u3000\u3000第二段", "\u3000\u3000第一段\n\u3000\u3000第二段"),
        (" one space", "one space"),
        ("a\u00a0b\u202fc\u2009d\u3000e", "a b c d\u3000e"),
        ("\ufeffx\u200by\u2060z\u00ad\u200e\u202e!", "xyz!"),
        ("a\x00\x07\x7f\x9cb\ufffe\ufdd0", "ab"),
        ("e\u0301 \u1100\u1161 \u212b", "é 가 Å"),
        ("e\u200b\u0301", "é"),
    ],
)
def test_lines_spaces_and_shapeless_characters_get_one_spelling(text: str, expected: str) -> None:
    assert normalized(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "👨\u200d👩\u200d👧 👩🏽\u200d🚀 ❤\ufe0f\u200d🔥 🐈\u200d⬛ 1\ufe0f\u20e3 🇨🇳",
        "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
        "می\u200cخواهم",
        "क्\u200dष और क्\u200cष",
        "ශ්\u200dරී",
        "葛\U000e0100城",
    ],
    ids=["emoji", "flag of England", "Persian", "Hindi", "Sinhala", "ideographic variant"],
)
def test_joiners_selectors_and_tags_stay_where_they_mean_something(text: str) -> None:
    assert normalized(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pass\u200dword \u200cx", "password x"),
        ("hello\U000e0068\U000e0069", "hello"),
        ("a\ufe0f\ufe0f\ufe01\ufe02b", "a\ufe0fb"),
        (" \ufe0fa", "a"),
        ("中\u200d文", "中文"),
    ],
)
def test_joiners_selectors_and_tags_elsewhere_hide_nothing(text: str, expected: str) -> None:
    assert normalized(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cafÃ© donâ€™t naÃ¯ve", "café don’t naïve"),
        ("ä¸\xadæ–‡ã€‚", "中文。"),
        ("ÐŸÑ€Ð¸Ð²ÐµÑ‚", "Привет"),
        ("ðŸ˜€ ok", "😀 ok"),
        ("Ã\u0083Â©", "é"),
        ("good: é\nbad: Ã©", "good: é\nbad: é"),
        ("Ã\u200b©", "é"),
        ("Â\u00a0x", "x"),
    ],
)
def test_mojibake_is_undone(text: str, expected: str) -> None:
    assert normalized(text) == expected


@pytest.mark.parametrize(
    "text",
    ["CAFÉ… naïve", "SÃO PAULO à vista", "GEHÖ“ Ärger", "Việt Nam: ngã ba", "« Élève »", "50 € – “quoted”", "ÂNGELO’S pão", "Ã© stands where é was"],
)
def test_good_text_with_accents_is_no_mojibake(text: str) -> None:
    assert repair(text) == text


def test_overstruck_and_coloured_terminal_output_becomes_what_was_seen() -> None:
    assert normalized("_\x08N_\x08A_\x08M_\x08E x\x08xy \x1b[1;31mred\x1b[0m \x1b]0;title\x07end") == "NAME xy red end"
    assert normalized("___\x08\x08\x08YOU\n\x08\x08z") == "YOU\nz"


def test_removed_controls_are_counted_per_text() -> None:
    assert normalize(pa.array(["a\x00\x01b", "fine\r\n", None])).num_controls.tolist() == [2, 0, 0]


def test_slices_nulls_and_empty_batches_are_texts_too() -> None:
    texts = pa.array(["one", None, "", " three\t"])
    assert normalize(texts).texts.to_pylist() == ["one", "", "", "three"]
    assert normalize(texts.slice(1, 3)).texts.to_pylist() == ["", "", "three"]
    assert normalize(texts.slice(0, 0)).texts.to_pylist() == []


def test_a_long_run_of_combining_marks_takes_linear_time() -> None:
    assert len(normalized("a" + "\u0301\u0323" * 200_000)) == 400_000
