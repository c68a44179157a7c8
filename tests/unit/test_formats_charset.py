"""Bytes without a declared character set are read in the one that they are in."""

import random

import pytest

from benchmarks.charset import LENGTHS, accuracy, cases, headrace
from benchmarks.corpus import CORPUS
from pipelines.steps.formats.charset import DETECTED_BYTES, decode_text
from pipelines.steps.formats.plausible import MAX_NONSENSE, nonsense
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
@pytest.mark.parametrize("order", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_utf16_and_utf32_need_no_byte_order_mark(text: str, order: str) -> None:
    assert decode_text(text.encode(order), None) == text
    assert decode_text(text.encode(order), "utf-8") == text


@pytest.mark.parametrize("text", [ENGLISH, CHINESE, "яют Привет 😀", "a", "", "\0null"])
@pytest.mark.parametrize("charset", ["utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be", "gb18030"])
@pytest.mark.parametrize("declared", [None, "utf-16", "latin-1"])
def test_a_byte_order_mark_says_which_set_it_is_whatever_was_declared(text: str, charset: str, declared: str | None) -> None:
    data = f"\ufeff{text}".encode(charset)
    assert decode_text(data, declared) == text


def test_damage_behind_a_byte_order_mark_costs_its_characters_only() -> None:
    data = "\ufeff".encode("utf-32-le") + b"\xff\xff\xff\xff" + (CHINESE * 5).encode("utf-32-le")
    assert decode_text(data, None) == "\ufffd" + CHINESE * 5


@pytest.mark.parametrize("order", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("stray", [b"\n", b"\r\n", b"\0", b"\0\0", b"abc", b"\xff", b"\0\0\0\0"])
@pytest.mark.parametrize(
    "text", ["The miller opened the gate of the headrace, and the wheel turned.", "Мельник открыл ворота, и вода повернула колесо."]
)
def test_bytes_behind_utf16_and_utf32_leave_no_nulls_in_the_text(text: str, stray: bytes, order: str) -> None:
    read = decode_text(text.encode(order) + stray, None)
    assert read.startswith(text) and "\0" not in read and len(read) <= len(text) + 2


@pytest.mark.parametrize(
    "data", ["The mill".encode("utf-32-le") + b"\n", "Hello world".encode("utf-16-le") + b"\n", b"\0" * 50, bytes(range(32)) * 9]
)
def test_what_is_full_of_nulls_and_is_not_decoded_is_a_dead_letter(data: bytes) -> None:
    with pytest.raises(EnvelopeError, match="control characters, as in binary data"):
        decode_text(data, None, 0.0)


def test_utf8_with_nulls_is_not_taken_for_utf16() -> None:
    for text in ("abcd\0efgh\0", CHINESE + "\0\0", "a\0\n"):
        assert decode_text(text.encode(), None) == text


def test_letters_that_look_like_a_byte_order_mark_are_letters() -> None:
    text = "яют старые мельницы у реки, и вода течёт по каналу."
    assert decode_text(text.encode("cp1251"), None) == text


def test_the_first_foreign_letter_may_come_late() -> None:
    text = ENGLISH * (2 * DETECTED_BYTES // len(ENGLISH)) + "Die alte Mühle steht am Fluß, über den Kanal fließt noch Wasser."
    assert decode_text(text.encode("cp1252"), None) == text


DAMAGED = {"Chinese": CHINESE * 4, "German": "Die alte Mühle steht am Fluß, über den Kanal fließt noch Wasser, fünf Brücken. " * 2}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
@pytest.mark.parametrize("declared", [None, "utf-8", "gbk", "iso-8859-1"])
def test_one_bad_byte_costs_one_character_and_utf8_stays_utf8(text: str, declared: str | None) -> None:
    data = text.encode()
    at = data.index(text[10].encode())
    assert decode_text(data[:at] + b"\xff" + data[at:], declared) == text[:10] + "\ufffd" + text[10:]
    if text[-1] == "。":
        assert decode_text(data[:-1], declared) == text[:-1] + "\ufffd"


@pytest.mark.parametrize("text", [CHINESE * 2, CHINESE + "磨坊边有人唱歌🌊"], ids=["three bytes", "four bytes"])
def test_one_byte_that_was_overwritten_costs_its_character_and_not_the_text(text: str) -> None:
    data = text.encode()
    for at in range(len(data)):
        broken = decode_text(data[:at] + b"\xff" + data[at + 1 :], None)
        assert 1 <= broken.count("\ufffd") <= 4 and len(broken.replace("\ufffd", "")) == len(text) - 1


def test_a_short_text_of_little_but_damage_is_a_dead_letter() -> None:
    with pytest.raises(EnvelopeError):
        decode_text("水渠里有水".encode() + b"\xff\xfe\xfd", None)


@pytest.mark.parametrize("charset", ["gbk", "shift_jis", "big5", "euc_kr"])
def test_one_bad_byte_costs_one_character_in_other_sets_too(charset: str) -> None:
    text = SHORT[charset] * 4
    data = text.encode(charset)
    damaged = data + b"\x81!" + data
    assert decode_text(damaged, charset) == text + "\ufffd!" + text
    assert decode_text(b'<meta charset="%s">' % charset.encode() + damaged, None).endswith(text)


def test_a_text_with_more_damage_than_allowed_is_a_dead_letter_that_says_how_much() -> None:
    data = (CHINESE.encode() + b"\xff") * 4
    with pytest.raises(EnvelopeError, match=r"2\.\d% of its characters are damaged, and formats.max_damaged_fraction allows 1.0%") as caught:
        decode_text(data, "gbk")
    assert caught.value.rule == "not_utf8"
    assert decode_text(data, "gbk", max_damage=0.05) == (CHINESE + "\ufffd") * 4
    with pytest.raises(EnvelopeError):
        decode_text(CHINESE.encode() + b"\xff", None, max_damage=0)


SHORT = {
    "gbk": "老人坐在河边看着水流过磨坊的轮子",
    "big5": "老人坐在河邊看著水流過磨坊的輪子",
    "shift_jis": "老人は川辺に座って水車を見ている",
    "euc_kr": "노인이 강가에 앉아 물레방아를 보고 있다",
    "cp1251": "Старик сидит у реки и смотрит на мельницу",
    "iso-8859-1": "Der Müller grüßt über den Fluß die Gäste",
}


@pytest.mark.parametrize("declared", SHORT)
@pytest.mark.parametrize("text", [SHORT[name][:end] for name in SHORT for end in (2, 5, 9, 16)])
def test_what_is_utf8_is_utf8_whatever_was_declared(declared: str, text: str) -> None:
    assert decode_text(text.encode(), declared) == text
    assert decode_text(b'<meta charset="%s">' % declared.encode() + text.encode(), declared).endswith(text)


@pytest.mark.parametrize("declared", SHORT)
@pytest.mark.parametrize("charset", SHORT)
def test_a_wrong_declaration_makes_no_nonsense(charset: str, declared: str) -> None:
    text = SHORT[charset] + "。" * (charset in ("gbk", "big5", "shift_jis"))
    try:
        found = decode_text((text * 3).encode(charset), declared)
    except EnvelopeError as error:
        assert error.rule == "bad_charset"
    else:
        assert found == text * 3


JAPANESE = "古い水車小屋が川のほとりに立っている。水車は百年のあいだ回っていない。"


RUSSIAN = ("Привет, как дела", "Старик сидит у реки и смотрит на мельницу", "Москва. ЗАО «Мельница» продаёт муку в мешках по 50 кг, тел. на сайте.")


@pytest.mark.parametrize("text", RUSSIAN)
@pytest.mark.parametrize(("stored", "declared"), [("cp1251", "koi8-r"), ("koi8-r", "cp1251")])
def test_russian_under_the_name_of_its_other_set_has_no_capitals_for_small_letters(text: str, stored: str, declared: str) -> None:
    text = text.replace("«", '"').replace("»", '"')  # which KOI8-R lacks
    assert decode_text(text.encode(stored), declared) == text


@pytest.mark.parametrize("declared", [None, "utf-8", "iso-2022-jp", "gbk"])
@pytest.mark.parametrize("head", ["", '<meta charset="ISO-2022-JP">', '<meta http-equiv="Content-Type" content="text/html; charset=iso-2022-jp">'])
def test_iso_2022_jp_is_read_declared_or_not(declared: str | None, head: str) -> None:
    data = head.encode() + JAPANESE.encode("iso-2022-jp")
    assert decode_text(data, declared) == head + JAPANESE


def test_other_sets_that_are_ascii_to_look_at_are_read() -> None:
    korean = "노인이 강가에 앉아 있다"
    assert decode_text(korean.encode("iso2022_kr"), None) == korean
    assert decode_text(CHINESE.encode("hz"), "hz-gb-2312") == CHINESE
    assert decode_text("plain".encode("utf-16-le"), "utf-16-le") == "plain"
    assert decode_text(b"\x1b[31mred~{x\x1b[0m", None) == "\x1b[31mred~{x\x1b[0m"


@pytest.mark.parametrize("declared", [None, "gbk", "iso-8859-1"])
def test_bytes_that_say_nothing_in_any_set_are_a_dead_letter(declared: str | None) -> None:
    data = bytes(random.Random(7).randbytes(3_000))
    with pytest.raises(EnvelopeError):
        decode_text(data, declared)


@pytest.mark.skipif(not CORPUS.exists(), reason="needs the shared corpus")
def test_good_texts_are_not_called_nonsense() -> None:
    texts = [case.text for case in cases(CORPUS, 20)]
    assert sum(nonsense(text) > MAX_NONSENSE for text in texts) <= len(texts) / 500


@pytest.mark.parametrize("text", ["don’t", "x × y", "10 °C", "l’été", "A和B", "naïve", "“quoted”", "word—word", "中", "é", "™", "5 €"])
def test_a_short_good_text_is_not_called_nonsense(text: str) -> None:
    assert nonsense(text) <= MAX_NONSENSE


@pytest.mark.parametrize(
    "text", ["鑰佷汉鍧愬湪娌宠竟鐪嬬潃姘存祦杩囩（鍧", "ÀÏÈË×øÔÚºÓ±ß¿´×Å", "Ñòàðèê ñèäèò ó ðåêè", ":#F|$OE75$$\x1b$B\x0f\x0e\x01\x02\x03"]
)
def test_text_in_the_wrong_set_is_called_nonsense(text: str) -> None:
    assert nonsense(text) > MAX_NONSENSE
