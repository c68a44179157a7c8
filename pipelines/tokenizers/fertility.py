"""How well a tokenizer knows each language: tokens per word or character, bytes per token, what falls apart into bytes, which ids are never used.

Invariant: two tokenizers that are compared have seen the same documents. The end-of-text token is not counted. Words are what stands between
white space; where more than half of the letters are of scripts written without spaces, fertility is per character instead.
Cost: encoding, and one pass over ids and text.
"""

import itertools
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
from tokenizers import Tokenizer

from pipelines.tokenizers.folders import Opened
from pipelines.tokenizers.tokenizer import TOKENIZER_FILE

ALL = "all"
SHOWN_TOKENS = 12
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_COUNTS = ("documents", "characters", "bytes", "words", "letters", "unspaced_letters", "tokens", "single_byte_tokens", "fragments")


class Vocabulary(NamedTuple):
    """What each id stands for."""

    tokens: list[bytes | None]
    """None: no such id."""
    is_single_byte: npt.NDArray[np.bool_]
    is_fragment: npt.NDArray[np.bool_]
    """Part of a character, that is no UTF-8 by itself."""
    is_special: npt.NDArray[np.bool_]


def vocabulary_of(files: Mapping[str, bytes]) -> Vocabulary:
    """Read from tokenizer.json; byte-level and SentencePiece vocabularies are understood, others count as text."""
    value = json.loads(files[TOKENIZER_FILE])
    ids = Tokenizer.from_str(files[TOKENIZER_FILE].decode()).get_vocab(with_added_tokens=True)
    added = {token["content"]: bool(token["special"]) for token in value.get("added_tokens", ())}
    byte_of = {character: byte for byte, character in enumerate(_byte_characters())} if '"ByteLevel"' in json.dumps(value.get("decoder")) else {}
    tokens: list[bytes | None] = [None] * (max(ids.values(), default=-1) + 1)
    special = np.zeros(len(tokens), np.bool_)
    for token, number in ids.items():
        special[number] = added.get(token, False)
        tokens[number] = token.encode() if token in added else _bytes_of(token, byte_of)
    single = np.array([token is not None and len(token) == 1 for token in tokens], np.bool_)
    fragment = np.array([token is not None and not _is_text(token) for token in tokens], np.bool_)
    return Vocabulary(tokens, single & ~special, fragment & ~special, special)


def _byte_characters() -> list[str]:
    """The character that byte-level vocabularies write each byte as (Radford et al. 2019): itself if it can be seen, else one above U+0100."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = itertools.count(0x100)
    return [chr(byte) if byte in visible else chr(next(others)) for byte in range(256)]


def _bytes_of(token: str, byte_of: Mapping[str, int]) -> bytes:
    if byte_of:
        return bytes(byte_of[character] for character in token) if all(character in byte_of for character in token) else token.encode()
    if match := _BYTE.fullmatch(token):
        return bytes.fromhex(match[1])
    return token.replace("▁", " ").encode()


def _is_text(token: bytes) -> bool:
    try:
        token.decode()
    except UnicodeDecodeError:
        return False
    return True


class Inspection:
    """``add`` batches of documents, then ask for ``rows`` and ``facts``."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self._vocabulary = vocabulary_of(opened.files)
        self._used = np.zeros(len(self._vocabulary.tokens), np.int64)
        self._parts: list[pl.DataFrame] = []

    def add(self, texts: pa.Array, languages: pa.Array) -> None:
        """Texts (``large_string``, no nulls) and their language codes."""
        encoded = self._opened.tokenizer.encode(texts)
        ids = np.asarray(encoded.values)
        self._used += np.bincount(ids, minlength=len(self._used))
        bounds = np.asarray(encoded.offsets)
        sums = {
            "tokens": np.diff(bounds),
            "single_byte_tokens": _sums(self._vocabulary.is_single_byte[ids], bounds),
            "fragments": _sums(self._vocabulary.is_fragment[ids], bounds),
        }
        text: Any = pl.col("text").str
        columns: Any = {"text": texts, "language": languages.fill_null("und")}
        frame = pl.DataFrame({name: pl.from_arrow(column) for name, column in columns.items()} | sums).select(
            "language",
            *sums,
            documents=pl.lit(1),
            characters=text.len_chars(),
            bytes=text.len_bytes(),
            words=text.count_matches(r"\S+"),
            letters=text.count_matches(r"\p{L}"),
            unspaced_letters=text.count_matches(_UNSPACED),
        )
        self._parts.append(frame.group_by("language").agg(pl.col(_COUNTS).cast(pl.Int64).sum()))

    def rows(self) -> list[dict[str, Any]]:
        """One row per language, largest first, after one for all together."""
        if not self._parts:
            return []
        by_language = pl.concat(self._parts).group_by("language").agg(pl.col(_COUNTS).sum())
        together = by_language.select(pl.lit(ALL).alias("language"), *(pl.col(name).sum() for name in _COUNTS))
        ordered = by_language.sort(["bytes", "language"], descending=[True, False])
        return [_row(row) for row in pl.concat([together, ordered.select(together.columns)]).to_dicts()]

    def facts(self) -> dict[str, Any]:
        """Of the vocabulary: its size, ids that no document needed, its longest tokens."""
        vocabulary = self._vocabulary
        exists = np.array([token is not None for token in vocabulary.tokens], np.bool_)
        unused = exists & ~vocabulary.is_special & (self._used == 0)
        ordinary = [token for token, special in zip(vocabulary.tokens, vocabulary.is_special, strict=True) if token is not None and not special]
        texts = {token.decode("utf-8", "replace") for token in ordinary}
        return {
            "sha256": self._opened.ref.sha256,
            "vocab_size": self._opened.ref.vocab_size,
            "missing_ids": int((~exists).sum()),
            "special_ids": int(vocabulary.is_special.sum()),
            "unused_ids": int(unused.sum()),
            "longest_tokens": sorted(texts, key=lambda text: (-len(text), text))[:SHOWN_TOKENS],
        }


def _sums(flags: npt.NDArray[np.bool_], bounds: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Sum of each document's flags."""
    running = np.zeros(len(flags) + 1, np.int64)
    np.cumsum(flags, out=running[1:])
    return np.diff(running[bounds])


def _row(counts: dict[str, Any]) -> dict[str, Any]:
    tokens, letters, unspaced = counts["tokens"], counts.pop("letters"), counts.pop("unspaced_letters")
    per_word = tokens / counts["words"] if counts["words"] and 2 * unspaced <= letters and counts["language"] != ALL else None
    return counts | {
        "tokens_per_word": per_word,
        "tokens_per_character": tokens / counts["characters"] if counts["characters"] else None,
        "bytes_per_token": counts["bytes"] / tokens if tokens else None,
        "single_byte_share": counts["single_byte_tokens"] / tokens if tokens else None,
        "fragment_share": counts["fragments"] / tokens if tokens else None,
    }
