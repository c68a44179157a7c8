"""What the ingesting process itself costs: the same stream is committed on Ray, written by this process and by tasks, in one run.

    python -m benchmarks.driver [--megabytes 100] [--rounds 3]

It shows the processor time of the ingesting process, all its threads, beside that of Ray's workers and Ray's own processes. A tokenizer is given,
so training one is not measured. Both ways take turns; the figures are medians. When tasks write, the ingesting process resolves duplicates,
plans, and runs Ray Data's executor; its share says how many cores it can keep busy.
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
TICKS = os.sysconf("SC_CLK_TCK")


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


def committed(settings: Settings, broker_pid: int) -> dict[str, float]:
    """Commit everything; processor seconds of this process and of the others, and seconds on the clock."""
    with Stream(settings) as stream:
        until = {partition: span.end for partition, span in stream.available().items()}
        start, own, others = time.perf_counter(), time.process_time(), cpu_of_the_others(broker_pid)
        while stream.commit_next(until):
            pass
        return {
            "driver_cpu_s": time.process_time() - own,
            "others_cpu_s": cpu_of_the_others(broker_pid) - others,
            "wall_s": time.perf_counter() - start,
        }


def measure(corpus: Path, megabytes: float, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base: dict[str, Any] = {"root": name, "kafka.num_partitions": 2, "tokenizer.vocab_size": 8192, "ray.dashboard_port": 0, "ray.num_cpus": 2}
        with start_broker(load_settings("", {}, base), listen="127.0.0.1:0", root=folder / "broker") as broker:
            base["kafka.bootstrap_servers"] = broker.bootstrap_servers
            settings = load_settings("", {}, base)
            _, size = publish(settings, corpus, megabytes)
            base["tokenizer.path"] = str(folder / write_tokenizer(folder, texts_of(corpus), settings.tokenizer).path)
            runs: dict[str, list[dict[str, float]]] = {writer: [] for writer in WRITERS}
            with ray_session(settings.ray):
                for number in range(rounds + 1):  # the first round starts the workers and does not count
                    for writer in WRITERS:
                        root = {"root": str(folder / f"{writer}-{number}"), "ingest.writer": writer}
                        runs[writer].append(committed(load_settings("", {}, base | root), broker.pid))
    return {"machine": machine(), "megabytes": size, **{writer: _medians(found[1:]) for writer, found in runs.items()}}


def _medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {name: median(run[name] for run in runs) for name in runs[0]}


def show(result: dict[str, Any]) -> None:
    """Print both ways side by side."""
    for writer in WRITERS:
        own, others, wall = (result[writer][name] for name in ("driver_cpu_s", "others_cpu_s", "wall_s"))
        per_gb = own / result["megabytes"] * 1000
        print(
            f"written by {writer:8} ingesting process {per_gb:6.1f} s of CPU per GB, {100 * own / (own + others):5.1f} % of all; wall {wall:6.1f} s"
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--corpus", type=Path, default=CORPUS)
    parser.add_argument("--megabytes", type=float, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    result = measure(args.corpus, args.megabytes, args.rounds)
    show(result)
    say(result)


if __name__ == "__main__":
    main()
