"""Memory while a backlog is taken in: `headrace ingest --once` on so many gigabytes that wait in Kafka, with both runners.

    python -m benchmarks.backlog [--gb 2] [--brokers embedded,apache] [--runners local,ray] [--json]

The memory of the ingesting process and everything it started is sampled twice a second: ``PSS`` counts a page that k processes share as one
k-th in each, so the sum is what the machine gives; ``RSS`` counts it k times and is what `top` adds up to. Bounded memory means that the
peak of the last tenth of the run is about that of the first half, however much waits. Documents are words drawn at random, so none is a
duplicate and the index of kept documents grows as fast as it can. Apache Kafka takes part where ../shared/kafka is.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ops.broker.app import start_broker
from ops.cli.output import print_json, say
from pipelines.kafka.clients import open_producer
from pipelines.kafka.topics import ensure_topics, topic_names
from schemas.settings import Settings
from schemas.settings_sources import load_settings
from tests.apache_kafka import KAFKA, running_apache_kafka

DOCUMENT_WORDS = 300
VOCABULARY = 20_000
SAMPLE_EVERY_S = 0.5


class Sample(NamedTuple):
    """Memory of a process tree at one moment, in megabytes."""

    at_s: float
    rss_mb: float
    pss_mb: float


def publish(settings: Settings, num_bytes: float, seed: int = 0) -> tuple[int, int]:
    """Fill the documents topic with unlike documents; their number and bytes."""
    ensure_topics(settings)
    topic, rng = topic_names(settings).documents, np.random.default_rng(seed)
    letters = rng.integers(97, 123, (VOCABULARY, 12), np.uint8)
    words = np.array([bytes(row[: 2 + number % 10]).decode() for number, row in enumerate(letters)])
    size, number = 0, 0
    with open_producer(settings, linger_ms=50, batch_size=2**18) as producer:
        while size < num_bytes:
            text = " ".join(words[rng.zipf(1.3, DOCUMENT_WORDS) % VOCABULARY])
            value = json.dumps({"id": f"d{number}", "text": text}).encode()
            producer.send(topic, value=value, partition=number % settings.kafka.num_partitions)
            size, number = size + len(value), number + 1
        producer.flush()
    return number, size


def tree(pid: int) -> list[int]:
    """The process and all that it started."""
    found, waiting = [], [pid]
    while waiting:
        parent = waiting.pop()
        found.append(parent)
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                waiting += map(int, children.read_text().split())
            except OSError:
                continue
    return found


def memory(pid: int, at_s: float) -> Sample:
    """RSS and PSS of the tree; processes that end meanwhile count nothing."""
    totals = {"Rss": 0, "Pss": 0}
    for member in tree(pid):
        try:
            lines = Path(f"/proc/{member}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, rest = line.partition(":")
            if name in totals:
                totals[name] += int(rest.split()[0])
    return Sample(at_s, totals["Rss"] / 1024, totals["Pss"] / 1024)


def ingest(values: Mapping[str, Any]) -> dict[str, Any]:
    """Take in the backlog with the real command; what it says, and the samples."""
    command = [sys.executable, "-m", "ops.cli.main", "ingest", "--once", "--json"]
    for name, value in values.items():
        command += ["--set", f"{name}={value}"]
    samples, start = [], time.monotonic()
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(command, stdout=output)
        while child.poll() is None:
            samples.append(memory(child.pid, time.monotonic() - start))
            time.sleep(SAMPLE_EVERY_S)
        if child.returncode:
            raise SystemExit(f"ingest ended with {child.returncode}")
        output.seek(0)
        versions = json.load(output)["versions"]
    return {"wall_s": time.monotonic() - start, "versions": versions, "samples": samples}


def summarized(runner: str, broker: str, done: dict[str, Any]) -> dict[str, Any]:
    """One line of the table."""
    samples, versions = done["samples"], done["versions"]
    commit_s = sum(version["times"]["commit_s"] for version in versions)
    size_mb = sum(version["times"]["size_bytes"] for version in versions) / 1e6
    num_records = sum(version["num_records"] for version in versions)
    first_half, last_tenth = samples[: len(samples) // 2], samples[-max(1, len(samples) // 10) :]
    freshness = versions[-1]["times"]["freshness_s"]
    return {
        "broker": broker,
        "runner": runner,
        "gigabytes": size_mb / 1e3,
        "versions": len(versions),
        "wall_s": done["wall_s"],
        "records_per_s": num_records / commit_s,
        "megabytes_per_s": size_mb / commit_s,
        "peak_rss_mb": max(sample.rss_mb for sample in samples),
        "peak_pss_mb": max(sample.pss_mb for sample in samples),
        "first_half_peak_pss_mb": max((sample.pss_mb for sample in first_half), default=0.0),
        "last_tenth_peak_pss_mb": max(sample.pss_mb for sample in last_tenth),
        "pss_mb_over_time": [round(sample.pss_mb) for sample in samples[:: max(1, len(samples) // 24)]],
        "oldest_record_committed_after_s": freshness["max"] if freshness else None,
    }


def show(line: dict[str, Any]) -> None:
    """For people."""
    print(
        f"{line['broker']:9} {line['runner']:6} {line['gigabytes']:5.2f} GB in {line['versions']} versions, {line['wall_s']:6.0f} s: "
        f"{line['records_per_s']:8,.0f} records/s {line['megabytes_per_s']:6.2f} MB/s; peak RSS {line['peak_rss_mb']:6,.0f} MB, "
        f"PSS {line['peak_pss_mb']:6,.0f} MB (first half {line['first_half_peak_pss_mb']:,.0f}, last tenth {line['last_tenth_peak_pss_mb']:,.0f})"
    )
    print(f"{'':17}PSS in MB over time: {' '.join(map(str, line['pss_mb_over_time']))}", flush=True)


@contextmanager
def running(broker: str, folder: Path) -> Iterator[str]:
    """A broker's address."""
    if broker == "apache":
        with running_apache_kafka(folder) as apache:
            yield apache.bootstrap_servers
    else:
        with start_broker(Settings(), listen="127.0.0.1:0", data_dir=folder) as embedded:
            yield embedded.bootstrap_servers


def measure(broker: str, runners: list[str], num_bytes: float) -> Iterator[dict[str, Any]]:
    """Each runner on the same backlog, into datasets of their own."""
    with tempfile.TemporaryDirectory() as name, running(broker, Path(name, "broker")) as servers:
        common = {"kafka.bootstrap_servers": servers, "kafka.num_partitions": 2, "ray.dashboard_port": 0}
        say(f"{broker}: publishing {num_bytes / 1e9:.2f} GB")
        publish(load_settings("", {}, {**common, "root": name}), num_bytes)
        for runner in runners:
            root = Path(name, runner)
            root.mkdir()
            yield summarized(runner, broker, ingest({**common, "root": str(root), "ingest.runner": runner}))
            shutil.rmtree(root)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=2.0)
    parser.add_argument("--brokers", default="embedded,apache" if (KAFKA / "start").is_file() else "embedded")
    parser.add_argument("--runners", default="local,ray")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    lines = []
    for broker in args.brokers.split(","):
        for line in measure(broker, args.runners.split(","), args.gb * 1e9):
            lines.append(line)
            if not args.json:
                show(line)
    if args.json:
        print_json({"runs": lines})


if __name__ == "__main__":
    main()
