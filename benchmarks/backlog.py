"""Memory while a backlog is taken in: `headrace ingest --once` on so many gigabytes that wait in Kafka, with both runners.

    python -m benchmarks.backlog [--gb 2] [--brokers embedded,apache] [--runners local,ray] [--json]

The memory of the ingesting process and everything it started is sampled once a second, as PSS: a page that k processes share counts as one
k-th in each, so the sum is what the machine gives. It is told by role (the ingesting process, Ray's workers and its own processes) and by
kind: anonymous memory is what a process holds for itself; shared is Ray's object store; files are mapped and can be dropped at any time.
Bounded memory means that what the last tenth of the run holds is about what the first half held, however much waits, but for the index of
kept documents, which grows with them. Documents are lines of real ones, drawn anew, so nearly all are kept and the index grows as fast as
it can. Apache Kafka takes part where ../shared/kafka is.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks.mixed import mixed
from ops.cli.output import print_json, say
from pipelines.kafka.clients import open_producer
from pipelines.kafka.topics import ensure_topics, topic_names
from schemas.settings import Settings
from schemas.settings_sources import load_settings
from tests.apache_kafka import KAFKA, running_apache_kafka
from tests.broker_process import start_broker

SAMPLE_EVERY_S = 1.0
KINDS = {"Pss_Anon": "anonymous", "Pss_File": "file", "Pss_Shmem": "shared"}


class Sample(NamedTuple):
    """Memory of a process tree at one moment, in megabytes of PSS."""

    at_s: float
    parts: dict[str, float]
    """By role and kind: ``ingest/anonymous``, ``worker/shared``, …"""
    num_processes: int

    @property
    def pss_mb(self) -> float:
        """All of it."""
        return sum(self.parts.values())

    def of(self, kind: str) -> float:
        """One kind, all roles."""
        return sum(size for name, size in self.parts.items() if name.endswith(f"/{kind}"))


def publish(settings: Settings, num_bytes: float, seed: int = 0) -> tuple[int, int]:
    """Fill the documents topic with unlike documents; their number and bytes."""
    ensure_topics(settings)
    topic, rng = topic_names(settings).documents, random.Random(seed)
    size, number = 0, 0
    with open_producer(settings, linger_ms=50, batch_size=2**18) as producer:
        while size < num_bytes:
            value = json.dumps({"id": f"d{number}", "text": mixed(rng, 3, 40)}, ensure_ascii=False).encode()
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


def role(pid: int, ancestor: int) -> str:
    """``ingest``, ``worker`` (Ray's processes that run tasks, busy or idle), ``raylet``, ``gcs_server``, or ``other`` of Ray's own."""
    if pid == ancestor:
        return "ingest"
    command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    if command.startswith("ray::"):
        return "worker"
    name = command.split(" ")[0].rpartition("/")[2]
    return name if name in ("raylet", "gcs_server") else "other"


def memory(pid: int, at_s: float) -> Sample:
    """Of the tree; processes that end meanwhile count nothing."""
    parts: defaultdict[str, float] = defaultdict(float)
    members = tree(pid)
    for member in members:
        try:
            name, lines = role(member, pid), Path(f"/proc/{member}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            kind, _, rest = line.partition(":")
            if kind in KINDS:
                parts[f"{name}/{KINDS[kind]}"] += int(rest.split()[0]) / 1024
    return Sample(at_s, dict(parts), len(members))


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
    second_quarter, last_tenth = samples[len(samples) // 4 : len(samples) // 2], samples[-max(2, len(samples) // 10) : -1]
    freshness = versions[-1]["times"]["freshness_s"]
    return {
        "broker": broker,
        "runner": runner,
        "gigabytes": size_mb / 1e3,
        "records": num_records,
        "kept": sum(version["outcomes"]["kept"] for version in versions),
        "versions": len(versions),
        "wall_s": done["wall_s"],
        "records_per_s": num_records / commit_s,
        "megabytes_per_s": size_mb / commit_s,
        "peak_pss_mb": max(sample.pss_mb for sample in samples),
        "second_quarter_mb": typical(second_quarter),
        "last_tenth_mb": typical(last_tenth),
        "pss_mb_over_time": [round(sample.pss_mb) for sample in samples[:: max(1, len(samples) // 24)]],
        "anonymous_mb_over_time": [round(sample.of("anonymous")) for sample in samples[:: max(1, len(samples) // 24)]],
        "num_processes": max(sample.num_processes for sample in samples),
        "oldest_record_committed_after_s": freshness["max"] if freshness else None,
    }


def typical(samples: list[Sample]) -> dict[str, float]:
    """Medians by role and kind."""
    names = sorted({name for sample in samples for name in sample.parts})
    return {name: round(median(sample.parts.get(name, 0.0) for sample in samples), 1) for name in names}


def show(line: dict[str, Any]) -> None:
    """For people."""
    taken = f"{line['gigabytes']:.2f} GB, {line['records']:,} records ({line['kept']:,} kept), {line['versions']} versions"
    speed = f"{line['wall_s']:,.0f} s: {line['records_per_s']:,.0f} records/s, {line['megabytes_per_s']:.2f} MB/s"
    print(f"{line['broker']}, runner {line['runner']}: {taken}, {speed}")
    print(f"  peak PSS {line['peak_pss_mb']:,.0f} MB in {line['num_processes']} processes")
    print(f"  PSS in MB over time:       {' '.join(map(str, line['pss_mb_over_time']))}")
    print(f"  anonymous in MB over time: {' '.join(map(str, line['anonymous_mb_over_time']))}")
    print(f"  {'':22} {'2nd quarter':>12} {'last tenth':>12}")
    for name, late in line["last_tenth_mb"].items():
        print(f"  {name:22} {line['second_quarter_mb'].get(name, 0.0):12,.0f} {late:12,.0f}", flush=True)


@contextmanager
def running(broker: str, folder: Path) -> Iterator[str]:
    """A broker's address."""
    if broker == "apache":
        with running_apache_kafka(folder) as apache:
            yield apache.bootstrap_servers
    else:
        with start_broker(Settings(), listen="127.0.0.1:0", root=folder) as embedded:
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
