"""The embedded broker beside Apache Kafka: produce and consume 2 KB values with kafka-python and with confluent-kafka.

Both brokers run at once and take turns, round by round, so that whatever else the machine does hits both; the ratio of the medians is the
result. The broker's own CPU time is shown too: it hardly depends on the load of the machine. Without Apache Kafka (../shared/kafka) only the
embedded broker is measured.

    python -m benchmarks.broker [--rounds 3] [--seconds-worth 1.0] [--json]
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import confluent_kafka
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from ops.cli.output import print_json, print_table
from schemas.settings import Settings
from tests.apache_kafka import KAFKA, running_apache_kafka
from tests.broker_process import start_broker

VALUE_BYTES = 2_000
TARGETS = {"kafka-python": 0.8, "confluent": 1 / 3}
"""Least ratio to Apache Kafka that we promise."""


@dataclass(frozen=True)
class Target:
    """A broker to measure."""

    name: str
    bootstrap_servers: str
    pid: int

    def cpu_s(self) -> float:
        """CPU time that its process has used so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Measured:
    """One client doing one thing to one broker, once."""

    client: str
    action: str
    broker: str
    records_per_s: float
    broker_cpu_us_per_record: float


def values(count: int) -> list[bytes]:
    """Values that do not compress."""
    return [os.urandom(VALUE_BYTES)] * count


def produce_kafka_python(servers: str, topic: str, count: int) -> None:
    producer = KafkaProducer(bootstrap_servers=servers)
    for value in values(count):
        producer.send(topic, value)
    producer.flush()
    producer.close()


def consume_kafka_python(servers: str, topic: str, count: int) -> None:
    consumer = KafkaConsumer(bootstrap_servers=servers, auto_offset_reset="earliest", enable_auto_commit=False)
    consumer.assign([TopicPartition(topic, index) for index in range(2)])
    left = count
    while left > 0:
        left -= sum(map(len, consumer.poll(timeout_ms=1_000, max_records=5_000).values()))
    consumer.close()


def produce_confluent(servers: str, topic: str, count: int) -> None:
    producer = confluent_kafka.Producer({"bootstrap.servers": servers, "queue.buffering.max.kbytes": 200_000})
    for value in values(count):
        while True:
            try:
                producer.produce(topic, value)
                break
            except BufferError:
                producer.poll(0.05)
    producer.flush()


def consume_confluent(servers: str, topic: str, count: int) -> None:
    consumer = confluent_kafka.Consumer({"bootstrap.servers": servers, "group.id": topic, "enable.auto.commit": False})
    consumer.assign([confluent_kafka.TopicPartition(topic, index, 0) for index in range(2)])
    left = count
    while left > 0:
        left -= len(consumer.consume(5_000, timeout=1.0))
    consumer.close()


Action = Callable[[str, str, int], None]
"""Named ``produce_…`` or ``consume_…``; takes bootstrap servers, topic, number of records."""
CLIENTS: dict[str, tuple[int, Action, Action]] = {
    "kafka-python": (20_000, produce_kafka_python, consume_kafka_python),
    "confluent": (60_000, produce_confluent, consume_confluent),
}
"""Records for about one second's work, and the two actions."""


def measure(target: Target, client: str, run: Action, *, topic: str, count: int) -> Measured:
    """Time one action."""
    cpu_s, started_s = target.cpu_s(), time.perf_counter()
    run(target.bootstrap_servers, topic, count)
    elapsed_s = time.perf_counter() - started_s
    return Measured(client, run.__name__.partition("_")[0], target.name, count / elapsed_s, (target.cpu_s() - cpu_s) * 1e6 / count)


def measure_rounds(targets: list[Target], rounds: int, seconds_worth: float) -> list[Measured]:
    """Every client on every broker in turn; the first round warms up and is thrown away."""
    measured: list[Measured] = []
    for number in range(rounds + 1):
        for client, (per_second, produce, consume) in CLIENTS.items():
            for target in targets:
                topic, count = f"bench-{uuid.uuid4().hex}", int(per_second * seconds_worth)
                both = [measure(target, client, action, topic=topic, count=count) for action in (produce, consume)]
                measured += both if number else []
                print(f"round {number} {client} {target.name}: {both[0].records_per_s:,.0f} / {both[1].records_per_s:,.0f} per s", file=sys.stderr)
    return measured


def summarize(measured: list[Measured]) -> list[dict[str, Any]]:
    """Medians and the ratio to Apache Kafka."""
    rows: list[dict[str, Any]] = []
    for client in CLIENTS:
        for action in ("produce", "consume"):
            mine = {
                broker: [one for one in measured if (one.client, one.action, one.broker) == (client, action, broker)]
                for broker in ("embedded", "apache")
            }
            rates = {broker: statistics.median(one.records_per_s for one in found) for broker, found in mine.items() if found}
            cpu_us = {broker: statistics.median(one.broker_cpu_us_per_record for one in found) for broker, found in mine.items() if found}
            ratio = rates["embedded"] / rates["apache"] if "apache" in rates else None
            rows.append({"client": client, "action": action, "records_per_s": rates, "cpu_us": cpu_us, "ratio": ratio, "target": TARGETS[client]})
    return rows


def versions() -> dict[str, str]:
    """What was measured, where."""
    names = ("kafka-python", "confluent-kafka", "uvloop", "crc32c")
    packages = {name: importlib.metadata.version(name) for name in names}
    jars = sorted(KAFKA.glob("lib/kafka-clients-*.jar"))
    return packages | {
        "python": platform.python_version(),
        "apache-kafka": jars[0].stem.removeprefix("kafka-clients-") if jars else "not there",
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()} {platform.release()}",
    }


def main() -> int:
    """Measure, print, and say by the exit code whether the targets are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds-worth", type=float, default=1.0, help="size of one action, in seconds of a quiet machine")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        embedded = stack.enter_context(start_broker(Settings(), listen="127.0.0.1:0", root=folder / "embedded"))
        targets = [Target("embedded", embedded.bootstrap_servers, embedded.pid)]
        if (KAFKA / "start").is_file():
            apache = stack.enter_context(running_apache_kafka(folder / "apache", settings=("num.partitions=2",)))
            targets.append(Target("apache", apache.bootstrap_servers, apache.pid))
        measured = measure_rounds(targets, args.rounds, args.seconds_worth)
    rows = summarize(measured)
    if args.json:
        print_json({"versions": versions(), "results": rows, "measured": [asdict(one) for one in measured]})
    else:
        print(json.dumps(versions()))
        cells = [
            [
                f"{row['client']} {row['action']}",
                *(round(row["records_per_s"].get(name, 0)) for name in ("embedded", "apache")),
                "-" if row["ratio"] is None else f"{row['ratio']:.2f}",
                f"{row['target']:.2f}",
                *(f"{row['cpu_us'].get(name, 0):.1f}" for name in ("embedded", "apache")),
            ]
            for row in rows
        ]
        print_table(["", "embedded/s", "apache/s", "ratio", "target", "cpu us", "of apache"], cells, "2 KB values")
    return 1 if any(row["ratio"] is not None and row["ratio"] < row["target"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
