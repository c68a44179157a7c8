"""Headrace's rules on boilerplate, code, logs, emoji and the two Chinese scripts: what they are for, and what comes close."""

import re
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines.dedup.paragraphs import distinct_paragraphs
from pipelines.steps.assess import assess
from pipelines.steps.quality import Judged, judge
from pipelines.steps.rules import marks
from pipelines.steps.rules.columns import NUM_COLUMNS
from pipelines.steps.rules.headrace import broken_rules
from pipelines.steps.rules.marks import rule_flags
from pipelines.steps.rules.why import why
from schemas.settings import Settings
from schemas.settings_dedup import DedupSettings
from schemas.settings_quality import QualitySettings
from tests.rule_documents import CHINESE, ENGLISH

CODE = """def fibonacci(count):
    values = [0, 1]
    for i in range(2, count):
        values.append(values[i - 1] + values[i - 2])
    return {"values": values, "count": len(values)}
if __name__ == "__main__":
    print(json.dumps(fibonacci(int(sys.argv[1])), indent=2))"""
MINIFIED = "!function(e,t){var n=t(e),r=n.q||{};for(var i in r)if(r[i]){e[i]=r[i];t.go(i)}return function(a,b){return a[b]||(a[b]=[])}}(window,doc);"
LOG = "\n".join(f"2026-03-0{i} 10:20:3{i}.123 INFO worker started with lease number {chr(97 + i) * 4}" for i in range(1, 9))
SYSLOG = "\n".join(f"[12:34:5{i}] kernel says that device {chr(97 + i) * 3} is ready" for i in range(9))
TABLE = "\n".join(f"| name{chr(97 + i)} | value of it | and a remark |" for i in range(9))
WIDE_TABLE = "\n".join(f"name{chr(97 + i)} | value | kind | note" for i in range(9))
TRADITIONAL = "這座老磨坊立在河邊，它的水輪已經一百年沒有轉動了，聽說有一年冬天主人帶著錢離開村子。"


def judged(text: str, language: str = "en", num_controls: int = 0, **changes: Any) -> Judged:
    settings = Settings(quality=QualitySettings(**changes))
    return judge(pa.array([text], pa.large_string()), pa.array([language]), np.array([num_controls]), settings)


def rule_of(text: str, language: str = "en", **changes: Any) -> str | None:
    return judged(text, language, **changes).rules.to_pylist()[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "text",
    [
        "We use cookies to give you the best experience. Accept all cookies?",
        "Please enable JavaScript in your browser to see this page.",
        "Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod.",
        "Home | Products | About us | Contact | Imprint | Privacy | Jobs",
        "Home » Shop » Garden tools » Spades » Small spades for small hands",
        "Copyright 2026 The Old Mill Company of Rivertown, All Rights Reserved.",
        "本网站使用 Cookie 以便为您提供更好的浏览体验，请点击接受。",
        "请启用JavaScript后再刷新本页面，谢谢您的合作。",
        "版权所有 © 老磨坊有限公司，未经许可不得转载本站内容。",
        "首页 | 新闻中心 | 产品介绍 | 关于我们 | 联系方式",
        "当サイトのプライバシーポリシーをご確認のうえ、同意してください。",
    ],
)
def test_boilerplate_alone_is_rejected_and_beside_prose_it_is_not(text: str) -> None:
    prose = ENGLISH if text.isascii() else CHINESE
    assert rule_of(text) == "boilerplate"
    assert rule_of(text, max_boilerplate_ratio=1) is None
    assert rule_of(f"{prose}\n{text}") is None
    assert judged(f"{text}\n{prose}\n{text}", remove_boilerplate_lines=True).texts.to_pylist() == [prose]


def test_a_long_paragraph_that_mentions_a_policy_is_prose() -> None:
    text = ENGLISH.replace("\n", " ").replace("People say", "The privacy policy says")
    assert rule_of(text) is None
    assert judged(text, remove_boilerplate_lines=True).texts.to_pylist() == [text]


@pytest.mark.parametrize("text", [TABLE, WIDE_TABLE])
def test_tables_are_no_lists_of_links(text: str) -> None:
    assert rule_of(text, max_top_ngram_char_ratio=1) is None
    assert judged(text, remove_boilerplate_lines=True).texts.to_pylist() == [text]


def test_removing_boilerplate_keeps_paragraphs_and_all_else() -> None:
    text = "Skip to main content\n\n" + ENGLISH.replace("\n", "\n\n") + "\n\nAll rights reserved."
    assert judged(text, remove_boilerplate_lines=True).texts.to_pylist() == ["\n" + ENGLISH.replace("\n", "\n\n")]


@pytest.mark.parametrize("text", [CODE, MINIFIED])
def test_code_is_kept_or_rejected_as_the_settings_say(text: str) -> None:
    lenient: dict[str, Any] = {"max_mean_word_chars": 1000, "min_words": 1}
    assert rule_of(text, **lenient) is None
    assert rule_of(text, **lenient, code="reject") == "code"
    assert rule_of(ENGLISH, code="reject") is None
    assert rule_of(CHINESE, code="reject") is None
    assert rule_of(f"{ENGLISH}\n{text[:200]}", code="reject") is None


@pytest.mark.parametrize("text", [LOG, SYSLOG])
def test_logs_are_kept_or_rejected_as_the_settings_say(text: str) -> None:
    assert rule_of(text, max_top_ngram_char_ratio=1) is None
    assert rule_of(text, max_top_ngram_char_ratio=1, logs="reject") == "log"
    assert rule_of(f"{ENGLISH}\n{text[:200]}", logs="reject") is None
    assert rule_of("At 10:20 the train left, and at noon we were home again.", logs="reject") is None


def test_emoji_are_judged_by_their_share() -> None:
    text = "今天天气真好我们去公园吧朋友们"
    assert rule_of(text + "😀🌳" * 50) is None
    assert rule_of(text + "😀🌳" * 70) == "emoji"
    assert rule_of(text + "😀🌳" * 70, max_emoji_ratio=1) is None
    assert rule_of("What a fine day it is for all of us 😀🌳🎉") is None
    assert rule_of("What a fine day it is for all of us 😀🌳🎉", max_emoji_ratio=0.05) == "emoji"


def test_chinese_is_kept_by_script() -> None:
    assert [rule_of(text, "zh") for text in (CHINESE, TRADITIONAL)] == [None, None]
    assert [rule_of(text, "zh", chinese="simplified") for text in (CHINESE, TRADITIONAL)] == [None, "chinese_not_kept"]
    assert [rule_of(text, "zh", chinese="traditional") for text in (CHINESE, TRADITIONAL)] == ["chinese_not_kept", None]
    assert rule_of("山水田土木火日月上下大小人口手足", "zh", chinese="simplified") is None
    assert rule_of(TRADITIONAL, "ja", chinese="simplified") is None


def test_one_list_names_all_characters_that_tell_the_scripts_apart() -> None:
    flags = rule_flags()
    simplified, old = flags & marks.SIMPLIFIED != 0, flags & marks.TRADITIONAL != 0
    assert np.sum(simplified) > 400
    assert abs(int(np.sum(simplified)) - int(np.sum(old))) < 20
    assert not np.any(simplified & old)
    assert all(flags[ord(letter)] & marks.SIMPLIFIED for letter in "们这说时对发")
    assert all(flags[ord(letter)] & marks.TRADITIONAL for letter in "們這說時對發")


def test_every_rule_says_which_setting_it_goes_by() -> None:
    columns = np.zeros((1, NUM_COLUMNS), np.int64)
    for rule in (*broken_rules(columns, np.zeros(1, np.int64), QualitySettings()), "too_long", "language_not_kept", "chinese_not_kept"):
        named = re.findall(r"quality\.(\w+)", why(rule) or "")
        assert named and set(named) <= set(QualitySettings.model_fields), rule
    assert why("gopher_quality/too_few_words") == "a rule of the set gopher_quality: its thresholds are in the section [gopher_quality]"
    assert why("html/no_content") is None


def test_of_a_short_text_with_a_footer_the_footer_is_judged_until_it_is_known_and_the_rest_from_then_on() -> None:
    footer = "Subscribe to our newsletter for more stories like this one, and follow us on all channels every day."
    texts = pa.array([f"{body}\n{footer}" for body in ("The mill stands by the river and turns slowly.", "Bread again today.")], pa.large_string())
    settings = Settings(dedup=DedupSettings(boilerplate=True))
    known = distinct_paragraphs(pa.array([footer], pa.large_string()), 1).flatten().to_numpy()
    undeclared = pa.chunked_array([pa.nulls(2, pa.string())])
    assert assess(texts, undeclared, settings).rules.to_pylist() == ["boilerplate", "boilerplate"]
    assert assess(texts, undeclared, settings, known).rules.to_pylist() == [None, "too_short"]
