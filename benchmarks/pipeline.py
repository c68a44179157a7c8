"""The pipeline beside datatrove in one run on one core: filters, near duplicates, tokenization, shards; with the filter set and without.

    python -m benchmarks.pipeline [--documents 4000] [--corpus FILE] [--repeats 3] [--ray]

Both sides get the same documents (every ``--step``-th of the corpus), the same tokenizer.json, one core (affinity) and one thread per
library, each in a process of its own. Wall seconds are what the caller waits, CPU seconds what the work costs: on a machine that does other
work too, compare the latter. Headrace does more in its time: Unicode normalization, mojibake, language, an audit row for every document,
files that are durable. datatrove is shown twice: as shipped, with its own word splitter for English (spaCy, if it is installed; the goal is
against this), and with words split at white space. Compiling, loading tokenizers and word splitters stand outside the clock on both sides,
and neither looks for personal data.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.corpus import CORPUS, ONE_THREAD, read_documents
from benchmarks.pipeline_ray import show as show_ray
from pipelines.tokenizer import train_tokenizer
from schemas.settings_data import TokenizerSettings

GOAL = 30


def child(module: str, args: argparse.Namespace, tokenizer: Path, *flags: str) -> dict[str, Any]:
    """The result of one side."""
    options = {"corpus": args.corpus, "documents": args.documents, "step": args.step, "tokenizer": tokenizer}
    return run_child(module, *(f"--{name}={value}" for name, value in options.items()), *flags)


def run_child(module: str, *arguments: str) -> dict[str, Any]:
    """The last line that a module prints, run in a process of its own with one thread per library."""
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", *arguments], env=os.environ | ONE_THREAD, capture_output=True, check=False, text=True
    )
    if done.returncode:
        raise SystemExit(f"{module} failed:\n{done.stderr[-4000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def median_of(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The run with the median CPU time."""
    middle = statistics.median_low(result["cpu_s"] for result in results)
    return next(result for result in results if result["cpu_s"] == middle)


def show(name: str, result: dict[str, Any]) -> None:
    number, size = result["documents"], result["megabytes"]
    wall_s, cpu_s = result["wall_s"], result["cpu_s"]
    wall = f"{number / wall_s:9,.0f} documents/s {size / wall_s:7.2f} MB/s (wall {wall_s:.2f} s)"
    print(f"{name:20} {wall}   {size / cpu_s:7.2f} MB/s of CPU ({cpu_s:.2f} s)")


def show_parts(result: dict[str, Any]) -> None:
    total = result["cpu_s"]
    for name, seconds in sorted(result["parts"].items(), key=lambda item: -item[1]):
        print(f"    {name[:80]:44} {seconds:8.3f} s CPU  {100 * seconds / total:5.1f} %  {result['megabytes'] / max(seconds, 1e-9):9.1f} MB/s")
    name, seconds = max(result["parts"].items(), key=lambda item: item[1])
    print(f"    the limit is {name}: without it {result['megabytes'] / (total - seconds):.1f} MB/s")


def compare(args: argparse.Namespace, tokenizer: Path, *, filters: bool) -> None:
    flags = ["--filters"] if filters else []
    print(f"\n== {'with' if filters else 'without'} the filter set (Gopher quality and repetition, C4, FineWeb)")
    ours = median_of([child("pipeline_headrace", args, tokenizer, *flags) for _ in range(args.repeats)])
    show("headrace", ours)
    print(f"    outcomes {ours['outcomes']}")
    show_parts(ours)
    if not importlib.util.find_spec("datatrove"):
        print("datatrove is not installed: left out")
        return
    if importlib.util.find_spec("spacy"):
        beside(ours, child("pipeline_datatrove", args, tokenizer, "--words=default", *flags), f"as shipped (the goal: {GOAL} times)")
    else:
        print("spaCy is not installed: datatrove as shipped cannot run here")
    beside(ours, child("pipeline_datatrove", args, tokenizer, "--words=whitespace", *flags), "with words split at white space")


def beside(ours: dict[str, Any], theirs: dict[str, Any], how: str) -> None:
    """datatrove's result, and what it means for ours."""
    show("datatrove", theirs)
    print(f"    {how}; to start took it {theirs['start_s']:.2f} s more")
    show_parts(theirs)
    by_wall, by_cpu = theirs["wall_s"] / ours["wall_s"], theirs["cpu_s"] / ours["cpu_s"]
    print(f"headrace / datatrove {how}: {by_wall:.1f} times the documents per second by wall time, {by_cpu:.1f} times by CPU time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--corpus", type=Path, default=CORPUS)
    parser.add_argument("--documents", type=int, default=4000)
    parser.add_argument("--step", type=int, default=10, help="take every n-th document of the corpus")
    parser.add_argument("--repeats", type=int, default=3, help="runs of Headrace; the median is shown")
    parser.add_argument("--ray", action="store_true", help="measure Ray's overhead instead")
    parser.add_argument("--megabytes", type=float, default=200, help="text for --ray")
    args = parser.parse_args()
    if not args.corpus.exists():
        print(f"no corpus in {args.corpus}: name one with --corpus")
        return
    if args.ray:
        show_ray(run_child("pipeline_ray", f"--corpus={args.corpus}", f"--megabytes={args.megabytes}"))
        return
    texts = [document["text"] for document in read_documents(args.corpus, number=4000, step=2 * args.step)]
    with tempfile.TemporaryDirectory() as folder:
        for name, data in train_tokenizer(texts, TokenizerSettings(vocab_size=16384)).items():
            (Path(folder) / name).write_bytes(data)
        for filters in (True, False):
            compare(args, Path(folder), filters=filters)


if __name__ == "__main__":
    main()
