"""Which documents say what an earlier kept one says, by the cosine of their embeddings.

The rule is that of near duplicates: in commit order, a document is a duplicate if its cosine with a document that was kept before it reaches the
threshold; it names the most similar one, of equals the earliest. So what an earlier document got does not depend on later ones.
Only kept documents are in the index. Blocks are compared with the index (FAISS), then within themselves.

Up to ``MAX_EXACT`` documents the index is exact: n² / 2 products of all dimensions. Beyond, it is an inverted file of some 4 sqrt(n) lists,
trained on documents that a fixed seed chooses, of which one in ``PROBE_SHARE`` is looked through: it may overlook a duplicate near a list's
border, but never takes something for one.
Memory: 4 bytes per number of a kept document's embedding.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from pipelines.semantic.embed import EXTRA, Vectors
from schemas.errors import SettingsError

MAX_EXACT = 100_000
PROBE_SHARE = 16
BLOCK = 2_048
_SEED = 0x48454144


class Duplicates(NamedTuple):
    """One element per document."""

    duplicate_of: npt.NDArray[np.int64]
    """Row of the kept document; -1: this one is kept."""
    similarity: npt.NDArray[np.float32]
    """Cosine with it; 0 where kept."""


def find_duplicates(vectors: Vectors, threshold: float, max_exact: int = MAX_EXACT) -> Duplicates:
    """``vectors``: float32 [n, d] in commit order, of length 1, or all zeros for what is like nothing. Raises SettingsError without FAISS."""
    index = _index(vectors, max_exact)
    duplicate_of = np.full(len(vectors), -1, np.int64)
    similarity = np.zeros(len(vectors), np.float32)
    kept = np.zeros(0, np.int64)
    for first in range(0, len(vectors), BLOCK):
        block = np.ascontiguousarray(vectors[first : first + BLOCK])
        best, at = _nearest(index, block)
        nearest = np.where(at >= 0, kept[at] if len(kept) else -1, -1)
        duplicates = _greedy(block @ block.T, best, nearest, first, np.float32(threshold))
        duplicate_of[first : first + BLOCK], similarity[first : first + BLOCK] = duplicates
        stays = np.flatnonzero((duplicates[0] < 0) & block.any(axis=1))
        index.add(block[stays])
        kept = np.concatenate([kept, first + stays])
    return Duplicates(duplicate_of, similarity)


def _index(vectors: Vectors, max_exact: int) -> Any:
    try:
        import faiss
    except ImportError as error:
        raise SettingsError(f"FAISS is not installed; {EXTRA}") from error
    dimension = vectors.shape[1]
    flat = faiss.IndexFlatIP(dimension)
    if len(vectors) <= max_exact:
        return flat
    num_lists = int(4 * np.sqrt(len(vectors)))
    index = faiss.IndexIVFFlat(flat, dimension, num_lists, faiss.METRIC_INNER_PRODUCT)
    index.nprobe = max(1, num_lists // PROBE_SHARE)
    index.cp.seed, index.cp.min_points_per_centroid = _SEED, 1
    chosen = np.random.default_rng(_SEED).permutation(len(vectors))[: 64 * num_lists]
    index.train(np.ascontiguousarray(vectors[np.sort(chosen)]))
    return index


def _nearest(index: Any, block: Vectors) -> tuple[Vectors, npt.NDArray[np.int64]]:
    """The largest cosine with an indexed vector, and its number; -1 if there is none."""
    if index.ntotal == 0:
        return np.zeros(len(block), np.float32), np.full(len(block), -1)
    best, at = index.search(block, 1)
    return best[:, 0], at[:, 0]


@njit(cache=True, nogil=True)
def _greedy(products: Any, best: Any, nearest: Any, first: Any, threshold: Any) -> Any:
    """Judge a block's rows in order, knowing of each the nearest kept document before the block."""
    num_rows = len(products)
    duplicate_of = np.full(num_rows, -1, np.int64)
    similarity = np.zeros(num_rows, np.float32)
    for row in range(num_rows):
        largest, of = best[row], nearest[row]
        for earlier in range(row):
            if duplicate_of[earlier] < 0 and products[row, earlier] > largest:
                largest, of = products[row, earlier], first + earlier
        if of >= 0 and largest >= threshold:
            duplicate_of[row], similarity[row] = of, min(largest, np.float32(1))
    return duplicate_of, similarity
