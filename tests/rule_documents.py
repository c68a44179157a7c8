"""Small documents, made by hand: for each rule of each set one in which it fires and one in which it nearly does, in English and in Chinese."""

from typing import NamedTuple

ENGLISH = (
    "The old mill stands by the river, and its wheel has not turned for a hundred years.\n"
    "People say that the miller left one winter with all of his money and was never seen again.\n"
    "Children from our village used to play there in summer, although their parents had told them to be careful.\n"
    "In autumn the water rises quickly; then even strong swimmers keep away from the channel.\n"
    "Last spring a young couple bought the ruin, cleared out the cellar and began to repair the roof.\n"
    "They want to grind flour again before next year ends, which nobody here believes will happen."
)
CHINESE = (
    "这座老磨坊立在河边，它的水轮已经一百年没有转动了。\n"
    "听说有一年冬天，磨坊主人带着全部积蓄离开了村子，从此再也没有回来。\n"
    "夏天孩子们常在那里玩耍，虽然父母早就告诉他们要小心深水。\n"
    "到了秋季河面涨得很快，连最会游泳的青年也不敢靠近水渠。\n"
    "去年春天，一对年轻夫妻买下这片废墟，清理地窖并且开始修补屋顶。\n"
    "他们打算在明年底之前重新磨出面粉，可是这里谁都不相信会成功。"
)
_LINES = ENGLISH.split("\n")
_CHINESE_LINES = CHINESE.split("\n")
_WORDS = ENGLISH.split()
_FLAT = " ".join(_WORDS)
_FLAT_CHINESE = CHINESE.replace("\n", "")


class Case(NamedTuple):
    """One rule's two documents in one language."""

    rule: str
    language: str
    fires: str
    nearly: str

    @property
    def name(self) -> str:
        return f"{self.rule}-{self.language}"


def _words(count: int) -> str:
    return " ".join(_WORDS[:count])


def _letters(count: int) -> str:
    """Chinese with so many letters, in one line."""
    letters = [mark for mark in _FLAT_CHINESE if mark not in "，。"]
    return "".join(letters[:count]) + "。"


def _numbered(count: int, text: str = "word") -> list[str]:
    return [f"{text}{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(count)]


def _numerals(count: int) -> str:
    """Chinese numerals: letters that no two neighbours repeat."""
    return "".join(chr(0x4E00 + 37 * i % 4999) for i in range(count))


_QUALITY = (
    Case("too_few_words", "en", _words(49), _words(50)),
    Case("too_few_words", "zh", _letters(99), _letters(100)),
    Case("too_many_words", "en", "the and " * 50_001, "the and " * 50_000),
    Case("too_many_words", "zh", "的是" * 100_001, "的是" * 100_000),
    Case("mean_word_too_short", "en", "the and " + "ab " * 60, "the and " + "abc " * 60),
    Case("mean_word_too_long", "en", "the and " + "abcdefghijk " * 60, "the and " + "abcdefghij " * 60),
    Case("mean_word_too_long", "zh", _FLAT_CHINESE + "0123456789" * 200, _FLAT_CHINESE + "0123456789" * 50),
    Case("hashes", "en", _words(60) + " #" * 7, _words(60) + " #" * 6),
    Case("hashes", "zh", _letters(100) + "#" * 6, _letters(100) + "#" * 5),
    Case("ellipses", "en", _words(60) + " and... so" * 9, _words(60) + " and... so" * 7),
    Case("ellipses", "zh", _letters(100) + "……，" * 6, _letters(100) + "……，" * 5),
    Case("bullet_lines", "en", "- " + "\n- ".join(_LINES), "\n- ".join(_LINES)),
    Case("bullet_lines", "zh", "·" + "\n·".join(_CHINESE_LINES), "\n●".join(_CHINESE_LINES)),
    Case("ellipsis_lines", "en", "\n".join([*_LINES[:4], _LINES[4] + "...", _LINES[5] + "…"]), "\n".join([*_LINES[:5], _LINES[5] + "..."])),
    Case("ellipsis_lines", "zh", "\n".join([*_CHINESE_LINES[:4], *(line + "……" for line in _CHINESE_LINES[4:])]), CHINESE + "……"),
    Case("few_alpha_words", "en", _words(60) + " 12345" * 16, _words(60) + " 12345" * 15),
    Case("few_alpha_words", "zh", _letters(100) + " 12345" * 13, _letters(100) + " 12345" * 12),
    Case("few_stop_words", "en", "the " + " ".join(_numbered(60)), "the and " + " ".join(_numbered(60))),
    Case("few_stop_words", "zh", "的" + "春夏秋冬" * 30, "的是" + "春夏秋冬" * 30),
)
_REPETITION = (
    Case("duplicate_paragraphs", "en", _FLAT + "\n\nyes" * 3, _FLAT + "\n\nno\n\nyes\n\nyes"),
    Case("duplicate_paragraphs", "zh", _FLAT_CHINESE + "\n\n好的" * 3, _FLAT_CHINESE + "\n\n好的\n\n不行\n\n好的"),
    Case("duplicate_paragraph_chars", "en", "\n\n".join([*_LINES, _LINES[2], _LINES[3]]), "\n\n".join([*_LINES, _LINES[3]])),
    Case("duplicate_paragraph_chars", "zh", "\n\n".join([*_CHINESE_LINES, *_CHINESE_LINES[1:3]]), "\n\n".join([*_CHINESE_LINES, _CHINESE_LINES[0]])),
    Case("duplicate_lines", "en", _FLAT + "\nyes" * 3, _FLAT + "\nno\nyes\nyes"),
    Case("duplicate_lines", "zh", _FLAT_CHINESE + "\n好的" * 3, _FLAT_CHINESE + "\n好的\n不行\n好的"),
    Case("duplicate_line_chars", "en", "\n".join([*_LINES, _LINES[2], _LINES[3]]), "\n".join([*_LINES, _LINES[3]])),
    Case("duplicate_line_chars", "zh", "\n".join([*_CHINESE_LINES, *_CHINESE_LINES[1:3]]), "\n".join([*_CHINESE_LINES, _CHINESE_LINES[0]])),
    Case("top_2_gram", "en", _FLAT + " " + " ".join(f"buy now {word}" for word in _numbered(40, "")), _FLAT + " buy now" * 3),
    Case("top_2_gram", "zh", _FLAT_CHINESE + "".join(f"{mark}点击这里" for mark in _numerals(20)), _FLAT_CHINESE + "点击这里，点击这里"),
    Case("top_3_gram", "en", _FLAT + " " + " ".join(f"buy it now {word}" for word in _numbered(18, "")), _FLAT + " buy it now, buy it now"),
    Case(
        "top_4_gram",
        "en",
        _FLAT + " " + " ".join(f"you must see this {word}" for word in _numbered(8, "")),
        _FLAT + " you must see this, you must see this",
    ),
    Case("top_4_gram", "zh", _FLAT_CHINESE + "".join(f"{mark}欢迎关注我们公号" for mark in _numerals(5)), _FLAT_CHINESE + "欢迎关注我们公号"),
    Case("duplicate_5_grams", "en", f"{_FLAT} {' '.join(_WORDS[18:43])}", f"{_FLAT} {' '.join(_WORDS[10:25])}"),
    Case("duplicate_5_grams", "zh", _FLAT_CHINESE + _letters(80)[40:], _FLAT_CHINESE + _letters(58)[40:]),
    Case("duplicate_10_grams", "en", f"{_words(60)} {' '.join(_WORDS[1:11])}", f"{_words(95)} {' '.join(_WORDS[10:20])}"),
    Case("duplicate_10_grams", "zh", _letters(165) + _letters(60)[40:60], _letters(175) + _letters(58)[40:58]),
)
_FINEWEB = (
    Case(
        "line_punctuation", "en", "\n".join(line.rstrip(".") for line in _LINES), "\n".join([*(line.rstrip(".") for line in _LINES[1:]), _LINES[0]])
    ),
    Case("line_punctuation", "zh", CHINESE.replace("。", ""), CHINESE.replace("。\n", "”\n")),
    Case("short_lines", "en", _FLAT + "\n" + "\n".join(f"Short {i}." for i in range(3)), _FLAT + "\nShort one.\nShort two.\n" + _LINES[0]),
    Case(
        "short_lines",
        "zh",
        _FLAT_CHINESE + "\n一是大门。\n二是小窗。\n三是水轮。",
        _FLAT_CHINESE + "\n一是大门。\n二是小窗。\n" + _CHINESE_LINES[1] + "另外。",
    ),
    Case("duplicate_chars", "en", f"{ENGLISH}\n{_LINES[0]}", f"{ENGLISH}\nOh.\nOh."),
    Case("duplicate_chars", "zh", f"{CHINESE}\n{_CHINESE_LINES[0]}", f"{CHINESE}\n{CHINESE[:14]}水。\n好\n好"),
    Case(
        "newlines",
        "en",
        "\n".join(f"Incomprehensibilities {word} notwithstanding." for word in _numbered(40)).replace(" word", ""),
        "\n".join(f"It is a good day for {word} by the sea." for word in _numbered(9)),
    ),
    Case(
        "newlines",
        "zh",
        "\n".join(f"{mark}字{'0123456789' * 3}。" for mark in _numerals(9)),
        "\n".join(f"今天我们去河边看{mark}字的老磨坊和水车吧。" for mark in _numerals(9)),
    ),
)
_C4 = (
    Case("too_few_sentences", "en", "\n".join(_LINES[:4]), "\n".join(_LINES[:5])),
    Case("too_few_sentences", "zh", "\n".join(_CHINESE_LINES[:4]), "\n".join(_CHINESE_LINES[:5])),
    Case("lorem_ipsum", "en", f"{ENGLISH}\nHere is Lorem Ipsum as filler.", f"{ENGLISH}\nHere is lorem  ipsum as filler."),
    Case("lorem_ipsum", "zh", f"{CHINESE}\n这里有 lorem ipsum 占位文字。", f"{CHINESE}\n这里有占位文字，不是乱写的。"),
    Case("curly_bracket", "en", f"{ENGLISH}\nThis is a {{ bracket.", f"{ENGLISH}\nThis {{ bracket stands in a line that goes"),
    Case("curly_bracket", "zh", f"{CHINESE}\n这里有一个 {{ 括号。", f"{CHINESE}\n这里有一个（括号）而已。"),
)
CASES = {"gopher_quality": _QUALITY, "gopher_repetition": _REPETITION, "c4": _C4, "fineweb": _FINEWEB}
