"""Mojibake that cannot be mended for certain is rejected by its own name; nobody's own text is."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from ops.cli.main import main
from pipelines.dataset.verify import verify
from pipelines.steps.prepare import clean
from pipelines.steps.unreadable import MOJIBAKE, find_unreadable
from schemas.settings import Settings
from tests.factories import commit_records, records_table, text_settings

CHINESE = "老人坐在村口的大树下面，给孩子们讲很久以前的故事，水从山上流下来。"
JAPANESE = "こんにちは。昔々、あるところにおじいさんとおばあさんが住んでいました。"
KOREAN = "안녕하세요. 옛날 옛적에 할아버지와 할머니가 작은 집에서 살았습니다."
FRENCH = "Être né à Orléans, c’est déjà l’été où l’œuvre s’achève : « çà et là », un garçon mangeait des crêpes à Noël."
GOOD = [
    CHINESE,
    JAPANESE,
    KOREAN,
    FRENCH,
    "Đây là một câu tiếng Việt bình thường, có đủ các dấu.",
    "Größenmaßstäbe für Überschüsse: ÄÖÜ äöü ß.",
    "The letters are ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÐÑÒÓÔÕÖØÙÚÛÜÝÞß, and this manual lists all of them once, between English words that say so at some length.",
    "有人把“锟斤拷”叫作乱码，它来自编码转换的错误，很多程序员都见过它，这篇文章解释它是怎么来的，又该怎样避免这种错误的发生，读者不需要编程经验。",
    "鑰和佷都是很少见的字，汉语词典里可以查到它们的读音和意思。",
    "魑魅魍魉，饕餮饕餮，氤氲缱绻，蹀躞踟蹰，觥筹交错，醍醐灌顶，踌躇满志。",
    "東京都千代田区霞が関、榊原郁恵、齋藤飛鳥、渡邊、髙橋、﨑山。",
    "國立臺灣大學圖書館藏有許多珍貴的古籍，歡迎讀者前來閱覽。",
]


def is_unreadable(text: str) -> bool:
    return bool(find_unreadable(pa.array([text], pa.large_string()))[0])


@pytest.mark.parametrize(
    ("text", "read_as"),
    [
        *((CHINESE, name) for name in ("gb18030", "gbk", "cp932", "cp949", "cp1252")),
        *((JAPANESE, name) for name in ("gb18030", "gbk", "cp932")),
        *((KOREAN, name) for name in ("gb18030", "gbk", "cp1252")),
    ],
)
def test_utf8_that_was_read_in_another_set_is_mojibake(text: str, read_as: str) -> None:
    assert is_unreadable(text.encode().decode(read_as, "replace"))


@pytest.mark.parametrize(("text", "written_in"), [(CHINESE, "gb18030"), (JAPANESE, "euc_jp"), (KOREAN, "cp949"), (CHINESE[:20], "gbk")])
def test_other_sets_that_were_read_as_latin1_are_mojibake(text: str, written_in: str) -> None:
    assert is_unreadable(text.encode(written_in).decode("latin-1"))


def test_a_title_of_four_characters_and_lost_characters_are_mojibake() -> None:
    assert is_unreadable("老人坐在".encode().decode("gbk"))
    assert is_unreadable("\ufffd\ufffd".encode().decode("gbk") * 3 + " 2024")


def test_good_texts_are_left_alone() -> None:
    assert not find_unreadable(pa.array(GOOD, pa.large_string())).any()


def test_characters_that_were_lost_are_counted_per_version_and_language(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [f"{FRENCH} {FRENCH[::-1]} Un caf\ufffd, deux caf\ufffds.", f"{CHINESE}{CHINESE[::-1]}水\ufffd。", CHINESE * 2 + FRENCH]
    settings = text_settings(tmp_path, **{"quality.max_replacement_ratio": 1.0})
    manifest = commit_records(tmp_path, [(None, json.dumps({"text": text}).encode()) for text in texts], settings)
    assert manifest.statistics is not None
    assert {name: sums.replaced for name, sums in manifest.statistics.total.languages.items() if sums.replaced} == {"fr": 2, "zh": 1}
    assert verify(tmp_path).problems == []
    assert main(["datasets", "show", "--root", str(tmp_path)]) == 0
    assert "characters lost in decoding" in capsys.readouterr().out


def test_a_document_of_mojibake_is_rejected_with_its_reason_and_what_can_be_mended_is_kept() -> None:
    bad = (CHINESE * 4).encode().decode("gb18030", "replace")
    mended = (FRENCH * 4).encode().decode("latin-1")
    values: list[tuple[bytes | None, bytes | None]] = [(None, json.dumps({"text": text}).encode()) for text in (bad, mended, CHINESE * 4)]
    cleaned = clean(records_table(values), Settings())
    assert cleaned["reason"].to_pylist()[0] == MOJIBAKE
    assert cleaned["reason"].to_pylist()[1:] != [MOJIBAKE, MOJIBAKE]
    assert cleaned["text"].to_pylist()[0] is None
    assert cleaned["text"].to_pylist()[1:] == [FRENCH * 4, CHINESE * 4]
