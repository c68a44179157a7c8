"""Rejects as ``mojibake`` texts that were decoded in the wrong character set and cannot be repaired with certainty.

UTF-8 that was read as Windows-1252 is repaired line by line (mojibake.py). Other mistakes are not repaired, because bytes are often lost and a wrong
guess would destroy the text: UTF-8 that was read in a Chinese, Japanese or Korean set (``鑰佷汉鍧愬湪``, ``縺薙ｓ縺ｫ縺｡縺ｯ``), these sets read as
Latin-1 (``ÄãºÃÊÀ½ç``), and U+FFFD that went through GBK (``锟斤拷``).

A regular expression finds suspects. A suspect is rejected iff reversing the mistake gives a text that makes sense (plausible.py), or if no other
explanation is left. Reversing the mistake on a correct text does not give valid UTF-8: of 80,382 texts in 12 languages none is rejected.
Cost: one regular expression over all texts (500 MB/s), 100 us for each suspect (one of the good texts in 25).
"""

import re
from itertools import product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from pipelines.steps.formats.plausible import MAX_NONSENSE, SAMPLE_CHARS, nonsense
from pipelines.steps.mojibake import SIGNATURE

MOJIBAKE = "mojibake"
_SETS = ("gb18030", "cp932", "big5hkscs", "cp949")
LOST = "锟斤拷"
"""Two U+FFFD in UTF-8, read as GBK."""
_MAX_LOST = 0.05
"""Largest share of a text's characters that may belong to LOST: a text may write about this mistake."""
_MIN_GOOD = 4
_MAX_BAD = 1.0
"""Most characters that may fail to convert back for each one that converts: some bytes were lost. In correct texts a hundred fail."""
_MIN_LATIN1 = 0.4
"""Smallest share of Latin-1's letters and signs beyond ASCII in such mojibake. A manual that lists accented letters has fewer."""
_BEFORE_BYTES = 32
_SCREENED_CHARS = 160
_WIDE = re.compile("[\u2010-\u2027\u2e80-\ud7a3\uf900-\ufaff\uff00-\uffef]")
_FOREIGN = re.compile(r"[^\x00-\x7f]")
_LATIN1 = re.compile("[\u00a1-\u00ff]")


def _first_halves() -> str:
    """The first two bytes of a Chinese or Japanese character in UTF-8, read in other sets: rare characters in all of them."""
    pairs = [bytes(pair).decode(name, "ignore") for name in _SETS for pair in product(range(0xE3, 0xEE), range(0x80, 0xC0))]
    return "".join(sorted({character for character in pairs if len(character) == 1 and ord(character) >= 0x2E80}))


_HALF = f"[{_first_halves()}]"
SUSPECT = rf"{_HALF}[^\x00-\x7f]{{2}}{_HALF}[^\x00-\x7f]{{2}}|{LOST}|[\u00a1-\u00ff]{{6}}|{SIGNATURE}"
"""Regular expression (the common subset of Python's and Rust's) for what correct text hardly ever contains."""


class _TakenBack(NamedTuple):
    """The text encoded in another set and read as UTF-8."""

    text: str
    num_bad: int


def find_unreadable(texts: pa.Array) -> npt.NDArray[np.bool_]:
    """Which texts of a ``large_string`` array are mojibake, judged by SAMPLE_CHARS characters from the first suspicious one: bool [n]."""
    series = pl.from_arrow(texts)
    assert isinstance(series, pl.Series)
    found = np.zeros(len(texts), bool)
    suspects = series.str.find(SUSPECT)
    for row in suspects.is_not_null().arg_true().to_list():
        found[row] = _is_unreadable(str(series[row]), int(suspects[row]))
    return found


def _is_unreadable(text: str, first_byte: int) -> bool:
    if len(LOST) * text.count(LOST) > _MAX_LOST * len(text):
        return True
    data = text.encode()[max(0, first_byte - _BEFORE_BYTES) : first_byte + 4 * SAMPLE_CHARS]
    sample = data.decode("utf-8", "ignore")[:SAMPLE_CHARS]
    likely = [name for name in (*_SETS, "cp1252") if _is_whole(_taken_back(sample[:_SCREENED_CHARS], name))]
    return any(_makes_sense(_taken_back(sample, name)) for name in likely) or _was_read_as_latin1(sample)


def _taken_back(sample: str, name: str) -> _TakenBack:
    read = sample.encode(name, "replace").decode("utf-8", "replace")
    return _TakenBack(read.replace("\ufffd", ""), read.count("\ufffd"))


def _is_whole(taken: _TakenBack) -> bool:
    num_foreign = len(_FOREIGN.findall(taken.text))
    num_good = len(_WIDE.findall(taken.text))
    return num_good >= max(_MIN_GOOD, 0.8 * num_foreign) and taken.num_bad <= _MAX_BAD * num_good


def _makes_sense(taken: _TakenBack) -> bool:
    return _is_whole(taken) and nonsense(taken.text) <= MAX_NONSENSE


def _was_read_as_latin1(sample: str) -> bool:
    """Whether the text consists of the bytes of a Chinese, Japanese or Korean text, one character for each byte."""
    if len(_LATIN1.findall(sample)) < _MIN_LATIN1 * len(sample) or nonsense(sample) <= MAX_NONSENSE:
        return False
    data = sample.encode("cp1252", "replace")
    for name in _SETS:
        read = data.decode(name, "replace")
        if _makes_sense(_TakenBack(read.replace("\ufffd", ""), read.count("\ufffd"))):
            return True
    return False
