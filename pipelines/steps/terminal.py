"""Text that was meant for a terminal or a line printer: overstruck letters (``_\\bx``, ``x\\bx``: nroff's underline and bold) and escape
sequences (ECMA-48: colours, cursor). What a reader saw is kept, as by ``col -b``: a backspace takes the character before it away.

Invariant: the result holds no backspace and no escape character. Cost: one search over all texts, Python for those that have some.
"""

import re

import polars as pl
import pyarrow as pa

_SUSPECT = "[\x08\x1b]"
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b\n]{0,2000}(?:\x07|\x1b\\)|[ -/]*[0-Z\\^-~]?)")


def as_seen(texts: pa.Array) -> pa.Array:
    """Each text of a ``large_string`` array as a terminal would have shown it."""
    series = pl.from_arrow(texts)
    assert isinstance(series, pl.Series)
    rows = series.str.contains(_SUSPECT).arg_true()
    if not len(rows):
        return texts
    seen = [_plain(text) for text in series.gather(rows).to_list()]
    return series.scatter(rows, seen).to_arrow().cast(pa.large_string())


def _plain(text: str) -> str:
    shown: list[str] = []
    for character in _ESCAPE.sub("", text):
        if character != "\b":
            shown.append(character)
        elif shown and shown[-1] != "\n":
            shown.pop()
    return "".join(shown)
