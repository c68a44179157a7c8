"""data-juicer's half of benchmarks/pipeline.py: its text filters and its near duplicates, one process, in the environment that has it.

Its operators run as its own executor runs them: JSON Lines loaded, stages that share words fused, one operator after the other over the whole
dataset, JSON Lines exported. The executor's job records and monitors are left out, for they would only cost it time. All limits are its
defaults. Importing it and a first run over a few documents stand outside the clock.

Its environment needs, besides ``py-data-juicer``: ``aiohttp av scipy simhash-pybind``, and a torch without GPU libraries. It says so of none of
them, but installs what it misses while it runs; here that is refused.
"""

import argparse
import importlib
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.corpus import keep_to_one_core, num_megabytes, pipeline_parser, read_documents, say

FILTERS = (
    "words_num_filter",
    "word_repetition_filter",
    "character_repetition_filter",
    "special_characters_filter",
    "alphanumeric_filter",
    "average_line_length_filter",
    "maximum_line_length_filter",
)
"""What of its filters reads nothing but the text. Stop words, flagged words and languages need lists and a model that it downloads."""
NUM_WARM_UP = 100


def cpu_seconds() -> float:
    """Of this process and of the children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def refuse_to_install() -> None:
    """It installs what it misses while it runs, a build of torch for GPUs among it: nothing that a benchmark may do to a machine."""

    def refused(package: str, *_: Any) -> None:
        raise ImportError(f"data-juicer wants to install {package}: install it in its environment first")

    importlib.import_module("data_juicer.utils.lazy_loader").LazyLoader._install_package = refused


def operators(duplicates: str, *, filters: bool) -> list[Any]:
    """In the order in which its fusion puts them."""
    names = [*(FILTERS if filters else ()), f"document_{duplicates}_deduplicator"]
    loaded = importlib.import_module("data_juicer.ops").load_ops([{name: {"num_proc": 1, "auto_op_parallelism": False}} for name in names])
    fused: list[Any] = importlib.import_module("data_juicer.ops.op_fusion").fuse_operators(loaded)
    for operator in fused:
        operator.auto_op_parallelism, operator.num_proc = False, None  # in this process: 1 would start a pool of one, which costs more
    return fused


def run(documents: list[dict[str, Any]], folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """From one JSON Lines file to another."""
    folder.mkdir()
    lines = (json.dumps({"id": document["id"], "text": document["text"]}, ensure_ascii=False) + "\n" for document in documents)
    (folder / "input.jsonl").write_text("".join(lines), "utf-8")
    steps = operators(args.duplicates, filters=args.filters)
    start, start_cpu = time.perf_counter(), cpu_seconds()
    loaded = importlib.import_module("datasets").load_dataset(
        "json", data_files=str(folder / "input.jsonl"), split="train", cache_dir=str(folder / "cache")
    )
    dataset = importlib.import_module("data_juicer.core.data").NestedDataset(loaded)
    parts, left = {"load JSON Lines": cpu_seconds() - start_cpu}, {}
    for step in steps:
        began = cpu_seconds()
        dataset = step.run(dataset)
        parts[step._name] = cpu_seconds() - began
        left[step._name] = len(dataset)
    began = cpu_seconds()
    importlib.import_module("data_juicer.core.exporter").Exporter(str(folder / "out" / "kept.jsonl"), num_proc=1).export(dataset)
    parts["export JSON Lines"] = cpu_seconds() - began
    return {"wall_s": time.perf_counter() - start, "cpu_s": cpu_seconds() - start_cpu, "parts": parts, "outcomes": left}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    began = cpu_seconds()
    importlib.import_module("datasets").disable_progress_bars()
    package = importlib.import_module("data_juicer")
    refuse_to_install()
    importlib.import_module("loguru").logger.remove()
    documents = read_documents(args.corpus, number=args.documents, step=args.step)
    with tempfile.TemporaryDirectory() as folder:
        run(documents[:NUM_WARM_UP], Path(folder, "warm-up"), args)
        start_s = cpu_seconds() - began
        result = run(documents, Path(folder, "run"), args)
    about = {"version": package.__version__, "start_s": start_s, "documents": len(documents), "megabytes": num_megabytes(documents)}
    return about | result


def main() -> None:
    parser = pipeline_parser()
    parser.add_argument("--duplicates", choices=["simhash", "minhash"], default="simhash")
    keep_to_one_core()
    say(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
