"""The tokenizers package, whole Arrow arrays at a time: what every other engine is measured by."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tokenizers import Tokenizer

ENCODE_CHARS = 1 << 18
"""Characters (and at least one document) per call into the tokenizer: bounds the memory that its encodings take, up to 200 times the text."""


class Tokens(NamedTuple):
    """Ids of n texts."""

    ids: npt.NDArray[Any]
    offsets: npt.NDArray[np.int64]
    """int64 [n + 1]."""

    def of(self, row: int) -> npt.NDArray[Any]:
        """The ids of one text."""
        return self.ids[self.offsets[row] : self.offsets[row + 1]]


class Reference:
    """A tokenizer of the tokenizers package, on one thread (Ray runs one task per core)."""

    def __init__(self, tokenizer_json: str) -> None:
        self._tokenizer = Tokenizer.from_str(tokenizer_json)
        self._tokenizer.encode_special_tokens = True  # as plain text, that is: a document cannot forge the end of a document

    def encode(self, texts: pa.Array, dtype: Any) -> Tokens:
        """Ids of each text of a ``string`` or ``large_string`` array, without special tokens; a null has none."""
        parts: list[npt.NDArray[Any]] = []
        lengths: list[int] = []
        with parallelism(enabled=False):
            for batch in _bounded(texts):
                encodings = self._tokenizer.encode_batch_fast(batch, add_special_tokens=False)
                parts += [np.array(encoding.ids, dtype) for encoding in encodings]
                lengths += [len(encoding) for encoding in encodings]
        offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        return Tokens(np.concatenate([np.zeros(0, dtype), *parts]), offsets)

    def decode(self, ids: list[int]) -> str:
        """The text of these ids; special tokens are written out."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))


@contextmanager
def parallelism(*, enabled: bool) -> Iterator[None]:
    """Whether the tokenizers package uses all cores; it reads this variable at each call. A value set by the user stays."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ.setdefault(name, "true" if enabled else "false")
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)


def _bounded(texts: pa.Array) -> Iterator[list[str]]:
    """Consecutive texts of together about ENCODE_CHARS characters; one longer text stands alone."""
    batch: list[str] = []
    num_chars = 0
    for scalar in texts:
        text = scalar.as_py() or ""
        if batch and num_chars + len(text) > ENCODE_CHARS:
            yield batch
            batch, num_chars = [], 0
        batch.append(text)
        num_chars += len(text)
    if batch:
        yield batch
