"""A fast engine that is never trusted: the same ids as the tokenizers package, or the tokenizers package itself.

Invariant: an engine encodes only after it has agreed on every probe (PROBES: the traps of Unicode, white space, digits, special tokens), and
while it works, a sample of the documents is encoded by both. The sample is a function of the documents' bytes, so it is the same on every
machine and in every attempt; documents of more than a megabyte are always in it, with an excerpt. At the first difference, or if the engine
fails, the whole batch is encoded again by the tokenizers package, a warning names the document, and the engine is not used again in this process.

Cost: the share ``tokenizer.check_fraction`` of what the tokenizers package takes, 3 MB/s; 0.002 costs about four percent.
"""

import itertools
import logging
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import xxhash

from pipelines.text.buffers import utf8_views
from pipelines.tokenizers.engine.fast import Engine, Unsupported
from pipelines.tokenizers.engine.reference import Reference, Tokens

MAX_CHECKED_BYTES = 1 << 20
EXCERPT_BYTES = 1 << 16
PROBES = (
    "",
    " ",
    "The old mill's wheel hasn't turned; they'll say it's 'SHE'LL' WE'VE 'Re 'ſ don’t 'tis rock'n'roll's",
    "这座老磨坊立在河边，它的水轮已经一百年没有转动了。使用Python3.11编写 第〇章 ⺀⻳ ⼀ 々",
    "古い水車小屋は、川のほとりにコーヒー店の隣ﾊﾝｶｸ か\u3099 ㋐㍻",
    "물레방아는 강가에 서 있다. \u1112\u1161\u11ab 한글",
    "Мельница стоит у реки; Ο μύλος ΣΊΣΥΦΟΣ; הטחנה הישנה; الطاحونة القديمة می\u200cخواهم; नदी के किनारे; โรงสีเก่า; დაბა",
    "cafe\u0301 naïve \u0301start .\u0301mark a\u0323\u0307b Ångström ﬁ ſ K İstanbul ǅ",
    "😀😃 👨\u200d👩\u200d👧 🏴\U000e0067\U000e0062\U000e007f ❤\ufe0f 🇨🇳 1\ufe0f\u20e3 🫨\U0001fae9",
    "0 12 123 1234 1234567 ٣٤٥٦ १२३४ ½¾Ⅷ② 3.14e-10 0xFF 1,000,000",
    "def main(x: int) -> int:\n\treturn {'a': [1, 2]}[\"a\"] ** x  # ok\r\n\r\n\n    if x != y: pass\n\n\n\n",
    "  two   three    \t tab\t\ttabs \n \n  \n\n x\r\ny\rz \u00a0nbsp\u00a0\u00a0 \u3000全角\u3000 \u2028ls\u2029ps\x85nel\x0b\x0c end   ",
    "<|endoftext|> <|pad|> <|im_start|>user\n</s> <s> <unk> [INST] <0x0A> Ġ Ċ ▁",
    "\x00\x01\x07\x7f\ufffd\ufffe\ufeff\u200b\u202e\ue000\U000f0000\U0010fffd\U000e0001\u0378",
    "-------- ======== ******** ........ !!!??? ((())) <<>> ``` $$ ~~ ——…… 「」『』【】《》、。！？",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" * 3 + "Zm9vYmFyYmF6cXV4" * 12 + "水" * 300 + "=" * 100,
    "https://example.org/a/b?c=d&e=%E6%B0%B4#f user@example.org C:\\path\\file.txt ~/x_y-z.tar.gz CamelCaseHTTPServer snake_case_name",
)
"""What every engine must encode as the tokenizers package does before it is used."""

_log = logging.getLogger(__name__)
_refused: set[str] = set()
"""Tokenizers whose engine has failed in this process."""


class CheckedEngine:
    """An engine and its reference. Not to be shared by threads."""

    def __init__(self, engine: Engine, reference: Reference, name: str, check_fraction: float) -> None:
        self._engine = engine
        self._reference = reference
        self._name = name
        self._below = int(check_fraction * 2.0**64)

    def encode(self, texts: pa.Array, dtype: Any, doc_ids: pa.Array | None = None) -> Tokens | None:
        """Ids of each text; None if the two engines differ, after which nobody should ask again."""
        try:
            tokens = self._engine.encode(texts, dtype)
        except Unsupported as error:
            _refused.add(self._name)
            _log.warning("tokenizer %s: the fast engine failed: %s; this process uses the tokenizers package now (slower)", self._name[:12], error)
            return None
        for row in self._sample(texts).tolist():
            if not self._agrees(texts, tokens, row):
                self._refuse(texts, row, doc_ids)
                return None
        return self._with_searched(texts, tokens, dtype)

    def _sample(self, texts: pa.Array) -> npt.NDArray[np.int64]:
        data, offsets = utf8_views(texts)
        view, bounds = data.data, offsets.tolist()
        hashes = [xxhash.xxh3_64_intdigest(view[start:end]) for start, end in itertools.pairwise(bounds)]
        is_chosen = np.fromiter((value < self._below for value in hashes), bool, len(hashes))
        return np.flatnonzero(is_chosen | (np.diff(offsets) > MAX_CHECKED_BYTES))

    def _agrees(self, texts: pa.Array, tokens: Tokens, row: int) -> bool:
        text = texts[row].as_py() or ""
        if any(token in text for token in self._engine.searched):
            return True  # the reference will encode it anyway
        if len(text.encode()) <= MAX_CHECKED_BYTES:
            return np.array_equal(self._reference.encode(pa.array([text]), np.uint32).ids, tokens.of(row))
        excerpt = pa.array([text.encode()[:EXCERPT_BYTES].decode("utf-8", "ignore")])
        return np.array_equal(self._reference.encode(excerpt, np.uint32).ids, self._engine.encode(excerpt, np.uint32).ids)

    def _refuse(self, texts: pa.Array, row: int, doc_ids: pa.Array | None) -> None:
        _refused.add(self._name)
        document = doc_ids[row].as_py() if doc_ids is not None else f"xxh3 {xxhash.xxh3_128_hexdigest((texts[row].as_py() or '').encode())}"
        _log.warning(
            "tokenizer %s: the fast engine and the tokenizers package encode document %s differently; this batch is encoded again and the rest of "
            "this process uses the tokenizers package (slower). Please report the document",
            self._name[:12],
            document,
        )

    def _with_searched(self, texts: pa.Array, tokens: Tokens, dtype: Any) -> Tokens:
        """Texts that hold a token that is searched for before splitting are the reference's."""
        rows = self._searched_rows(texts)
        if not len(rows):
            return tokens
        theirs = self._reference.encode(texts.take(pa.array(rows)), dtype)
        parts = np.split(tokens.ids, tokens.offsets[1:-1])
        for number, row in enumerate(rows.tolist()):
            parts[row] = theirs.of(number)
        offsets = np.zeros(len(parts) + 1, np.int64)
        np.cumsum([len(part) for part in parts], out=offsets[1:])
        return Tokens(np.concatenate(parts), offsets)

    def _searched_rows(self, texts: pa.Array) -> npt.NDArray[np.int64]:
        if not self._engine.searched or not len(texts):
            return np.zeros(0, np.int64)
        series = pl.from_arrow(texts)
        assert isinstance(series, pl.Series)
        holds = pl.DataFrame({"text": series}).select(pl.col("text").str.contains_any(list(self._engine.searched))).to_series()
        return holds.fill_null(False).arg_true().to_numpy().astype(np.int64)


def open_checked(tokenizer_json: str, reference: Reference, name: str, check_fraction: float) -> CheckedEngine | None:
    """The engine of a tokenizer (``name``: its SHA-256), after it has agreed on the probes; None if there is none that did."""
    if name in _refused:
        return None
    try:
        engine = Engine(tokenizer_json)
    except Unsupported as error:
        _log.info("tokenizer %s is encoded by the tokenizers package: %s", name[:12], error)
        return None
    probes = pa.array([probe for probe in PROBES if not any(token in probe for token in engine.searched)], pa.large_string())
    theirs = reference.encode(probes, np.uint32)
    try:
        mine = engine.encode(probes, np.uint32)
    except Unsupported as error:
        _refuse_engine(name, str(error))
        return None
    if not (np.array_equal(mine.offsets, theirs.offsets) and np.array_equal(mine.ids, theirs.ids)):
        _refuse_engine(name, "it differs from the tokenizers package on a probe")
        return None
    return CheckedEngine(engine, reference, name, check_fraction)


def _refuse_engine(name: str, why: str) -> None:
    _refused.add(name)
    _log.warning("tokenizer %s: the fast engine is not used: %s; the tokenizers package is (slower)", name[:12], why)
