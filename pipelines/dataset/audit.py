"""The audit trail of a dataset, and the texts that it keeps, block by block in commit order: memory is bounded by a block.

``live_texts`` gives what versions 1..N hold: documents that a retraction took out are left out. Cost: that of decoding (dataset/texts.py).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.dataset.dataset import Dataset
from pipelines.dataset.retractions.masks import retracted_ordinals
from pipelines.dataset.shard_maps import FEW_MAPS, ShardMaps
from pipelines.dataset.texts import SPAN, read_texts
from pipelines.storage.pinned import verify_pinned
from pipelines.tokenizers.tokenizer import BatchTokenizer, load_tokenizer
from schemas.arrow import DOCUMENTS, Outcome
from schemas.errors import ShardCorrupt
from schemas.manifest import DatasetManifest

BLOCK_ROWS = 4_096
BLOCK_TOKENS = 1 << 21
"""A block of the audit trail is cut where its documents have more tokens than this, unless it is one document."""
Mask = npt.NDArray[np.bool_]


def audit_blocks(root: Path, manifest: DatasetManifest) -> Iterator[pa.Table]:
    """The audit trail of one version as tables of DOCUMENTS; columns that an older file lacks are null. Raises ShardCorrupt."""
    for entry in manifest.documents:
        path = verify_pinned(root, entry)
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=BLOCK_ROWS):
                    yield from _cut(_complete(pa.Table.from_batches([batch])))
        except (OSError, pa.ArrowInvalid) as error:
            raise ShardCorrupt(f"{path} is missing or not Parquet ({error}); restore the file from a copy") from error


def _complete(block: pa.Table) -> pa.Table:
    columns = [block[field.name] if field.name in block.column_names else pa.nulls(len(block), field.type) for field in DOCUMENTS]
    return pa.table(columns, names=DOCUMENTS.names).cast(DOCUMENTS).combine_chunks()


def _cut(block: pa.Table) -> Iterator[pa.Table]:
    """Slices of at most BLOCK_TOKENS tokens, or one row."""
    ends = np.cumsum(block["length"].fill_null(0).to_numpy())
    start = 0
    while start < len(block):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + BLOCK_TOKENS, side="right")))
        yield block.slice(start, stop - start)
        start = stop


class Live:
    """Says of each kept document, asked in commit order, whether versions 1..N still hold it."""

    def __init__(self, dataset: Dataset, first: int = 0) -> None:
        """``first``: number of kept documents before the first one that is asked about."""
        self._retracted = retracted_ordinals(dataset)
        self._next = first

    def num_live(self, num_kept: int) -> int:
        """How many of the next ``num_kept`` kept documents the versions still hold."""
        return num_kept - int(np.count_nonzero((self._retracted >= self._next) & (self._retracted < self._next + num_kept)))

    def among(self, block: pa.Table) -> Mask:
        """One flag per row of the next block of the audit trail."""
        rows = np.flatnonzero(pc.equal(block["outcome"], Outcome.KEPT).to_numpy())
        ordinals = self._next + np.arange(len(rows))
        self._next += len(rows)
        live = np.zeros(len(block), dtype=np.bool_)
        live[rows[~np.isin(ordinals, self._retracted)]] = True
        return live


def decode_rows(maps: ShardMaps, tokenizer: BatchTokenizer, rows: pa.Table) -> pa.Array:
    """The texts (large_string) of kept rows of the audit trail. Raises ShardCorrupt if a shard ends before a span."""
    spans: Any = pl.from_arrow(rows.select(list(SPAN)))
    return pa.array(read_texts(maps, tokenizer, spans), pa.large_string())


def live_texts(dataset: Dataset, columns: Sequence[str] = ()) -> Iterator[pa.Table]:
    """Column ``text`` (large_string) and the named columns of DOCUMENTS, of all documents that the version holds, in commit order."""
    tokenizer, live, maps = load_tokenizer(dataset.root, dataset.tokenizer), Live(dataset), ShardMaps(dataset, FEW_MAPS)
    for manifest in dataset.manifests():
        for block in audit_blocks(dataset.root, manifest):
            rows = block.filter(pa.array(live.among(block)))
            if len(rows):
                yield rows.select(list(columns)).append_column("text", decode_rows(maps, tokenizer, rows))
