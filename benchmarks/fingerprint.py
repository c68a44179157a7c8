"""SimHash fingerprints beside the `simhash` package, median of several runs: the same features, and the package's own; equal bit for bit.

python -m benchmarks.fingerprint [--documents 2000] [--repeats 5]
"""

import argparse
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import simhash

from benchmarks.corpus import CORPUS, num_megabytes, read_documents
from pipelines.dedup.features import SINGLES, extend_hash, mix
from pipelines.dedup.fingerprint import fingerprint_texts
from schemas.settings_dedup import DedupSettings

SINGLE_CLASS = "".join(f"{chr(first)}-{chr(last)}" for first, last in SINGLES)
FEATURE = re.compile(f"[{SINGLE_CLASS}]|[^\\W{SINGLE_CLASS}]+")
GOAL = 100


def median_cpu_s(work: Callable[[], Any], repeats: int) -> float:
    """CPU seconds of the middle run."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return statistics.median(times)


def package_default(text: str) -> Any:
    """The package as its page shows it: 4-grams of characters."""
    try:
        return simhash.Simhash(text)
    except OverflowError:  # NumPy 2, when a feature occurs more than 255 times
        return None


def package_on_our_features(text: str, cap: int) -> int:
    """The package's answer for our features, weights and hash."""
    weights = Counter(FEATURE.findall("".join(character.lower()[0] for character in text)))
    capped = {feature: min(count, cap) for feature, count in weights.items()}
    return int(simhash.Simhash(capped, hashfunc=_hash_bytes).value) if capped else 0


def _hash_bytes(feature: bytes) -> bytes:
    state = np.uint64(0)
    for character in feature.decode():
        state = np.uint64(extend_hash(state, ord(character)))
    return int(mix(state)).to_bytes(8, "big")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--corpus", type=Path, default=CORPUS)
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    documents = read_documents(args.corpus, number=args.documents, step=30)
    few = documents[:: max(1, len(documents) // 200)]
    texts = pa.array([document["text"] for document in documents], pa.large_string())
    options = DedupSettings()
    fingerprint_texts(texts[:1], options)  # compile
    ours_s = median_cpu_s(lambda: fingerprint_texts(texts, options), args.repeats) / num_megabytes(documents)
    theirs_s = median_cpu_s(lambda: [package_default(document["text"]) for document in few], 3) / num_megabytes(few)
    ours = fingerprint_texts(pa.array([document["text"] for document in few], pa.large_string()), options).fingerprint.tolist()
    num_equal = sum(package_on_our_features(document["text"], options.feature_cap) == value for document, value in zip(few, ours, strict=True))
    print(f"headrace, fingerprint + sketch  {1 / ours_s:9.1f} MB/s")
    print(f"simhash.Simhash(text)           {1 / theirs_s:9.2f} MB/s")
    print(f"headrace / simhash: {theirs_s / ours_s:.0f} times (goal {GOAL}); equal bit for bit on {num_equal} of {len(few)} documents")


if __name__ == "__main__":
    main()
