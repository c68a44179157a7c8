"""What the ingesting process itself costs: the same streams are committed on Ray, written by this process and by tasks, in one run.

    python -m benchmarks.driver [--megabytes 120] [--rounds 3]

It shows the processor time of the ingesting process, all its threads, beside that of Ray's workers and Ray's own processes. A tokenizer is given,
so training one is not measured. Both ways take turns; the figures are medians. Each commits a quarter of the documents and all of them, in one
version each. From both sizes together follows what each further GB costs, without what a version costs however small it is (a topic to ask for, a
manifest to write, Ray Data to start): that figure says how many cores one ingesting process can keep busy. Of it the part of the main thread is
Headrace's own work; the rest is Ray's.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.corpus import CORPUS, say
from benchmarks.machine import machine
from benchmarks.pipeline_ray import publish, texts_of
from pipelines.ingest.stream import Stream
from pipelines.runtime.cluster import ray_session
from pipelines.tokenizers.tokenizer import write_tokenizer
from schemas.settings import Settings
from schemas.settings_sources import load_settings
from tests.broker_process import start_broker

WRITERS = ("driver", "tasks")
SIZES = {"part": 0.25, "whole": 1.0}
TICKS = os.sysconf("SC_CLK_TCK")
Figures = dict[str, float]


def cpu_of_the_others(broker_pid: int) -> float:
    """Processor seconds of all descendants of this process except the broker."""
    children: dict[int, list[tuple[int, float]]] = {}
    for pid, parent, seconds in _processes():
        children.setdefault(parent, []).append((pid, seconds))
    total, waiting = 0.0, [os.getpid()]
    while waiting:
        for pid, seconds in children.get(waiting.pop(), []):
            if pid != broker_pid:
                total += seconds
                waiting.append(pid)
    return total


def _processes() -> Iterator[tuple[int, int, float]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            yield int(entry.name), int(fields[1]), (int(fields[11]) + int(fields[12])) / TICKS


def committed(settings: Settings, broker_pid: int) -> Figures:
    """Commit everything; processor seconds of this process, of its main thread and of the others, and seconds on the clock."""
    with Stream(settings) as stream:
        until = {partition: span.end for partition, span in stream.available().items()}
        start, own, main_thread, others = time.perf_counter(), time.process_time(), time.thread_time(), cpu_of_the_others(broker_pid)
        while stream.commit_next(until):
            pass
        return {
            "driver_cpu_s": time.process_time() - own,
            "main_thread_cpu_s": time.thread_time() - main_thread,
            "others_cpu_s": cpu_of_the_others(broker_pid) - others,
            "wall_s": time.perf_counter() - start,
        }


def measure(corpus: Path, megabytes: float, rounds: int, writers: tuple[str, ...] = WRITERS) -> dict[str, Any]:
    """For each writer and size the medians, and for each size its megabytes and blocks."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base: dict[str, Any] = {"root": name, "kafka.num_partitions": 2, "tokenizer.vocab_size": 8192, "ray.dashboard_port": 0, "ray.num_cpus": 2}
        base |= {"ingest.max_batch_records": 10**9, "ingest.max_batch_bytes": 2**50}  # one version
        with start_broker(load_settings("", {}, base), listen="127.0.0.1:0", root=folder / "broker") as broker:
            base["kafka.bootstrap_servers"] = broker.bootstrap_servers
            topics = {size: {"kafka.topic_prefix": size} for size in SIZES}
            published = {size: publish(load_settings("", {}, base | topics[size]), corpus, share * megabytes) for size, share in SIZES.items()}
            base["tokenizer.path"] = str(folder / write_tokenizer(folder, texts_of(corpus), load_settings("", {}, base).tokenizer).path)
            runs: dict[tuple[str, str], list[Figures]] = {(writer, size): [] for writer in writers for size in SIZES}
            with ray_session(load_settings("", {}, base).ray):
                for number in range(rounds + 1):  # the first round starts the workers and does not count
                    for (writer, size), found in runs.items():
                        root = {"root": str(folder / f"{writer}-{size}-{number}"), "ingest.writer": writer}
                        found.append(committed(load_settings("", {}, base | topics[size] | root), broker.pid))
    sizes = {size: {"megabytes": written, "blocks": len(parts)} for size, (parts, written) in published.items()}
    return {"machine": machine(), **sizes, "runs": {writer: {size: _medians(runs[writer, size][1:]) for size in SIZES} for writer in writers}}


def _medians(runs: list[Figures]) -> Figures:
    return {name: median(run[name] for run in runs) for name in runs[0]}


def further_gb(result: dict[str, Any], writer: str) -> Figures:
    """What each GB costs beyond the smaller size."""
    small, large = (result["runs"][writer][size] for size in SIZES)
    gigabytes = (result["whole"]["megabytes"] - result["part"]["megabytes"]) / 1000
    return {name: (large[name] - small[name]) / gigabytes for name in small}


def show(result: dict[str, Any]) -> None:
    """Print both ways side by side."""
    for writer in result["runs"]:
        whole, further = result["runs"][writer]["whole"], further_gb(result, writer)
        per_gb = {name: seconds / result["whole"]["megabytes"] * 1000 for name, seconds in whole.items()}
        for title, figures in (("per GB", per_gb), ("per further GB", further)):
            own, main_thread, others = (figures[name] for name in ("driver_cpu_s", "main_thread_cpu_s", "others_cpu_s"))
            print(
                f"written by {writer:7} {title:15} ingesting process {own:6.1f} s of CPU (main thread {main_thread:5.1f}), "
                f"{100 * own / (own + others):5.1f} % of all; wall {figures['wall_s']:6.1f} s"
            )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--corpus", type=Path, default=CORPUS)
    parser.add_argument("--megabytes", type=float, default=120)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    result = measure(args.corpus, args.megabytes, args.rounds)
    show(result)
    say(result)


if __name__ == "__main__":
    main()
