"""Quality rules: each rejects what it is for, and none rejects good prose of any language for the way it is written."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines.steps.quality import judge, measure
from pipelines.steps.rules.columns import NUM_WORDS
from pipelines.steps.rules.scratch import clear_table, empty_scratch
from schemas.settings import Settings
from schemas.settings_quality import QualitySettings

ENGLISH = "The old mill stands by the river. Its wheel has not turned for a hundred years, but the channel still carries water."
GOOD = {
    "English": ENGLISH,
    "Chinese": "这座老磨坊立在河边。它的水轮已经一百年没有转动了，但水渠里依然有水流过，村里的孩子们夏天常在那里玩耍。",
    "Chinese without punctuation": "这座老磨坊立在河边它的水轮已经一百年没有转动了但水渠里依然有水流过",
    "Japanese": "古い水車小屋は川のほとりに建っています。水車は百年も回っていませんが、水路には今も水が流れています。",
    "Korean": "오래된 물레방아는 강가에 서 있다. 바퀴는 백 년 동안 돌지 않았지만 수로에는 아직도 물이 흐른다.",
    "Korean without spaces": "오래된물레방아는강가에서있다바퀴는백년동안돌지않았지만수로에는아직도물이흐른다",
    "Thai": "โรงสีเก่าตั้งอยู่ริมแม่น้ำกังหันไม่ได้หมุนมาเป็นเวลาร้อยปีแล้วแต่ในคลองยังมีน้ำไหลอยู่",
    "Khmer": "រោងម៉ាស៊ីនចាស់ឈរនៅក្បែរទន្លេកង់របស់វាមិនបានវិលអស់រយៈពេលមួយរយឆ្នាំមកហើយ",
    "Arabic": "تقف الطاحونة القديمة بجانب النهر ولم تدر عجلتها منذ مئة عام لكن القناة ما زالت تحمل الماء.",
    "Arabic, spaces lost": "تقفالطاحونةالقديمةبجانبالنهر ولمتدرعجلتهامنذمئةعاملكنالقناة مازالتتحملالماءإلىالقرية ثم وصل الماء إلى هنا أخيرا",
    "Hindi": "पुरानी चक्की नदी के किनारे खड़ी है। उसका पहिया सौ साल से नहीं घूमा, लेकिन नहर में अब भी पानी बहता है।",
    "Russian": "Старая мельница стоит у реки. Её колесо не вращалось сто лет, но по каналу всё ещё течёт вода.",
    "German": "Donaudampfschifffahrtsgesellschaft und Rechtsschutzversicherungsgesellschaften stehen in diesem kurzen Satz nebeneinander.",
    "emoji": "今天天气真好😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀！我们一起去公园吧🌳🌳🌳🌳🌳🌳🌳🌳",
    "full-width": "你好！！！真的吗？？？——是的……（笑）「好」，『行』。：；、～～～没有问题，我们明天再见。",
    "table": "表一 浏览器列表如下所示\n┌────────────┬──────────────────────┐\n│ 名称 │ 说明 │\n└────────────┴──────────────────────┘\n"
    "这些浏览器都可以使用。",
    "code": 'def main(path: str) -> int:\n    """Count lines."""\n    with open(path) as file:\n        return sum(1 for _ in file)\n}\n}\n}\n}\n}\n',
    "New York": "New York is large. New York is loud. New York never sleeps. People love New York for it.",
}


def rule_of(text: str, **changes: Any) -> str | None:
    settings = Settings(quality=QualitySettings(**changes))
    return judge(pa.array([text], pa.large_string()), pa.array(["en"]), np.zeros(1, np.int64), settings).rules.to_pylist()[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", GOOD)
def test_good_text_of_every_script_is_accepted(name: str) -> None:
    assert rule_of(GOOD[name]) is None


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("too_short", "Seven words are not enough for this"),
        ("too_short", "你好，世界！"),
        ("too_short", ""),
        ("too_short", "😀" * 50),
        ("too_short", "- - - - - - - - - - - - - - - -"),
        ("too_long", ENGLISH * 40),
        ("mean_word_length", " ".join(["aGVhZHJhY2UgY2FycmllcyB3YXRlcg" * 2] * 9 + ["end"])),
        ("few_letters", " ".join(str(number) for number in range(100, 200))),
        ("symbols", "sum <=>± product " * 3 + "alpha +=× beta " * 30),
        ("symbols", " ".join(f"\ue000\ue001\ue002 word{i}" for i in range(30))),
        ("duplicate_lines", "\n".join(f"line {i} of these\nthe same line" for i in range(6))),
        ("duplicate_line_chars", "\n".join([f"short {i}" for i in range(20)] + [ENGLISH] * 4)),
        ("top_ngram", "buy now " * 4 + "it is the best " + "buy now " * 8),
        ("top_ngram", "点击这里" * 8 + "获取更多优惠信息吧朋友们"),
        ("replacement_chars", ENGLISH + "\ufffd" * 3),
    ],
)
def test_each_rule_rejects_what_it_is_for(rule: str, text: str) -> None:
    assert rule_of(text, max_chars=4000) == rule


def test_removed_control_characters_count_as_wrong_decoding() -> None:
    texts, languages = pa.array([ENGLISH, ENGLISH], pa.large_string()), pa.array(["en", "en"])
    _, rules, num_chars = judge(texts, languages, np.array([0, 9]), Settings())
    assert rules.to_pylist() == [None, "replacement_chars"]
    assert num_chars.to_pylist() == [len(ENGLISH)] * 2


def test_languages_are_kept_by_code() -> None:
    texts, languages = pa.array([ENGLISH] * 3, pa.large_string()), pa.array(["en", "zh", "und"])
    settings = Settings(quality=QualitySettings(languages=("en", "zh")))
    assert judge(texts, languages, np.zeros(3, np.int64), settings).rules.to_pylist() == [None, None, "language_not_kept"]


def test_words_are_counted_as_a_reader_would() -> None:
    texts = pa.array(["two words", "你好世界", "用Python写 3.5 行", "สวัสดี", "a-b, (c)!", "—", "你好，world！", "x😀y"], pa.large_string())
    assert measure(texts, pa.array(["und"] * len(texts)), Settings()).counts[:, NUM_WORDS].tolist() == [2, 4, 5, 4, 2, 0, 3, 2]


def test_the_verdict_on_a_text_does_not_depend_on_its_batch() -> None:
    texts = [*GOOD.values(), "same line\n" * 9, "buy now " * 30, "x"] * 3
    together = counts_of(texts)
    alone = np.concatenate([counts_of([text]) for text in texts])
    assert (together == alone).all()


@pytest.mark.parametrize("num_chars", range(40))
def test_a_table_is_never_probed_beyond_its_end(num_chars: int) -> None:
    scratch = empty_scratch(num_chars)
    assert clear_table(scratch, num_chars + 2) < len(scratch.keys) == len(scratch.counts) == len(scratch.firsts)


def counts_of(texts: list[str]) -> Any:
    return measure(pa.array(texts, pa.large_string()), pa.array(["en"] * len(texts)), Settings()).counts
