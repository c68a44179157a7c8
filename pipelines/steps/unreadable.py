"""Texts that are somebody's decoding mistake and cannot be mended for certain: they are rejected as ``mojibake``.

What was UTF-8 and was read as Windows-1252 is mended line by line (mojibake.py). Not mended, because a pair of bytes is often lost on the way and a
wrong guess would destroy what somebody wrote: UTF-8 that was read in a Chinese, Japanese or Korean set (``鑰佷汉鍧愬湪``, ``縺薙ｓ縺ｫ縺｡縺ｯ``), those
sets read as Latin-1 (``ÄãºÃÊÀ½ç``), and U+FFFD that went through GBK (``锟斤拷``).

A text is suspected by a regular expression, and rejected iff taking the mistake back gives a text that makes sense (plausible.py), or nothing else
explains it. Invariant: a text of a person's own is never rejected: taken back, it is no UTF-8.
Cost: one regular expression over all texts, some 100 us for each suspect.
"""

import re
from itertools import product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from pipelines.steps.formats.plausible import MAX_NONSENSE, SAMPLE_CHARS, nonsense

MOJIBAKE = "mojibake"
_SETS = ("gb18030", "cp932", "big5hkscs", "cp949")
LOST = "锟斤拷"
"""Two U+FFFD in UTF-8, read as GBK."""
_MAX_LOST = 0.05
"""Share of the characters that may be of LOST: a text may speak of it."""
_MIN_GOOD = 4
_MAX_BAD = 0.2
"""Characters that came to nothing for each one that was taken back: a byte in a hundred is lost on the way, of other texts most are."""
_WIDE = re.compile("[\u2010-\u2027\u2e80-\ud7a3\uf900-\ufaff\uff00-\uffef]")
_FOREIGN = re.compile(r"[^\x00-\x7f]")


def _first_halves() -> str:
    """What the first two bytes of a Chinese or Japanese character's UTF-8 are in other sets: rare characters in all of them."""
    pairs = [bytes(pair).decode(name, "ignore") for name in _SETS for pair in product(range(0xE3, 0xEA), range(0x80, 0xC0))]
    return "".join(sorted({character for character in pairs if len(character) == 1 and ord(character) >= 0x2E80}))


_HALF = f"[{_first_halves()}]"
SUSPECT = rf"{_HALF}[^\x00-\x7f]{{0,3}}{_HALF}|{LOST}|[\u00a1-\u00ff]{{6}}"
"""Regular expression (the common subset of Python's and Rust's) of what good text hardly ever contains."""
_SUSPECT = re.compile(SUSPECT)


class _TakenBack(NamedTuple):
    """What a text is if the bytes of its characters in another set are read as UTF-8."""

    text: str
    num_bad: int


def find_unreadable(texts: pa.Array) -> npt.NDArray[np.bool_]:
    """Which texts of a ``large_string`` array are mojibake, one flag each."""
    series = pl.from_arrow(texts)
    assert isinstance(series, pl.Series)
    found = np.zeros(len(texts), bool)
    for row in series.str.contains(SUSPECT).fill_null(False).arg_true().to_list():
        found[row] = is_unreadable(str(series[row]))
    return found


def is_unreadable(text: str) -> bool:
    """Whether the text is mojibake, as far as its first SAMPLE_CHARS characters from the first suspicious one on tell."""
    suspect = _SUSPECT.search(text)
    if suspect is None:
        return False
    if len(LOST) * text.count(LOST) > _MAX_LOST * len(text):
        return True
    sample = text[max(0, suspect.start() - 16) :][:SAMPLE_CHARS]
    return any(_makes_sense(_taken_back(sample, name)) for name in _SETS) or _was_read_as_latin1(sample)


def _taken_back(sample: str, name: str) -> _TakenBack:
    read = sample.encode(name, "replace").decode("utf-8", "replace")
    return _TakenBack(read.replace("\ufffd", ""), read.count("\ufffd"))


def _makes_sense(taken: _TakenBack) -> bool:
    num_foreign = len(_FOREIGN.findall(taken.text))
    num_good = len(_WIDE.findall(taken.text))
    is_whole = num_good >= max(_MIN_GOOD, 0.8 * num_foreign) and taken.num_bad <= _MAX_BAD * num_good
    return is_whole and nonsense(taken.text) <= MAX_NONSENSE


def _was_read_as_latin1(sample: str) -> bool:
    """Whether what stands there are the bytes of a Chinese, Japanese or Korean text, one character each."""
    if nonsense(sample) <= MAX_NONSENSE:
        return False
    data = sample.encode("cp1252", "replace")
    for name in _SETS:
        read = data.decode(name, "replace")
        if _makes_sense(_TakenBack(read.replace("\ufffd", ""), read.count("\ufffd"))):
            return True
    return False
