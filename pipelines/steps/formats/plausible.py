"""How much of a decoded text cannot be meant: bytes read in the wrong character set give rare ideographs, marks within words, letters of several
scripts side by side, capitals behind small letters, and control characters.

Invariant: 0 for ASCII text without control characters, whatever it says; texts of the languages that were tried (benchmarks/charset.py) stay below
MAX_NONSENSE, and what other sets make of them is above it. Source of "common": the first levels of GB 2312, Big5 and JIS X 0208, and the syllables
of KS X 1001, which were chosen by frequency; Python's codecs know them.
Cost: at most SAMPLE_CHARS of a text are looked at (50 us); the table 64 KB and 20 ms, once per process.
"""

import functools
import re
import unicodedata
from typing import Any

import numpy as np
import numpy.typing as npt

SAMPLE_CHARS = 4096
MAX_NONSENSE = 0.2
"""Share of the characters beyond ASCII. Of 4,000 good texts in 12 languages the worst has 0.09."""
_PLAIN, _BAD, _MARK, _LOWER, _UPPER, _OTHER, _HAN, _HALF_WIDTH = range(8)
_KIND = 0x0F
_FAMILIAR_BIT = 0x80
_COMMON = {"gb2312": (0x10, range(0xB0, 0xD8)), "big5": (0x20, range(0xA4, 0xC7)), "euc_jp": (0x40, range(0xB0, 0xD0))}
"""The bit of each first level, and the lead bytes of its ideographs."""
_FAMILIAR = frozenset(
    "的一是不了在人有我他这個个们們中来來上大为為和国國地到以说說时時要就出会會可也你对對生能而子那得于於着下自之年过過发發后後作里裡用道行所然家种種事成方多"
    "经經么麼去法学學如都同现現当當没沒动動面起看定天分还還进進好小部其些主样樣理心本前开開但因只从從想实實日者意无無与與长長把机機十第公使性知全三又关關"
    "点點正业業外将將两兩高间間由问問很最重并物手应應文体體新名水数數入月今目何言思見作回業員社地場力気内定品発表関"
    "이다는을에의가고하지로기사리한은도를아그라나서대인시자어정해일들있수만보부주장전스것여상조원과제"
)
"""Of Chinese texts two characters in five are among these, of Korean ones as many; of level-one characters drawn at random one in twenty."""
_FAMILIAR_SHARE = 0.08
_UNFAMILIAR = 0.15
"""What a text is worse by that has fewer of them: any other set that makes sense is better, but a list of names is no nonsense."""
_MIN_WIDE = 20
_FOREIGN = re.compile(r"[^\x00-\x7f]")
_SCRIPTS = ((0x0000, 0x0250), (0x0370, 0x0400), (0x0400, 0x0530), (0x0530, 0x0590), (0x0590, 0x0600), (0x0600, 0x0780), (0x0E00, 0x0E80))
"""Alphabets that single-byte sets have."""


@functools.cache
def _table() -> npt.NDArray[np.uint8]:
    """By code point of the basic plane: what it is, and which first levels have it, uint8 [0x10000]."""
    table = np.full(0x10000, _OTHER, np.uint8)
    for code in range(0x3100):
        table[code] = _kind(chr(code))
    table[0xD800:0xF900] = table[0xFFF0:0xFFFC] = table[0xFFFD:] = _BAD
    table[0x3400:0xA000] = table[0xF900:0xFB00] = _HAN
    table[0xFF61:0xFFA0] = _HALF_WIDTH
    for name, (bit, leads) in _COMMON.items():
        pairs = bytes(byte for lead in leads for trail in range(0x40, 0xFF) for byte in (lead, trail))
        common = {character for at in range(0, len(pairs), 2) for character in pairs[at : at + 2].decode(name, "ignore") if ord(character) >= 0x3400}
        table[[ord(character) for character in common]] |= bit
    table[[ord(character) for character in _FAMILIAR]] |= _FAMILIAR_BIT
    table[0x3041:0x30FF] |= _FAMILIAR_BIT
    table.flags.writeable = False
    return table


_IN_WORDS = frozenset("’‘·‐‑–—…•°™®©×′ʼ״׳")
"""Marks that may stand between two letters."""
_FEWEST = 5
"""A text with fewer characters beyond ASCII is judged as if it had so many, the others good."""


def _kind(character: str) -> int:
    if character.isascii():
        return _PLAIN if character in "\t\n\r\f" or character.isprintable() else _BAD
    category = unicodedata.category(character)
    if category in ("Cc", "Cn", "Co"):
        return _BAD
    if category in ("Lu", "Lt"):
        return _UPPER
    if category == "Ll":
        return _LOWER
    if character in _IN_WORDS:
        return _PLAIN
    return _MARK if ord(character) < 0x2600 and category[0] in "SPN" else _OTHER


def nonsense(text: str) -> float:
    """The share of the characters beyond ASCII, and of control characters, that cannot be meant, 0 to 1; and a little more for unusual texts."""
    if text.isascii() and text.isprintable():
        return 0.0
    foreign = _FOREIGN.search(text)
    start = max(0, foreign.start() - 16) if foreign else 0
    sample = text[start : start + SAMPLE_CHARS]
    codes = np.frombuffer(sample.encode("utf-32-le", "replace"), np.uint32)
    entries = _table()[np.minimum(codes, 0xFFFF)]
    entries[codes >= 0x10000] = np.where(codes[codes >= 0x10000] < 0x20000, _OTHER, _HAN)
    counted = (codes >= 0x80) | (entries == _BAD)
    num_counted = int(np.count_nonzero(counted))
    if not num_counted:
        return 0.0
    kinds = entries & np.uint8(_KIND)
    bad = (kinds == _BAD) | (kinds == _HALF_WIDTH) | _rare(entries, kinds) | _foreign_to_hangul(codes, kinds) | _misplaced(codes, kinds)
    return float(np.count_nonzero(bad & counted)) / max(num_counted, _FEWEST) + (_UNFAMILIAR if _is_unfamiliar(codes, entries) else 0.0)


def _rare(entries: npt.NDArray[np.uint8], kinds: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Ideographs outside the first level that has most of the text's ideographs: no language mixes them."""
    is_han = kinds == _HAN
    bits = max((bit for bit, _ in _COMMON.values()), key=lambda bit: int(np.count_nonzero(is_han & (entries & bit != 0))))
    return np.asarray(is_han & (entries & bits == 0))


def _is_unfamiliar(codes: npt.NDArray[np.uint32], entries: npt.NDArray[np.uint8]) -> bool:
    is_wide = (codes >= 0x3041) & (codes < 0xD7A4)
    num_wide = int(np.count_nonzero(is_wide))
    return num_wide >= _MIN_WIDE and int(np.count_nonzero(is_wide & (entries & _FAMILIAR_BIT != 0))) < _FAMILIAR_SHARE * num_wide


def _foreign_to_hangul(codes: npt.NDArray[np.uint32], kinds: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Korean has few ideographs, and no other language has Hangul: of a text with much of both, what is less."""
    is_hangul, is_han = (codes >= 0xAC00) & (codes < 0xD7A4), kinds == _HAN
    num_hangul, num_han = int(np.count_nonzero(is_hangul)), int(np.count_nonzero(is_han))
    less, more = (is_hangul, num_han) if num_hangul < num_han else (is_han, num_hangul)
    return np.asarray(less & (10 * min(num_hangul, num_han) > more))


def _misplaced(codes: npt.NDArray[np.uint32], kinds: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Marks and letters beyond ASCII that stand where no text has them."""
    is_ascii_letter = ((codes | 0x20) >= 0x61) & ((codes | 0x20) <= 0x7A) & (codes < 0x80)
    is_upper = (kinds == _UPPER) | (is_ascii_letter & (codes < 0x5B))
    is_lower = (kinds == _LOWER) | (is_ascii_letter & (codes > 0x60))
    is_letter = is_upper | is_lower | (kinds == _OTHER)
    is_foreign_letter = (is_upper | is_lower) & (codes >= 0x80)
    scripts = np.zeros(len(codes), np.uint8)
    for number, (first, last) in enumerate(_SCRIPTS, start=1):
        scripts[(codes >= first) & (codes < last)] = number
    before, after = _shifted(is_letter, 1), _shifted(is_letter, -1)
    mark_in_word = (kinds == _MARK) & before & after
    capital_in_word = is_foreign_letter & _capitals_behind_small(is_upper, is_lower)
    behind = _shifted(scripts, 1)
    mixed = is_foreign_letter & before & (behind != scripts) & (behind != 0) & (scripts != 0)
    latin_run = is_foreign_letter & (scripts == 1) & _shifted((codes >= 0x80) & (codes < 0x250), 1) & _shifted((codes >= 0x80) & (codes < 0x250), -1)
    is_small = is_lower & (codes < 0x80)
    wide_in_word = (codes >= 0x2E80) & _shifted(is_small, 1) & _shifted(is_small, -1)
    return np.asarray(mark_in_word | capital_in_word | mixed | latin_run | wide_in_word)


def _capitals_behind_small(is_upper: npt.NDArray[np.bool_], is_lower: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """All capitals of a run that begins behind a small letter: KOI8-R and Windows-1251 have each other's small letters where capitals are."""
    starts = is_upper & ~_shifted(is_upper, 1)
    run = np.maximum.accumulate(np.where(starts, np.arange(len(starts)), 0))  # where the newest run began
    return np.asarray(is_upper & (starts & _shifted(is_lower, 1))[run])


def _shifted(values: npt.NDArray[Any], by: int) -> npt.NDArray[Any]:
    """The neighbour's value; zero beyond the ends."""
    moved = np.zeros_like(values)
    if by > 0:
        moved[by:] = values[:-by]
    else:
        moved[:by] = values[-by:]
    return moved
