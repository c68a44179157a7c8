"""From a dataset version to its list of semantic duplicates. Reads the dataset and changes nothing of it.

1. The kept documents that no retraction took out, in commit order, with their content hashes (which stand in the duplicate index's segments).
2. Texts that were not embedded before by this model are decoded and embedded, ``CHUNK`` at a time; each chunk is durable before the next.
3. All embeddings are compared (cluster.py).
4. The list is written under its own hash.

The next version costs the embeddings of its new documents, and one comparison of all.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import polars as pl

from pipelines.dataset.dataset import Dataset
from pipelines.dataset.retractions.masks import retracted_ordinals
from pipelines.dataset.shard_maps import FEW_MAPS, ShardMaps
from pipelines.dataset.texts import SPAN, read_texts
from pipelines.dataset.trail import read_kept
from pipelines.semantic.cluster import Duplicates, find_duplicates
from pipelines.semantic.embed import Embedder
from pipelines.semantic.store import EmbeddingStore, write_list
from pipelines.storage.pinned import verify_once
from pipelines.tokenizers.tokenizer import load_tokenizer
from schemas.semantic import SemanticList

CHUNK = 1_024
"""Documents that are decoded and embedded between two writes."""
BYTES_PER_TOKEN = 8
"""More than any token of these models is long on average: so much of a text is decoded for each token that the model reads."""


class SemanticRun(NamedTuple):
    """What a run made."""

    path: Path
    made_from: SemanticList
    num_embedded: int
    """Documents that were embedded anew."""


def semantic_duplicates(dataset: Dataset, embedder: Embedder, threshold: float, on_embedded: Callable[[int, int], None] | None = None) -> SemanticRun:
    """Make the list. ``on_embedded(done, all)`` is called after each chunk. Raises DatasetError, SettingsError."""
    # Step 1.
    documents = live_documents(dataset)
    # Step 2.
    store = EmbeddingStore(dataset.root, embedder.sha256, embedder.dimension)
    num_embedded = _embed_new(dataset, documents, embedder, store, on_embedded)
    # Step 3.
    vectors = store.vectors(documents["content_hash"].to_list())
    found = find_duplicates(vectors, threshold)
    rows, num_ambiguous = _rows(documents, found)
    # Step 4.
    made_from = SemanticList(
        dataset_version=dataset.version,
        manifest_sha256=dataset.ref().manifest_sha256,
        model_sha256=embedder.sha256,
        threshold=threshold,
        num_documents=len(documents),
        num_unreadable=int((~vectors.any(axis=1)).sum()),
        num_duplicates=len(rows),
        num_ambiguous=num_ambiguous,
    )
    return SemanticRun(write_list(dataset.root, rows.to_dict(as_series=False), made_from), made_from, num_embedded)


def live_documents(dataset: Dataset) -> pl.DataFrame:
    """Documents that the version keeps, in commit order: doc_id, the span, content_hash, version."""
    frames = []
    for manifest in dataset.manifests():
        if manifest.dedup_segments:
            kept = read_kept([verify_once(dataset.root, entry) for entry in manifest.documents], ["doc_id", *SPAN])
            hashes = pl.concat([pl.read_ipc(verify_once(dataset.root, entry), columns=["content_hash"]) for entry in manifest.dedup_segments])
            frames.append(kept.with_columns(hashes["content_hash"].cast(pl.Binary), version=pl.lit(manifest.version, pl.Int64)))
    if not frames:
        return pl.DataFrame(schema={"doc_id": pl.String, **dict.fromkeys(SPAN, pl.Int64), "content_hash": pl.Binary, "version": pl.Int64})
    documents = pl.concat(frames).with_row_index("ordinal")
    return documents.filter(~pl.col("ordinal").is_in(retracted_ordinals(dataset).tolist())).drop("ordinal")


def _embed_new(
    dataset: Dataset, documents: pl.DataFrame, embedder: Embedder, store: EmbeddingStore, on_embedded: Callable[[int, int], None] | None
) -> int:
    is_new = pl.Series([content_hash not in store for content_hash in documents["content_hash"].to_list()], dtype=pl.Boolean)
    new = documents.filter(is_new).unique("content_hash", keep="first", maintain_order=True)
    tokenizer, maps = load_tokenizer(dataset.root, dataset.tokenizer), ShardMaps(dataset, FEW_MAPS)
    for first in range(0, len(new), CHUNK):
        chunk = new.slice(first, CHUNK)
        texts = read_texts(maps, tokenizer, chunk, max_tokens=BYTES_PER_TOKEN * embedder.max_tokens)
        store.add(chunk["content_hash"].to_list(), embedder.embed(texts))
        if on_embedded is not None:
            on_embedded(first + len(chunk), len(new))
    return len(new)


def _rows(documents: pl.DataFrame, found: Duplicates) -> tuple[pl.DataFrame, int]:
    """Rows of DUPLICATES, and how many duplicates are left out because a document that stays has the same id."""
    judged = documents.select("doc_id", "version").with_columns(at=pl.Series(found.duplicate_of), similarity=pl.Series(found.similarity))
    duplicates = judged.filter(pl.col("at") >= 0)
    named = duplicates.with_columns(duplicate_of=documents["doc_id"].gather(duplicates["at"]))
    staying = judged.filter(pl.col("at") < 0)["doc_id"]
    rows = named.filter(~pl.col("doc_id").is_in(staying.implode()))
    return rows.select("doc_id", "duplicate_of", "similarity", "version"), len(named) - len(rows)
