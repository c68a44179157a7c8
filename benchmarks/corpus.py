"""The documents that the benchmarks read: the test corpus, or any JSON Lines file (zstd or plain) with a ``text`` in each line."""

import argparse
import io
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import zstandard

CORPUS = Path(__file__).parents[2] / "shared" / "corpus" / "documents.jsonl.zst"
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS", "RAYON_NUM_THREADS", "NUMBA_NUM_THREADS")
ONE_THREAD = dict.fromkeys(_THREADS, "1") | {"TOKENIZERS_PARALLELISM": "false"}
"""Environment under which every library keeps to one thread."""


def read_documents(path: Path, first: int = 0, number: int | None = None, step: int = 1) -> list[dict[str, Any]]:
    """Every ``step``-th document from number ``first`` on, at most ``number`` of them."""
    return list(itertools.islice(_lines(path), first, None if number is None else first + number * step, step))


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        stream = zstandard.ZstdDecompressor().stream_reader(file) if path.suffix == ".zst" else file
        for line in io.TextIOWrapper(stream, encoding="utf-8"):
            yield json.loads(line)


def num_megabytes(documents: list[dict[str, Any]]) -> float:
    """Size of the texts in UTF-8."""
    return sum(len(document["text"].encode()) for document in documents) / 1e6


def keep_to_one_core() -> None:
    """This process and its children run on one core from now on."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def pipeline_parser() -> argparse.ArgumentParser:
    """What benchmarks/pipeline.py tells each side."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--documents", type=int)
    parser.add_argument("--step", type=int)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--filters", action="store_true", help="with the filter set of this side")
    return parser


def say(result: Mapping[str, Any]) -> None:
    """What a child process tells the benchmark: its last line."""
    print(json.dumps(result), flush=True)
