"""The gigatoken package as an engine: whole Arrow arrays at a time, on one thread.

Invariant: no text makes a special token. gigatoken looks for added tokens in every text, so it is not told of them; texts that hold one of
those that the tokenizers package looks for (``searched``) are left to that package.
What gigatoken cannot take is Unsupported: it has a scanner for each of the expressions that are in use, and for no others.

Cost on one core: 65 MB/s while its memory of words fills, 190 after that. It never forgets a word by itself, so it is loaded anew, in a tenth
of a second, once it has grown by MAX_GROWTH_BYTES.
"""

import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from gigatoken import gigatoken_rs

from pipelines.text.buffers import utf8_views
from pipelines.tokenizers.engine.reference import Tokens

MAX_GROWTH_BYTES = 256 * 2**20
"""Random letters take 90 bytes a word."""
_STATM = Path("/proc/self/statm")
_PAGE_BYTES = 4096
_MAX_UNMEASURED_BYTES = 128 * 2**20
"""Text after which it is loaded anew where the system does not tell how large a process is."""


class Unsupported(Exception):
    """This tokenizer, or this text, needs the tokenizers package; the message says why."""


class Engine:
    """Encodes whole batches as the tokenizer would. It remembers words: not to be shared by threads."""

    def __init__(self, tokenizer_json: str) -> None:
        """Raises Unsupported."""
        value = json.loads(tokenizer_json)
        if value["model"].get("dropout"):
            raise Unsupported("its model sets dropout")
        added = value.get("added_tokens", ())
        self.searched = tuple(token["content"] for token in added if not token["special"])
        """Texts that hold one of these must be encoded by the tokenizers package: it looks for them before it splits."""
        self._json = json.dumps(_without_added(value))
        self._backend = _guarded(lambda: gigatoken_rs.load_hf_json(self._json))
        self._growth_bytes = 0

    def encode(self, texts: pa.Array, dtype: npt.DTypeLike) -> Tokens:
        """Ids of each text of a ``string`` or ``large_string`` array; a null has none. Raises Unsupported."""
        if self._growth_bytes > MAX_GROWTH_BYTES:
            self._backend, self._growth_bytes = _guarded(lambda: gigatoken_rs.load_hf_json(self._json)), 0
        data, offsets = utf8_views(texts)
        before, bounds = _resident_bytes(), offsets.tolist()
        view = data.data if len(data) else memoryview(b"")
        rows = _guarded(lambda: [self._backend.encode(bytes(view[start:end])) for start, end in itertools.pairwise(bounds)])
        own_bytes = sum(row.nbytes for row in rows)
        self._growth_bytes += _growth(before, own_bytes, bounds[-1] - bounds[0])
        lengths = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(row) for row in rows], out=lengths[1:])
        return Tokens(np.concatenate([np.zeros(0, np.uint32), *rows]).astype(dtype, copy=False), lengths)


def _without_added(value: Mapping[str, Any]) -> dict[str, Any]:
    """The tokenizer.json without its added tokens, and without the entries of the vocabulary that stand for them."""
    contents = {token["content"] for token in value.get("added_tokens", ())}
    model = value["model"]
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        parts = {part for merge in model.get("merges", ()) for part in (merge.split(" ") if isinstance(merge, str) else merge)}
        vocabulary = {token: number for token, number in vocabulary.items() if token not in contents or token in parts or len(token) == 1}
    return {**value, "added_tokens": [], "post_processor": None, "model": {**model, "vocab": vocabulary}}


def _guarded(function: Callable[[], Any]) -> Any:
    """What it returns; a failure of gigatoken, a panic of its Rust code among them, becomes Unsupported."""
    try:
        return function()
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise Unsupported(f"gigatoken: {str(error).partition(chr(10))[0]}") from error
        raise


def _resident_bytes() -> int | None:
    return int(_STATM.read_text().split()[1]) * _PAGE_BYTES if _STATM.exists() else None


def _growth(before: int | None, own_bytes: int, text_bytes: int) -> int:
    """By how much the memory of words has grown, as far as it can be seen from outside."""
    after = _resident_bytes()
    if before is None or after is None:
        return text_bytes * MAX_GROWTH_BYTES // _MAX_UNMEASURED_BYTES
    return max(0, after - before - own_bytes)
