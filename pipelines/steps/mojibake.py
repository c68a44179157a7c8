"""Mojibake: UTF-8 that was read as Windows-1252 or Latin-1 somewhere upstream (``cafÃ©``, ``donâ€™t``, ``ä¸­æ–‡``).

A line is repaired iff it shows the signature of it *and* all of it, taken back to bytes, is valid UTF-8: a line with one ordinary
accented letter is not, so good French, Portuguese or Vietnamese is left alone. The bytes of a repaired line are fewer characters.
The idea of working on suspects only is ftfy's (Speer 2019). Cost: one regular expression over all texts, Python for the suspects alone.
"""

import re

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa


def _byte_values() -> dict[int, int]:
    """Code point -> byte, for Windows-1252 with its five holes read as Latin-1, and for Latin-1 itself."""
    values = {code: code for code in range(256)}
    for byte in range(0x80, 0xA0):
        character = bytes([byte]).decode("cp1252", errors="ignore")
        if character:
            values[ord(character)] = byte
    return values


_BYTES = _byte_values()
CONTINUATIONS = frozenset(code for code, byte in _BYTES.items() if 0x80 <= byte <= 0xBF)
"""Code points that the second and later bytes of a sequence were read as."""
LEADS = frozenset({0xC2, 0xC3, *range(0xCE, 0xD2), 0xE2, *range(0xE3, 0xF1)})
"""Code points that SIGNATURE's sequences begin with; each is followed by one of CONTINUATIONS."""
_CONTINUATION = "".join(re.escape(chr(code)) for code, byte in sorted(_BYTES.items()) if 0x80 <= byte <= 0xBF)
# The leads of Latin letters and Latin-1 signs, of punctuation, of Cyrillic in pairs, of CJK, and of emoji, each with all its continuations
SIGNATURE = (
    f"[\u00c2\u00c3][{_CONTINUATION}]"
    f"|\u00e2[\u20ac\u201a\u201e\u2020\u0080\u0082\u0084\u0086][{_CONTINUATION}]"
    f"|(?:[\u00ce\u00cf\u00d0\u00d1][{_CONTINUATION}]){{2}}"
    f"|[\u00e3-\u00ef][{_CONTINUATION}]{{2}}"
    f"|\u00f0[\u0178\u009f][{_CONTINUATION}]{{2}}"
)
"""Regular expression (the common subset of Python's and Rust's) of what good text hardly ever contains."""
_SIGNATURE = re.compile(SIGNATURE)


def find_mojibake(texts: pa.Array) -> tuple[npt.NDArray[np.int64], pa.Array]:
    """Which texts of a ``large_string`` array can be repaired (row numbers, ascending), and those texts, repaired."""
    series = pl.from_arrow(texts)
    assert isinstance(series, pl.Series)
    suspects = series.str.contains(SIGNATURE).arg_true().to_numpy().astype(np.int64)
    repaired = [(row, after) for row in suspects.tolist() if (after := repair(before := str(series[row]))) != before]
    rows = np.array([row for row, _ in repaired], np.int64)
    return rows, pa.array([text for _, text in repaired], pa.large_string())


def repair(text: str) -> str:
    """Undo mojibake line by line, also where it happened several times over; all other text is returned as it is."""
    return "\n".join(_repair_line(line) if _SIGNATURE.search(line) else line for line in text.split("\n"))


def _repair_line(line: str) -> str:
    while _SIGNATURE.search(line):
        try:
            line = bytes(_BYTES[code] for code in map(ord, line)).decode("utf-8")
        except (KeyError, UnicodeDecodeError):
            return line
    return line
