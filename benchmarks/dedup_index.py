"""The duplicate index as it grows, beside `simhash.SimhashIndex` and faiss's multi-index hashing, in one run.

    python -m benchmarks.dedup_index [--num 1000000,10000000,50000000] [--folder /tmp]

For each size: a base is built from random fingerprints, opened as a restarted process would, and asked for random fingerprints and planted
neighbours, all within Hamming distance 3 and 6. A sample of the answers is compared with brute force. One thread; the median of several runs;
queries by its processor time, everything else by the clock. Recovery after a crash is the time until a new process can decide documents again:
with the base alone, and with the most that can lie behind it before a compaction is due, in segments that have to be read.
"""

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import simhash

from pipelines.dataset.compaction import GROWTH
from pipelines.dedup.base import Part, open_base, write_base
from pipelines.dedup.kept import Columns
from pipelines.dedup.tables import find_within
from schemas.arrow import SEGMENT, SKETCH_BYTES

Words = npt.NDArray[np.uint64]
REPEATS = 5
NUM_SAMPLED = 100
"""Queries per run whose answers are compared with brute force."""
NUM_QUERIES = 65_536
"""Asked at once: what the resolver looks up in a base together."""
NUM_SEGMENTS = 64
PEER_ROWS = 1_000_000
"""Largest size that the peers are asked for: SimhashIndex takes 645 bytes per fingerprint, faiss minutes per 10 million."""


def median_seconds(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    times = []
    for _ in range(REPEATS):
        start = clock()
        work()
        times.append(clock() - start)
    return statistics.median(times)


def documents(num_rows: int, rng: np.random.Generator) -> Part:
    """As many documents with random fingerprints; their sketches are all alike, which the index does not mind."""
    offsets = np.arange(0, 8 * (num_rows + 1), 8, dtype=np.int64)
    ids = np.frombuffer(np.char.zfill(np.arange(min(num_rows, 1_000_000)).astype("U8"), 8).astype("S8").tobytes(), np.uint8)
    ids = np.tile(ids, -(-num_rows // 1_000_000))[: 8 * num_rows]
    columns = Columns(
        rng.integers(0, 2**64, num_rows, dtype=np.uint64),
        rng.integers(0, 2**64, (num_rows, 2), dtype=np.uint64),
        np.broadcast_to(np.ones(SKETCH_BYTES, np.uint8), (num_rows, SKETCH_BYTES)),
    )
    doc_ids = pa.LargeStringArray.from_buffers(num_rows, pa.py_buffer(offsets), pa.py_buffer(ids))
    return Part(columns, doc_ids, np.empty(0, np.int64))


def queries_for(stored: Words, max_hamming: int, num_queries: int, rng: np.random.Generator) -> Words:
    """Random ones, and in the first places neighbours of stored ones at every distance up to one too many."""
    queries = rng.integers(0, 2**64, num_queries, dtype=np.uint64)
    for place in range(NUM_SAMPLED):
        bits = rng.choice(64, place % (max_hamming + 2), replace=False).astype(np.uint64)
        queries[place] = stored[rng.integers(len(stored))] ^ np.bitwise_or.reduce(np.uint64(1) << bits, initial=np.uint64(0))
    return queries


def check_against_brute_force(path: Path, max_hamming: int, queries: Words) -> int:
    """Compare the first answers with what a scan of everything says; returns how many pairs there were."""
    base = open_base(path)
    found = find_within(base.near, max_hamming, queries[:NUM_SAMPLED], np.ones(NUM_SAMPLED, bool))
    num_pairs = 0
    for place in range(NUM_SAMPLED):
        expected = np.flatnonzero(np.bitwise_count(base.columns.fingerprint ^ queries[place]) <= max_hamming)
        assert np.array_equal(np.sort(found.rows[found.starts[place] : found.starts[place + 1]]), expected), place
        num_pairs += len(expected)
    return num_pairs


def build(path: Path, num_rows: int, max_hamming: int) -> float:
    """Write a base; seconds without making up the documents."""
    part = documents(num_rows, np.random.default_rng(num_rows))
    with path.open("x+b") as file:
        start = time.perf_counter()
        write_base(file, [part], max_hamming)
        os.fsync(file.fileno())
    return time.perf_counter() - start


def measure(path: Path, max_hamming: int, built_s: float) -> None:
    open_s = median_seconds(lambda: open_base(path))
    base = open_base(path)
    rng = np.random.default_rng(1)
    queries = queries_for(base.columns.fingerprint, max_hamming, NUM_QUERIES, rng)
    wanted = np.ones(len(queries), bool)
    num_pairs = check_against_brute_force(path, max_hamming, queries)
    rate = len(queries) / median_seconds(lambda: find_within(base.near, max_hamming, queries, wanted), time.thread_time)
    tables = base.near
    num_compared = sum(tables.num_rows / (int(mask) + 1) for mask in tables.key_masks[tables.probe_tables])
    size_bytes = tables.starts.nbytes + tables.tags.nbytes + tables.rows.nbytes
    print(
        f"{base.num_rows:>12,}  k <= {max_hamming}: {rate:>11,.0f} queries/s  {len(tables.shifts)} tables; {len(tables.probe_tables):>3} probes and "
        f"{num_compared:>6,.0f} comparisons a query  {size_bytes / base.num_rows:5.1f} B per fingerprint, "
        f"{path.stat().st_size / base.num_rows:5.1f} B per document in the file  built in {built_s:6.2f} s  opened in {open_s * 1e3:6.1f} ms  "
        f"{NUM_SAMPLED} answers with {num_pairs} pairs are exact",
        flush=True,
    )


RECOVERY = """
import re, sys, time
from pathlib import Path
from pipelines.dedup.resolve import Resolver
from schemas.settings_dedup import DedupSettings
def own_mib(): return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024
Resolver(DedupSettings(), [])  # imports and compiled code are there
before, start = own_mib(), time.perf_counter()
resolver = Resolver(DedupSettings(), [Path(name) for name in sys.argv[2:]], base=Path(sys.argv[1]))
seconds = time.perf_counter() - start
print(f"{resolver.num_kept:>12,}  recovered in {seconds:.2f} s from a base and {len(sys.argv) - 2} segments, {own_mib() - before} MiB of its own")
"""


def measure_recovery(path: Path) -> None:
    """What a restarted process pays until its first answer, and the memory that it then holds."""
    num_rows = open_base(path).num_rows // GROWTH // NUM_SEGMENTS
    segments = [path.with_name(f"segment-{number}") for number in range(NUM_SEGMENTS)]
    for number, segment in enumerate(segments):
        part = documents(num_rows, np.random.default_rng(number))
        fixed = [fixed_size(part.columns.content_hash), fixed_size(part.columns.sketch)]
        arrays = [pa.array(part.columns.fingerprint), *fixed, part.doc_ids.cast(pa.string())]
        with pa.OSFile(str(segment), "wb") as sink, pa.ipc.new_file(sink, SEGMENT) as writer:
            writer.write_table(pa.table(arrays, schema=SEGMENT))
    for replayed in ([], segments):
        subprocess.run([sys.executable, "-c", RECOVERY, str(path), *map(str, replayed)], check=True)
    for segment in segments:
        segment.unlink()


def fixed_size(rows: npt.NDArray[Any]) -> pa.FixedSizeBinaryArray:
    """The bytes of each row."""
    width = rows.shape[1] * rows.itemsize
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(rows), [None, pa.py_buffer(np.ascontiguousarray(rows))])


def measure_peers(num_rows: int) -> None:
    rng = np.random.default_rng(num_rows)
    stored = rng.integers(0, 2**64, num_rows, dtype=np.uint64)
    asked = queries_for(stored, 3, 2_000, rng)
    measure_simhash(stored[: min(num_rows, 100_000)], asked)
    measure_faiss(stored, asked)


def measure_simhash(stored: Words, asked: Words) -> None:
    start = time.perf_counter()
    index = simhash.SimhashIndex([(str(row), simhash.Simhash(int(value))) for row, value in enumerate(stored)], k=3)
    built_s = time.perf_counter() - start
    probes = [simhash.Simhash(int(value)) for value in asked[:500]]
    rate = len(probes) / median_seconds(lambda: [index.get_near_dups(probe) for probe in probes])
    print(f"{len(stored):>12,}  k <= 3: {rate:>11,.0f} queries/s  simhash.SimhashIndex, built in {built_s:.2f} s", flush=True)


def measure_faiss(stored: Words, asked: Words) -> None:
    try:
        import faiss
    except ImportError:
        print("faiss is not installed: pip install faiss-cpu")
        return
    faiss.omp_set_num_threads(1)
    codes, probes = stored.view(np.uint8).reshape(-1, 8), asked.view(np.uint8).reshape(-1, 8)
    index = faiss.IndexBinaryMultiHash(64, 4, 16)
    start = time.perf_counter()
    index.add(codes)
    built_s = time.perf_counter() - start
    rate = len(probes) / median_seconds(lambda: index.range_search(probes, 4))  # its radius is exclusive
    print(
        f"{len(stored):>12,}  k <= 3: {rate:>11,.0f} queries/s  faiss {faiss.__version__} IndexBinaryMultiHash(64, 4, 16), built in {built_s:.2f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--num", default="1000000", help="sizes, separated by commas")
    parser.add_argument("--folder", type=Path, help="where the index files go for the time being: 140 bytes per fingerprint")
    arguments = parser.parse_args()
    sizes = [int(float(size)) for size in arguments.num.split(",")]
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, NumPy {np.__version__}, "
        f"Numba {numba.__version__}"
    )
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        build(Path(name) / "warm", 1_000, 3)  # compile
        for num_rows in sizes:
            for max_hamming in (3, 6):
                path = Path(name) / "base"
                built_s = build(path, num_rows, max_hamming)
                measure(path, max_hamming, built_s)
                if max_hamming == 6:
                    measure_recovery(path)
                path.unlink()
            if num_rows <= PEER_ROWS:
                measure_peers(num_rows)
    print(f"largest memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB, mapped files included")


if __name__ == "__main__":
    main()
