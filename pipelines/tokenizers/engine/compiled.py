"""The compiled engine of one tokenizer, if it has one: what it can stand in for is decided here, from the tokenizer's own file.

Invariant: nothing that this module does not understand is encoded by it. A model, normalizer or pattern that it does not know, or a
token that is searched for in the text before it is split, leaves the work to the tokenizers package.
"""

import itertools
import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy.typing as npt
import pyarrow as pa

from pipelines.text.buffers import utf8_views
from pipelines.tokenizers.engine.bpe import Encoded, encode_texts, make_merges, new_cache
from pipelines.tokenizers.engine.pieces import FAMILIES, GPT2, scanner_of


class Unsupported(Exception):
    """This tokenizer needs the tokenizers package; the message says why."""


class _Parts(NamedTuple):
    pattern: str
    model: Mapping[str, Any]
    searched: tuple[str, ...]


class Engine:
    """Encodes whole batches as the tokenizer would. It remembers words: not to be shared by threads."""

    def __init__(self, tokenizer_json: str) -> None:
        """Raises Unsupported."""
        parts = _parts(json.loads(tokenizer_json))
        self.searched = parts.searched
        """Texts that hold one of these must be encoded by the tokenizers package: it looks for them before it splits."""
        self._scanner = scanner_of(parts.pattern)
        self._merges = _merges(parts.model)
        self._cache = new_cache()

    def encode(self, texts: pa.Array, dtype: npt.DTypeLike) -> Encoded:
        """Ids of each text of a ``string`` or ``large_string`` array; a null has none."""
        data, offsets = utf8_views(texts)
        return encode_texts(data, offsets, self._scanner, self._merges, self._cache, dtype)


def byte_characters() -> list[str]:
    """The character that byte-level vocabularies write each byte as (Radford et al. 2019): itself if it can be seen, else one above U+0100."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = itertools.count(0x100)
    return [chr(byte) if byte in visible else chr(next(others)) for byte in range(256)]


def _parts(value: Mapping[str, Any]) -> _Parts:
    """What the engine needs of a tokenizer.json."""
    if value.get("normalizer") is not None:
        raise Unsupported("it has a normalizer")
    model = value["model"]
    if model.get("type") != "BPE":
        raise Unsupported(f"its model is {model.get('type')!r}, not BPE")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges"):
        if model.get(name):
            raise Unsupported(f"its model sets {name}")
    searched = tuple(token["content"] for token in value.get("added_tokens", ()) if not token["special"])
    return _Parts(_pattern(value.get("pre_tokenizer") or {}), model, searched)


def _pattern(pre_tokenizer: Mapping[str, Any]) -> str:
    """The expression that the text is split by before its bytes are merged."""
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    byte_level = steps[-1]
    if byte_level.get("type") != "ByteLevel" or byte_level.get("add_prefix_space"):
        raise Unsupported("its pieces are not plain bytes")
    if len(steps) == 1 and byte_level.get("use_regex", True):
        return GPT2
    split = steps[0]
    if len(steps) != 2 or byte_level.get("use_regex", True) or split.get("type") != "Split":
        raise Unsupported("it splits text in more than one way")
    pattern = split["pattern"].get("Regex")
    if pattern not in FAMILIES or split["behavior"] != "Isolated" or split["invert"]:
        raise Unsupported("it splits text by an expression without a scanner")
    return str(pattern)


def _merges(model: Mapping[str, Any]) -> Any:
    vocabulary: Mapping[str, int] = model["vocab"]
    characters = byte_characters()
    if any(character not in vocabulary for character in characters):
        raise Unsupported("its vocabulary lacks some bytes")
    pairs: dict[tuple[int, int], tuple[int, int]] = {}
    for rank, (left, right) in enumerate(_split(model["merges"])):
        # A pair that is listed twice counts where it stands last, as in the tokenizers package.
        pairs[vocabulary[left], vocabulary[right]] = (rank, vocabulary[left + right])
    ordered = sorted(pairs.items(), key=lambda item: item[1])
    ranked = {pair: (rank, merged) for rank, (pair, (_, merged)) in enumerate(ordered)}
    return make_merges([vocabulary[character] for character in characters], ranked)


def _split(merges: Iterable[str | list[str]]) -> Iterable[tuple[str, str]]:
    """Older files write a merge as ``left right``, newer ones as a list."""
    for merge in merges:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        yield left, right
