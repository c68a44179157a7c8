"""Where merges end: the regular expressions that byte-level BPE tokenizers split text with, as scanners over UTF-8.

Two families cover what is in use: that of GPT-2, and that of GPT-4, which Llama 3, Qwen and our own tokenizer vary (which characters make a
word, how many digits stay together, whether Chinese and Japanese runs stand alone).

Invariant: for every text the pieces are those of the expression in the tokenizers package. The character classes are not taken from
Python's Unicode tables but asked of that package's own regular-expression engine, so that both always mean the same version of Unicode.
Cost: about 9 ns per byte; the classes take 0.5 s, once per process and pattern.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from pipelines.text.characters import code_point_at

CJK = r"\p{Han}\p{Hiragana}\p{Katakana}\u30FC"
WORDS = (
    r"'(?i:[sdmt]|ll|ve|re)"  # English contractions
    rf"|[{CJK}]+"
    rf"|[^\r\n\p{{L}}\p{{N}}]?(?:(?![{CJK}])[\p{{L}}\p{{M}}])+"  # letters and marks of other scripts, with the space before them
    r"|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Regular expression (Oniguruma) of what merges may not cross; it matches every character of every text."""
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What ``ByteLevel`` with ``use_regex`` splits by."""
_GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
    r"%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

RUN, WORD, NUMBER, OTHER, SPACE, NEWLINE, LETTER, TAIL, UNASSIGNED = (1 << bit for bit in range(9))
"""Classes: what stands in runs of its own, what words are made of, ``\\p{N}``, ``[^\\s\\p{L}\\p{N}]``, ``\\s``, line ends, ``\\p{L}``, what ends a
contraction, and code points that Unicode has not assigned yet (two engines may disagree on them)."""
_RUNS = RUN | WORD | NUMBER | OTHER
"""In the order in which the expressions try them."""
_ASKED_TOGETHER = 2048


class Family(NamedTuple):
    """How a pattern differs from the others of its kind."""

    is_gpt2: bool
    max_digits: int
    word: str
    """Character set of a word's characters."""
    run: str
    """Character set of what stands alone in runs; empty for none."""


FAMILIES = {
    WORDS: Family(False, 3, rf"(?![{CJK}])[\p{{L}}\p{{M}}]", f"[{CJK}]"),
    GPT2: Family(True, 0, r"\p{L}", ""),
    _GPT4 % r"\p{N}{1,3}": Family(False, 3, r"\p{L}", ""),
    _GPT4 % r"\p{N}": Family(False, 1, r"\p{L}", ""),
}
"""The patterns that have a scanner."""


class Scanner(NamedTuple):
    """What the kernels need to know of a pattern."""

    classes: npt.NDArray[np.int32]
    """By code point, int32 [0x110000]."""
    is_gpt2: bool
    max_digits: int


@functools.cache
def scanner_of(pattern: str) -> Scanner:
    """The scanner of one of FAMILIES."""
    family = FAMILIES[pattern]
    sets = {
        **{RUN: family.run, WORD: family.word, NUMBER: r"\p{N}", OTHER: r"[^\s\p{L}\p{N}]", SPACE: r"\s", NEWLINE: r"[\r\n]"},
        **{LETTER: r"\p{L}", TAIL: "[sdmt]" if family.is_gpt2 else "(?i:[sdmt])", UNASSIGNED: r"\p{Cn}"},
    }
    classes = np.zeros(0x110000, np.int32)
    for bit, characters in sets.items():
        if characters:
            classes[_matched(characters)] |= bit
    classes.flags.writeable = False
    return Scanner(classes, family.is_gpt2, family.max_digits)


def _matched(characters: str) -> npt.NDArray[np.bool_]:
    """Which code points one character set matches, bool [0x110000]; surrogates match nothing."""
    others = Split(Regex(f"(?:{characters})+"), "removed")
    matched = np.zeros(0x110000, bool)
    for first in range(0, 0x110000, _ASKED_TOGETHER):
        if 0xD800 <= first < 0xE000:
            continue
        # Planes 4 to 13 are empty and 15 and 16 private: one code point of a block answers for all of it.
        is_uniform = 0x40000 <= first < 0xE0000 or first >= 0xF0000
        behind = first + (1 if is_uniform else _ASKED_TOGETHER)
        block = matched[first : first + _ASKED_TOGETHER]
        block[:] = True
        for _, (start, end) in others.pre_tokenize_str("".join(map(chr, range(first, behind)))):
            block[start : _ASKED_TOGETHER if is_uniform else end] = False
    return matched


@njit(cache=True, nogil=True, inline="always")
def piece_end(data: Any, at: Any, stop: Any, classes: Any, is_gpt2: Any, max_digits: Any) -> Any:
    """Byte behind the piece that begins at byte ``at`` of the valid UTF-8 ``data[:stop]``; the last three are a Scanner's.

    Inlined, with the scanner's parts as arguments, and with one loop for all runs: a call that passes arrays costs as much as five bytes.
    """
    code, size = code_point_at(data, at)
    kind = classes[code]
    behind = at + size
    if code == 0x27:
        end = _contraction_end(data, at, stop, classes, is_gpt2)
        if end:
            return end
    next_code, next_size = code_point_at(data, behind) if behind < stop else (0x0A, 0)
    next_kind = classes[next_code]
    if is_gpt2:
        begins_run = code == 0x20 and not next_kind & SPACE
    else:
        begins_run = next_kind & WORD and not kind & (NEWLINE | LETTER | NUMBER | RUN | WORD)
        begins_run = begins_run or (code == 0x20 and next_kind & OTHER)
    if kind & SPACE and not begins_run:
        return _space_end(data, at, stop, classes, is_gpt2)
    if begins_run:
        kind = next_kind & ~RUN
        behind += next_size
    wanted = kind & _RUNS
    wanted &= -wanted  # of several, the first that the expression tries
    num_left = max_digits - 1 if wanted == NUMBER and max_digits else stop
    while behind < stop and num_left > 0:
        code, size = code_point_at(data, behind)
        if not classes[code] & wanted:
            break
        behind += size
        num_left -= 1
    if wanted == OTHER and not is_gpt2:
        while behind < stop and (data[behind] == 0x0A or data[behind] == 0x0D):
            behind += 1
    return behind


@njit(cache=True, nogil=True)
def _contraction_end(data: Any, at: Any, stop: Any, classes: Any, is_gpt2: Any) -> Any:
    """Byte behind ``'s 't 'm 'd 'll 've 're``; 0 if there is none."""
    if at + 1 == stop:
        return 0
    code, size = code_point_at(data, at + 1)
    if classes[code] & TAIL:
        return at + 1 + size
    if at + 2 == stop:
        return 0
    fold = 0x00 if is_gpt2 else 0x20
    first, second = data[at + 1] | fold, data[at + 2] | fold
    is_pair = (first == 0x6C and second == 0x6C) or (first in (0x76, 0x72) and second == 0x65)
    return at + 3 if is_pair else 0


@njit(cache=True, nogil=True)
def _space_end(data: Any, at: Any, stop: Any, classes: Any, is_gpt2: Any) -> Any:
    """White space up to its last line end; without one, all but the last character, which belongs to what follows; at the end, all."""
    start = last = at
    behind_newline = 0
    while at < stop:
        code, size = code_point_at(data, at)
        if not classes[code] & SPACE:
            break
        last = at
        at += size
        if classes[code] & NEWLINE and not is_gpt2:
            behind_newline = at
    if behind_newline:
        return behind_newline
    return at if at == stop or last == start else last
