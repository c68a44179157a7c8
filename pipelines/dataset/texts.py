"""The texts of kept documents, decoded from their spans in the shards: as they were tokenized, so normalized, cleaned and redacted.

Exact for the tokenizers that are trained here; another one gives back what it can. Costs one decoding per document, some 10 MB/s.
"""

from typing import Any

import polars as pl

from pipelines.dataset.shard_maps import ShardMaps
from pipelines.tokenizers.tokenizer import BatchTokenizer

SPAN = ("shard", "row", "start", "length")


def read_texts(maps: ShardMaps, tokenizer: BatchTokenizer, kept: pl.DataFrame, max_tokens: int | None = None) -> list[str]:
    """One text per row of the audit trail (columns SPAN, outcome kept); ``max_tokens``: only so many tokens from the start of each."""
    return [_text(maps, tokenizer, row, max_tokens) for row in kept.select(SPAN).iter_rows(named=True)]


def _text(maps: ShardMaps, tokenizer: BatchTokenizer, span: dict[str, Any], max_tokens: int | None) -> str:
    num_tokens = span["length"] - 1  # the last one is the end of the text
    length = num_tokens if max_tokens is None else min(num_tokens, max_tokens)
    return tokenizer.decode(maps.span(span["shard"], span["row"], span["start"], length))
