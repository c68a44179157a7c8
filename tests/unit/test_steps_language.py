"""Language identification."""

import pyarrow as pa
import pytest

from pipelines.steps.language import detect_languages

TEXTS = {
    "en": "The committee will meet again on Thursday to discuss the remaining proposals.",
    "zh": "这个项目的目标是让每个人都能在自己的电脑上训练语言模型。",
    "ja": "この文書では、システムの設計と主な機能について説明します。",
    "ko": "이 문서는 시스템의 설계와 주요 기능을 설명합니다.",
    "th": "เอกสารนี้อธิบายการออกแบบระบบและคุณสมบัติหลัก",
    "ar": "تشرح هذه الوثيقة تصميم النظام والميزات الرئيسية.",
    "ru": "В этом документе описано устройство системы и её основные возможности.",
    "de": "In diesem Dokument werden der Aufbau des Systems und seine wichtigsten Funktionen beschrieben.",
}


def test_each_language_is_told_from_the_others() -> None:
    assert detect_languages(pa.array(TEXTS.values(), pa.large_string())).to_pylist() == list(TEXTS)


def test_capitals_are_the_same_language() -> None:
    assert detect_languages(pa.array([TEXTS["en"].upper(), TEXTS["de"].upper()], pa.large_string())).to_pylist() == ["en", "de"]


def test_short_chinese_without_kana_is_not_japanese_or_korean() -> None:
    assert set(detect_languages(pa.array(["工具列表", "繁體中文說明", "第十二章 附錄", "虚拟化"], pa.large_string())).to_pylist()) <= {"zh", "und"}


def detected(texts: list[str]) -> list[str]:
    return detect_languages(pa.array(texts, pa.large_string())).to_pylist()  # type: ignore[no-any-return]


def test_short_japanese_without_kana_is_not_chinese() -> None:
    assert detected(["自動販売機", "開会", "日本国憲法", "東京大学", "令和三年度文部科学省学校基本調査報告書"]) == ["ja"] * 5


def test_short_chinese_that_japanese_cannot_write_is_chinese() -> None:
    assert detected(["图书馆", "开会", "自动售货机", "說明", "这样做是不可以的"]) == ["zh"] * 5


def test_a_short_text_that_is_both_is_undetermined_and_a_long_one_is_chinese() -> None:
    assert detected(["中国", "大学", "山水", "圖書館", "人工知能"]) == ["und"] * 5
    assert detected(["白日依山尽黄河入海流欲求千里目更上一高台大江流日夜客心悲未央"]) == ["zh"]


@pytest.mark.parametrize("text", ["", " ", "12345", "😀😀", "---", "3.14 = π?"[:4]])
def test_text_without_letters_is_undetermined(text: str) -> None:
    assert detect_languages(pa.array([text], pa.large_string())).to_pylist() == ["und"]


def test_no_texts_have_no_languages() -> None:
    assert detect_languages(pa.array([], pa.large_string())).to_pylist() == []
