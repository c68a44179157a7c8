"""The pipeline beside datatrove and data-juicer in one run on one core: filters, near duplicates, tokenization, shards; filters on and off.

    python -m benchmarks.pipeline [--documents 4000] [--corpus FILE] [--repeats 3] [--data-juicer-python PATH] [--ray]

All sides get the same documents (every ``--step``-th of the corpus), one core (affinity) and one thread per library, each in a process of its
own. Wall seconds are what the caller waits, CPU seconds what the work costs: on a machine that does other work too, compare the latter.
Headrace is the median of ``--repeats`` runs, the others run once. Compiling, importing, loading tokenizers and word splitters, and a first run
over a few documents stand outside the clock on all sides. PII stays in on all sides, but for the run that is Headrace alone.

datatrove is shown as shipped, with its own word splitter for English (spaCy, if it is installed; the goal is against this), and with words
split at white space. data-juicer pins versions of its own, so it has an environment of its own: ``--data-juicer-python`` names its Python.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.corpus import CORPUS, ONE_THREAD, read_documents
from benchmarks.machine import machine, versions
from benchmarks.pipeline_ray import show as show_ray
from pipelines.tokenizers.tokenizer import train_tokenizer
from schemas.settings_data import TokenizerSettings

GOAL = 30
PACKAGES = ("numba", "polars", "pyarrow", "datatrove", "spacy", "tokenizers")
DATATROVE_STAGES = """\
    same in both: quality rules of the four sets, near duplicates, tokenization with the same tokenizer.json, token shards on disk
    headrace alone: Unicode normalization, mojibake, language, exact duplicates, an audit row per document, packing, files flushed to the disk
    datatrove alone: JSON Lines read and written between its stages
    near duplicates: datatrove's are MinHash (14 x 8, 5-grams), Headrace's SimHash and a sketch"""
DATA_JUICER_STAGES = """\
    same in both: filters on word count, repetition, special characters, letters, line lengths; near duplicates; what is kept on disk
    data-juicer has no tokenization: Headrace's is taken out of its time (packing and writing the tokens stays in)
    headrace alone: Unicode normalization, mojibake, language, exact duplicates, an audit row per document, files flushed to the disk
    data-juicer alone: JSON Lines read and written; left out there, because it downloads them: stop words, flagged words, language
    each with its own rules and limits: what they keep differs"""


def child(module: str, args: argparse.Namespace, tokenizer: Path, *flags: str, python: str = sys.executable) -> dict[str, Any]:
    """The result of one side."""
    options = {"corpus": args.corpus, "documents": args.documents, "step": args.step, "tokenizer": tokenizer}
    return run_child(module, *(f"--{name}={value}" for name, value in options.items()), *flags, python=python)


def run_child(module: str, *arguments: str, python: str = sys.executable) -> dict[str, Any]:
    """The last line that a module prints, run in a process of its own with one thread per library."""
    done = subprocess.run(
        [python, "-m", f"benchmarks.{module}", *arguments], env=os.environ | ONE_THREAD, capture_output=True, check=False, text=True
    )
    if done.returncode:
        raise SystemExit(f"{module} failed:\n{done.stderr[-4000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def headrace(args: argparse.Namespace, tokenizer: Path, *flags: str) -> dict[str, Any]:
    return child("pipeline_headrace", args, tokenizer, f"--repeats={args.repeats}", *flags)


def show(name: str, result: dict[str, Any]) -> None:
    number, size = result["documents"], result["megabytes"]
    wall_s, cpu_s = result["wall_s"], result["cpu_s"]
    wall = f"{number / wall_s:9,.0f} documents/s {size / wall_s:7.2f} MB/s (wall {wall_s:.2f} s)"
    print(f"{name:28} {wall}   {size / cpu_s:7.2f} MB/s of CPU ({cpu_s:.2f} s)", flush=True)


def show_parts(result: dict[str, Any]) -> None:
    """Where the time goes, and what that limits."""
    total, size = result["cpu_s"], result["megabytes"]
    for name, seconds in sorted(result["parts"].items(), key=lambda item: -item[1]):
        print(f"    {shortened(name):64} {seconds:8.3f} s CPU  {100 * seconds / total:5.1f} %  {size / max(seconds, 1e-3):9,.1f} MB/s")
    name, seconds = max(result["parts"].items(), key=lambda item: item[1])
    print(f"    the limit is {shortened(name)}: all else together would do {size / (total - seconds):.1f} MB/s")


def shortened(name: str) -> str:
    return name if len(name) <= 64 else f"{name[:29]} ... {name[-30:]}"


def own_split(args: argparse.Namespace, tokenizer: Path) -> None:
    """Headrace as it ships: where its time goes."""
    print("\n== Headrace alone with its default settings: own rules, PII redacted; CPU seconds by stage, MB/s as if there were no other")
    result = headrace(args, tokenizer, "--rules=own", "--pii")
    show("headrace", result)
    low, high = result["cpu_range_s"]
    print(f"    outcomes {result['outcomes']}; median of {args.repeats} runs of {low:.2f} to {high:.2f} s CPU")
    show_parts(result)


def beside_datatrove(args: argparse.Namespace, tokenizer: Path, *, filters: bool) -> None:
    kind = "with the filter set (Gopher quality and repetition, C4, FineWeb)" if filters else "without the filter set"
    print(f"\n== beside datatrove, {kind}: filters + near duplicates + tokenization + shards\n{DATATROVE_STAGES}")
    ours = headrace(args, tokenizer, f"--rules={'peers' if filters else 'none'}")
    show("headrace", ours)
    print(f"    outcomes {ours['outcomes']}")
    show_parts(ours)
    flags = ["--filters"] if filters else []
    if importlib.util.find_spec("spacy"):
        beside(ours, child("pipeline_datatrove", args, tokenizer, "--words=default", *flags), f"datatrove as shipped (goal: {GOAL} times)")
    else:
        print(f"spaCy is not installed: datatrove as shipped, which the goal of {GOAL} times is against, cannot run here (pip install spacy)")
    beside(ours, child("pipeline_datatrove", args, tokenizer, "--words=whitespace", *flags), "datatrove, white-space words")


def beside_data_juicer(args: argparse.Namespace, tokenizer: Path, *, filters: bool) -> None:
    print(f"\n== beside data-juicer, {'with' if filters else 'without'} filters: near duplicates, no tokenization\n{DATA_JUICER_STAGES}")
    ours = without_tokenization(headrace(args, tokenizer, f"--rules={'own' if filters else 'none'}"))
    show("headrace, not tokenizing", ours)
    print(f"    outcomes {ours['outcomes']}")
    show_parts(ours)
    flags = ["--filters"] if filters else []
    for duplicates in ("simhash", "minhash"):
        theirs = child("pipeline_datajuicer", args, tokenizer, f"--duplicates={duplicates}", *flags, python=args.data_juicer_python)
        beside(ours, theirs, f"data-juicer {theirs['version']}, {duplicates}")


def without_tokenization(result: dict[str, Any]) -> dict[str, Any]:
    """The same run less the time in its tokenizer."""
    parts = dict(result["parts"])
    cpu_s = parts.pop("tokenize")
    return result | {"parts": parts, "cpu_s": result["cpu_s"] - cpu_s, "wall_s": result["wall_s"] - result["tokenize_wall_s"]}


def beside(ours: dict[str, Any], theirs: dict[str, Any], name: str) -> None:
    """Another's result, and what it means for ours."""
    show(name, theirs)
    kept = f"documents left {theirs['outcomes']}; " if "outcomes" in theirs else ""
    print(f"    {kept}outside the clock: {theirs['start_s']:.2f} s CPU to start")
    show_parts(theirs)
    by_wall, by_cpu = theirs["wall_s"] / ours["wall_s"], theirs["cpu_s"] / ours["cpu_s"]
    print(f"--> headrace / {name}: {by_wall:.1f} times the documents per second by wall time, {by_cpu:.1f} times by CPU time", flush=True)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--corpus", type=Path, default=CORPUS)
    parser.add_argument("--documents", type=int, default=4000)
    parser.add_argument("--step", type=int, default=10, help="take every n-th document of the corpus")
    parser.add_argument("--repeats", type=int, default=3, help="runs of Headrace; the median is shown")
    here = sys.executable if importlib.util.find_spec("data_juicer") else None
    parser.add_argument("--data-juicer-python", metavar="PATH", default=here, help="Python of the environment that has py-data-juicer")
    parser.add_argument("--only", choices=["headrace", "datatrove", "data-juicer"], help="one comparison")
    parser.add_argument("--ray", action="store_true", help="measure Ray's overhead instead")
    parser.add_argument("--megabytes", type=float, default=200, help="text for --ray")
    return parser.parse_args()


def main() -> None:
    args = parsed()
    if not args.corpus.exists():
        print(f"no corpus in {args.corpus}: name one with --corpus")
        return
    print(f"{machine()}\n{versions(*PACKAGES)}")
    if args.ray:
        show_ray(run_child("pipeline_ray", f"--corpus={args.corpus}", f"--megabytes={args.megabytes}"))
        return
    print(f"every {args.step}th document of {args.corpus.name}, {args.documents:,} at most; one core, one thread")
    texts = [document["text"] for document in read_documents(args.corpus, number=4000, step=2 * args.step)]
    with tempfile.TemporaryDirectory() as folder:
        for name, data in train_tokenizer(texts, TokenizerSettings(vocab_size=16384)).items():
            (Path(folder) / name).write_bytes(data)
        compare(args, Path(folder))


def compare(args: argparse.Namespace, tokenizer: Path) -> None:
    """Each side that is here."""
    if args.only in (None, "headrace"):
        own_split(args, tokenizer)
    if args.only in (None, "datatrove"):
        if not importlib.util.find_spec("datatrove"):
            print("\ndatatrove is not installed: left out (make bench installs it)")
        else:
            for filters in (True, False):
                beside_datatrove(args, tokenizer, filters=filters)
    if args.only in (None, "data-juicer"):
        if not args.data_juicer_python:
            print("\ndata-juicer is not installed: left out; --data-juicer-python PATH names an environment with py-data-juicer")
            return
        for filters in (True, False):
            beside_data_juicer(args, tokenizer, filters=filters)


if __name__ == "__main__":
    main()
