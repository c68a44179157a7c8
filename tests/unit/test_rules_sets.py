"""Each rule of the published sets fires on the document made for it and not on the one beside it, in English and Chinese.

golden/datatrove_verdicts.json records what datatrove says of the English ones (tests/contract/test_datatrove_parity.py writes and checks it).
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines.steps.quality import Judged, judge, measure
from pipelines.steps.rules.columns import NUM_CHARS
from schemas.settings import Settings
from schemas.settings_quality import RULE_SETS, C4Settings, QualitySettings
from tests.rule_documents import CASES, CHINESE, ENGLISH, Case

GOLDEN: dict[str, str | None] = json.loads((Path(__file__).parent / "golden" / "datatrove_verdicts.json").read_text(encoding="utf-8"))
SET_CASES = [(name, case) for name, cases in CASES.items() for case in cases]


def judged(texts: list[str], *, language: str = "en", **sections: Any) -> Judged:
    return judge(pa.array(texts, pa.large_string()), pa.array([language] * len(texts)), np.zeros(len(texts), np.int64), Settings(**sections))


def only(*names: str, **changes: Any) -> QualitySettings:
    return QualitySettings(rule_sets=names, **changes)


def rules_of(name: str, case: Case) -> list[str | None]:
    return judged([case.fires, case.nearly], language=case.language, quality=only(name)).rules.to_pylist()  # type: ignore[no-any-return]


@pytest.mark.parametrize(("name", "case"), SET_CASES, ids=[f"{name}/{case.name}" for name, case in SET_CASES])
def test_each_rule_fires_where_it_should_and_not_just_before(name: str, case: Case) -> None:
    assert rules_of(name, case) == [f"{name}/{case.rule}", None]


def test_datatrove_says_the_same_of_the_english_documents() -> None:
    ours: dict[str, str | None] = {}
    for name, case in SET_CASES:
        if case.language == "en":
            ours |= dict(zip((f"{name}/{case.name}/fires", f"{name}/{case.name}/nearly"), rules_of(name, case), strict=True))
    assert ours == GOLDEN


@pytest.mark.parametrize(("text", "language"), [(ENGLISH, "en"), (CHINESE, "zh")])
@pytest.mark.parametrize("words", ["whitespace", "unicode"])
def test_good_prose_passes_all_sets(text: str, language: str, words: str) -> None:
    assert judged([text], language=language, quality=only(*RULE_SETS, words=words)) == Judged(
        pa.array([text], pa.large_string()), pa.array([None], pa.string()), pa.array([len(text)])
    )


def test_an_empty_text_is_rejected_by_each_set_and_raises_in_none() -> None:
    for name, rule in {
        "headrace": "too_short",
        "gopher_quality": "gopher_quality/too_few_words",
        "gopher_repetition": "gopher_repetition/empty",
        "c4": "c4/too_few_sentences",
        "fineweb": "fineweb/empty",
    }.items():
        assert judged([""], quality=only(name)).rules.to_pylist() == [rule]
    assert judged([], quality=only(*RULE_SETS)).rules.to_pylist() == []


def test_c4_takes_lines_out_and_the_other_sets_see_what_is_left() -> None:
    clutter = [
        "Home",
        "Click here to go on",
        "This site needs JavaScript to work.",
        "Read our privacy policy now.",
        "To be continued, we hope...",
        "x" * 1001 + " a b.",
    ]
    text = "\n".join([clutter[0], *ENGLISH.split("\n"), *clutter[1:]])
    both = judged([text], quality=only("gopher_repetition", "c4"))
    assert both.texts.to_pylist() == [ENGLISH]
    assert both.num_chars.to_pylist() == [len(ENGLISH)]
    assert both.rules.to_pylist() == [None]


def test_c4_takes_lines_out_of_chinese_as_well() -> None:
    clutter = ["首页", "点击这里继续阅读", "请打开 JavaScript 后再试一次。", "请先阅读我们的隐私政策。", "好的。"]
    cleaned = judged(["\n".join([*clutter, CHINESE])], language="zh", quality=only("c4"))
    assert cleaned.texts.to_pylist() == [CHINESE]


def test_closing_quotation_marks_and_the_ellipsis_end_a_chinese_line() -> None:
    text = "「我们明天再来吧。」\n他说：“水一定会回来的”\n她没有回答，只是看着远方的山……\n真的是这样吗？\n当然是真的！"
    assert judged([text], language="zh", quality=only("c4")).texts.to_pylist() == [text]


def test_c4_cuts_citations_out_of_lines() -> None:
    text = ENGLISH.replace("years.", "years.[12]").replace("river,", "river[citation needed], [edit]").replace("roof.", "roof[x].")
    assert judged([text], quality=only("c4")).texts.to_pylist() == [ENGLISH.replace("river,", "river, ").replace("roof.", "roof[x].")]


def test_a_text_that_c4_rejects_is_left_as_it_was() -> None:
    texts = ["One line.\nNo end", ENGLISH]
    cleaned = judged(texts, quality=only("c4"))
    assert cleaned.texts.to_pylist() == texts
    assert cleaned.rules.to_pylist() == ["c4/too_few_sentences", None]


def test_each_part_of_c4_can_be_turned_off() -> None:
    text = "no end\nJavaScript is here now.\nsee the privacy policy.\na { b }.\nlorem ipsum is this."
    lenient = C4Settings(
        require_terminal_punctuation=False,
        remove_citations=False,
        min_words_per_line=0,
        min_sentences=0,
        remove_javascript_lines=False,
        remove_policy_lines=False,
        reject_lorem_ipsum=False,
        reject_curly_bracket=False,
    )
    cleaned = judged([text], quality=only("c4"), c4=lenient)
    assert (cleaned.texts.to_pylist(), cleaned.rules.to_pylist()) == ([text], [None])


def test_c4_names_the_verdict_before_the_sets_that_see_its_text() -> None:
    assert judged(["Too short."], quality=only("headrace", "c4")).rules.to_pylist() == ["c4/too_few_sentences"]
    assert judged(["Too short."], quality=only("headrace", "fineweb")).rules.to_pylist() == ["too_short"]


def test_the_first_set_that_is_named_names_the_verdict() -> None:
    assert judged(["a b"], quality=only("gopher_quality", "headrace")).rules.to_pylist() == ["gopher_quality/too_few_words"]


def test_without_sets_only_length_and_language_are_looked_at() -> None:
    quality = QualitySettings(rule_sets=(), max_chars=10, languages=("en",))
    assert judged(["", "x" * 10, "x" * 11], quality=quality).rules.to_pylist() == [None, None, "too_long"]


def test_a_text_over_the_limit_stays_as_it_is_and_costs_no_memory() -> None:
    texts = pa.array(["Short line here.\nno", "x" * 5000], pa.large_string())
    measured = measure(texts, pa.array(["en", "en"]), Settings(quality=only("c4", max_chars=100)))
    assert measured.counts[:, NUM_CHARS].tolist() == [19, 5000]
    assert measured.texts[1].as_py() == "x" * 5000


def test_stop_words_are_asked_in_the_documents_language() -> None:
    german = ("Die Mühle am Fluss steht seit hundert Jahren still, und niemand weiß warum der Müller fortging. " * 6)[:-1]
    quality = {"quality": only("gopher_quality")}
    assert judged([german], language="de", **quality).rules.to_pylist() == [None]
    assert judged([german], language="en", **quality).rules.to_pylist() == ["gopher_quality/few_stop_words"]
    assert judged([german], language="und", **quality).rules.to_pylist() == ["gopher_quality/few_stop_words"]
    assert judged([german], language="fi", **quality).rules.to_pylist() == [None]


def test_unknown_sets_are_refused() -> None:
    with pytest.raises(ValueError, match=r"quality\.rule_sets has gofer; there are headrace"):
        QualitySettings(rule_sets=("gofer",))
    with pytest.raises(ValueError, match="twice"):
        QualitySettings(rule_sets=("c4", "c4"))
