"""Duplicates, beside the `simhash` package, in one run: fingerprint speed, index speed, and what is found by language.

    python benchmarks/dedup.py [--rows 1000000] [--corpus ../shared/corpus]

Fingerprints and quality need the test corpus; without it only the index is measured, on random fingerprints.
"""

import argparse
import json
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import simhash

from pipelines.dedup.features import SINGLES
from pipelines.dedup.fingerprint import content_hashes, fingerprint_texts, sketch_array
from pipelines.dedup.index import FingerprintIndex
from pipelines.dedup.resolve import Resolver
from schemas.arrow import SEGMENT
from schemas.settings_dedup import DedupSettings

SINGLE_CLASS = "".join(f"{chr(first)}-{chr(last)}" for first, last in SINGLES)
FEATURE = re.compile(f"[{SINGLE_CLASS}]|[^\\W{SINGLE_CLASS}]+")
TRUE_JACCARD = 0.8


def read_lines(path: Path) -> list[dict[str, Any]]:
    with pa.CompressedInputStream(pa.OSFile(str(path)), "zstd") as stream:
        return [json.loads(line) for line in stream.read().splitlines()]


def best_seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """Shortest of a few runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def measure_fingerprints(texts: list[str]) -> None:
    options = DedupSettings()
    array = pa.array(texts, pa.large_string())
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    fingerprint_texts(array[:1], options)  # compile
    halves = [array[: len(array) // 2], array[len(array) // 2 :]]
    few = texts[:500]
    few_megabytes = sum(len(text.encode()) for text in few) / 1e6
    with ThreadPoolExecutor(2) as threads:
        both = best_seconds(lambda: list(threads.map(lambda half: fingerprint_texts(half, options), halves)))
    print(f"fingerprint + sketch, one thread   {megabytes / best_seconds(lambda: fingerprint_texts(array, options)):9.1f} MB/s")
    print(f"fingerprint + sketch, two threads  {megabytes / both:9.1f} MB/s")
    print(f"content hash                       {megabytes / best_seconds(lambda: content_hashes(array)):9.1f} MB/s")
    print(f"simhash.Simhash(text), 4-grams     {few_megabytes / best_seconds(lambda: [package_default(text) for text in few], 1):9.1f} MB/s")
    print(f"simhash.Simhash(our features)      {few_megabytes / best_seconds(lambda: [package_features(text) for text in few], 1):9.1f} MB/s")


def package_default(text: str) -> object:
    try:
        return simhash.Simhash(text)
    except OverflowError:  # NumPy 2, when a feature occurs more than 255 times
        return None


def package_features(text: str) -> object:
    weights = {feature: min(count, 5) for feature, count in Counter(FEATURE.findall(text.lower())).items()}
    return simhash.Simhash(weights) if weights else None


def measure_index(num_rows: int) -> None:
    rng = np.random.default_rng(0)
    stored = rng.integers(0, 2**64, num_rows, dtype=np.uint64)
    rows = np.arange(num_rows, dtype=np.uint32)
    for max_hamming in (3, 4, 5, 6):
        queries = rng.integers(0, 2**64, 100_000 if max_hamming < 5 else 10_000, dtype=np.uint64)
        start = time.perf_counter()
        index = FingerprintIndex(max_hamming, stored, rows)
        build_s = time.perf_counter() - start
        rate = len(queries) / best_seconds(lambda index=index, queries=queries: index.query(queries))  # type: ignore[misc]
        print(f"index of {num_rows:,}, Hamming <= {max_hamming}: built in {build_s:5.2f} s, {rate:12,.0f} queries/s")
    few = min(num_rows, 20_000)
    package = simhash.SimhashIndex([(str(row), simhash.Simhash(int(stored[row]))) for row in range(few)], k=3)
    ours = FingerprintIndex(3, stored[:few], rows[:few])
    print(f"ours of {few:,}, Hamming <= 3:         {len(stored) / best_seconds(lambda: ours.query(stored)):12,.0f} queries/s")
    probes = [simhash.Simhash(int(value)) for value in rng.integers(0, 2**63, 500, dtype=np.uint64)]
    package_s = best_seconds(lambda: [package.get_near_dups(probe) for probe in probes])
    print(f"SimhashIndex of {few:,}, Hamming <= 3: {len(probes) / package_s:12,.0f} queries/s")


def measure_quality(documents: list[dict[str, Any]], planted: list[dict[str, Any]], options: DedupSettings) -> None:
    """Pairs within the limits, against the truth: planted, or token-multiset Jaccard >= 0.8 among all pairs within Hamming distance 6."""
    texts = {document["id"]: document["text"] for document in documents}
    language = {document["id"]: document["lang"] for document in documents}
    ids = [document["id"] for document in documents]
    truth = {tuple(sorted((pair["a"], pair["b"]))) for pair in planted}
    prints = fingerprint_texts(pa.array(list(texts.values()), pa.large_string()), options)
    index = FingerprintIndex(6, prints.fingerprint, np.arange(len(ids), dtype=np.uint32))
    left, right = index.query(prints.fingerprint)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    found = set()
    for a, b in zip(left[left < right], right[left < right], strict=True):
        pair = tuple(sorted((ids[a], ids[b])))
        if pair not in truth and jaccard(texts[pair[0]], texts[pair[1]]) >= TRUE_JACCARD:
            truth.add(pair)
        close = int(prints.fingerprint[a] ^ prints.fingerprint[b]).bit_count() <= options.max_hamming
        if close and similarity(prints.sketch[a], prints.sketch[b]) >= options.min_similarity:
            found.add(pair)
    for kind, pairs in (("true", truth), ("found", found), ("right", found & truth)):
        for pair in pairs:
            counts[language[pair[0]]][kind] += 1
            counts["all"][kind] += 1
    print(f"\nmax_hamming {options.max_hamming}, min_similarity {options.min_similarity}, feature_cap {options.feature_cap}")
    for name, count in sorted(counts.items(), key=lambda item: -item[1]["true"])[:10]:
        recall, precision = count["right"] / max(1, count["true"]), count["right"] / max(1, count["found"])
        f1 = 2 * recall * precision / max(1e-9, recall + precision)
        print(f"{name:8} pairs {count['true']:5}  recall {recall:.3f}  precision {precision:.3f}  F1 {f1:.3f}")


def jaccard(left: str, right: str) -> float:
    bags = [Counter(FEATURE.findall(text.lower())) for text in (left, right)]
    shared = (bags[0] & bags[1]).total()
    return shared / max(1, bags[0].total() + bags[1].total() - shared)


def similarity(left: Any, right: Any) -> float:
    filled = (left | right) != 0
    return float((left == right)[filled].mean()) if filled.any() else 0.0


def measure_resolver(documents: list[dict[str, Any]]) -> None:
    array = pa.array([document["text"] for document in documents], pa.large_string())
    prints = fingerprint_texts(array, DedupSettings())
    columns = [pa.array(prints.fingerprint), content_hashes(array), sketch_array(prints.sketch), [document["id"] for document in documents]]
    rows = pa.table(columns, schema=SEGMENT)
    Resolver(DedupSettings(), []).resolve(rows[:1])
    seconds = best_seconds(lambda: Resolver(DedupSettings(), []).resolve(rows))
    print(f"resolver, {len(rows):,} documents into an empty index: {len(rows) / seconds:12,.0f} documents/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--corpus", type=Path, default=Path(__file__).parents[2] / "shared" / "corpus")
    args = parser.parse_args()
    measure_index(args.rows)
    if not (args.corpus / "near_duplicates.jsonl.zst").exists():
        print(f"no corpus in {args.corpus}: fingerprints and quality are not measured")
        return
    documents = read_lines(args.corpus / "near_duplicates.jsonl.zst")
    measure_fingerprints([document["text"] for document in documents])
    measure_resolver(documents)
    planted = read_lines(args.corpus / "near_duplicates.truth.jsonl.zst")
    for options in (DedupSettings(), DedupSettings(max_hamming=3)):
        measure_quality(documents, planted, options)


if __name__ == "__main__":
    main()
