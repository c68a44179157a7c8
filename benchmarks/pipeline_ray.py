"""Ray's price: the same slices from an embedded broker, prepared in this process and by Ray, on one core and on two.

    python -m benchmarks.pipeline --ray [--megabytes 200]

All runs use the product's own runners (pipelines/ingest/job.py) and read the same offsets; each is warmed up with the first slices, so that
starting Ray and compiling are not counted. On one core means everything on it: the broker, this process, and Ray's own processes. Beside them
a run of Ray with one task at a time on two cores, where all but the task can use the second core.
"""

import argparse
import itertools
import json
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from benchmarks.corpus import CORPUS, read_documents, say
from pipelines.dedup.paragraphs import EMPTY
from pipelines.ingest.job import Runner, run_local, run_ray
from pipelines.kafka.clients import open_producer
from pipelines.kafka.planning import plan_ranges
from pipelines.kafka.reading import Slice, slices
from pipelines.kafka.topics import ensure_topics, topic_names
from pipelines.runtime.cluster import ray_session
from pipelines.tokenizers.tokenizer import write_tokenizer
from schemas.manifest import TokenizerRef
from schemas.settings import Settings
from schemas.settings_sources import load_settings
from tests.broker_process import start_broker

WARM_UP_SLICES = 2
RUNS: tuple[tuple[str, Runner, int, int], ...] = (
    ("one process, one core", run_local, 1, 1),
    ("one process, two cores", run_local, 1, 2),
    ("Ray, one core", run_ray, 1, 1),
    ("Ray, two cores, one task at a time", run_ray, 1, 2),
    ("Ray, two cores", run_ray, 2, 2),
)
"""Name, runner, Ray's logical CPUs, cores for everything together."""


def publish(settings: Settings, corpus: Path, megabytes: float) -> tuple[list[Slice], float]:
    """Fill the documents topic; the slices of it, and the megabytes of text in them."""
    ensure_topics(settings)
    topic = topic_names(settings).documents
    size = 0
    with open_producer(settings) as producer:
        for number, document in enumerate(itertools.cycle(read_documents(corpus))):
            if size >= megabytes * 1e6:
                break
            size += len(document["text"].encode())
            value = json.dumps({"id": f"{number}", "text": document["text"]}, ensure_ascii=False).encode()
            producer.send(topic, value=value, partition=number % settings.kafka.num_partitions)
        producer.flush()
    ranges = plan_ranges(settings, topic, {}, 10**9)
    return slices(topic, ranges, settings.ingest.slice_records), size / 1e6


def timed(runner: Runner, parts: list[Slice], settings: Settings, ref: TokenizerRef) -> dict[str, float]:
    """Seconds for all slices, after a few to warm up."""
    warm_up = [part for _, group in itertools.groupby(parts, lambda part: part.partition) for part in itertools.islice(group, WARM_UP_SLICES)]
    for _ in runner(warm_up, settings, ref, EMPTY.hashes):
        pass
    start, start_cpu = time.perf_counter(), time.process_time()
    num_rows = sum(len(block) for block in runner(parts, settings, ref, EMPTY.hashes))
    return {"wall_s": time.perf_counter() - start, "driver_cpu_s": time.process_time() - start_cpu, "rows": num_rows}


def measure(corpus: Path, megabytes: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        base: dict[str, Any] = {"root": name, "kafka.num_partitions": 2, "tokenizer.vocab_size": 8192, "ray.dashboard_port": 0}
        with start_broker(load_settings("", {}, base), listen="127.0.0.1:0", root=Path(name, "broker")) as broker:
            base["kafka.bootstrap_servers"] = broker.bootstrap_servers
            settings = load_settings("", {}, base)
            parts, size = publish(settings, corpus, megabytes)
            ref = write_tokenizer(Path(name), texts_of(corpus), settings.tokenizer)
            result: dict[str, Any] = {"megabytes": size, "slices": len(parts)}
            for title, runner, num_cpus, cores in RUNS:
                with on_cores(broker.pid, cores), ray_session(settings.ray.model_copy(update={"num_cpus": num_cpus})):
                    result[title] = timed(runner, parts, settings, ref)
    return result


@contextmanager
def on_cores(broker_pid: int, number: int) -> Iterator[None]:
    """All threads of this process and of the broker, and what they start, on the first ``number`` of the cores that they have."""
    cores = os.sched_getaffinity(0)
    _move((os.getpid(), broker_pid), set(sorted(cores)[:number]))
    try:
        yield
    finally:
        _move((os.getpid(), broker_pid), cores)


def _move(processes: Iterable[int], cores: set[int]) -> None:
    for process in processes:
        for thread in Path(f"/proc/{process}/task").iterdir():
            with suppress(ProcessLookupError):  # it has ended meanwhile
                os.sched_setaffinity(int(thread.name), cores)


def texts_of(corpus: Path) -> Iterator[str]:
    return (document["text"] for document in read_documents(corpus, number=3000, step=25))


def show(result: dict[str, Any]) -> None:
    """Side by side, with the two ratios that matter."""
    for name, *_ in RUNS:
        seconds = result[name]["wall_s"]
        print(f"{name:40} {result['megabytes'] / seconds:7.2f} MB/s  {result[name]['rows'] / seconds:8,.0f} documents/s  wall {seconds:7.2f} s")
    local_s, local_two_s, ray_s, ray_one_task_s, ray_two_s = (result[name]["wall_s"] for name, *_ in RUNS)
    for where, overhead in (("on one core", ray_s / local_s), ("on two cores with one task at a time", ray_one_task_s / local_two_s)):
        print(f"Ray's overhead {where}: {100 * (overhead - 1):.1f} % (goal <= 15 %)")
    print(f"two cores: {ray_s / ray_two_s:.2f} times one with Ray, {local_s / ray_two_s:.2f} times one process on one (goal >= 1.7)")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--corpus", type=Path, default=CORPUS)
    parser.add_argument("--megabytes", type=float, default=200)
    args = parser.parse_args()
    say(measure(args.corpus, args.megabytes))


if __name__ == "__main__":
    main()
