"""The soak's producer: documents of every kind, at rates and over partitions that change every few seconds, until SIGTERM or SIGKILL.

    python -m benchmarks.soak.traffic --bootstrap-servers HOST:PORT --topic-prefix P --partitions N --seed S --generation G --ledger FILE

Ids begin with the generation, the number of this start, so that they do not collide with those of earlier ones. Every acknowledgement goes
into the ledger at once (ENTRY): what was acknowledged before a SIGKILL stands there, and must be in the log.
"""

import argparse
import json
import random
import signal
import struct
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

from benchmarks.mixed import mixed
from pipelines.kafka.clients import open_producer
from pipelines.kafka.topics import topic_names
from schemas.settings_sources import load_settings

ENTRY = struct.Struct("<IQI")
"""A line of the ledger: partition, offset, CRC-32 of the value (0 for a null value)."""
RECENT = 2_000
"""Retractions and copies are mostly of the last so many documents."""
PHASES = {"idle": (0, 2, 8, 3), "trickle": (5, 5, 15, 4), "steady": (150, 5, 20, 8), "busy": (600, 3, 10, 3), "burst": (4_000, 1, 3, 2)}
"""Records per second (240 over all phases); shortest and longest duration in seconds; weight."""
KINDS = {"document": 79.0, "anonymous": 3.0, "copy": 8.0, "short": 3.0, "long": 0.1, "garbage": 3.0, "tombstone": 2.5, "retraction": 1.5}
GARBAGE = (b"\xff\xfe\x00", b"{", b"[1]", b'{"text": 5}', b'{"text": ""}', b"\x00" * 40)
TICK_S = 0.05


class Made(NamedTuple):
    """A record to send."""

    partition: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]


class Author:
    """Makes records; what it makes follows from the seed and the generation."""

    def __init__(self, seed: int, generation: int, num_partitions: int) -> None:
        self.rng = random.Random(f"{seed}/{generation}")
        self._generation, self._num_partitions = generation, num_partitions
        self._written: list[tuple[str, int]] = []
        """Ids of this generation and their partitions."""
        self._recent: dict[int, str] = {}
        self.weights = [1.0] * num_partitions

    def skew(self) -> None:
        """Spread over the partitions in another way: evenly, unevenly, or some of them idle."""
        exponent = self.rng.choice((0.0, 1.0, 4.0))
        self.weights = [self.rng.random() ** exponent + 1e-9 for _ in range(self._num_partitions)]

    def record(self) -> Made:
        """The next one."""
        kind = self.rng.choices(tuple(KINDS), tuple(KINDS.values()))[0]
        (partition,) = self.rng.choices(range(self._num_partitions), self.weights)
        match kind:
            case "garbage":
                made = Made(partition, None, self.rng.choice(GARBAGE), [])
            case "tombstone" | "retraction" if self._written:
                made = self._retraction(kind, partition)
            case "anonymous":
                made = Made(partition, None, json.dumps({"text": mixed(self.rng, 3, 12)}, ensure_ascii=False).encode(), [])
            case "short":
                made = self._document("too short", partition)
            case "copy" if self._recent:
                made = self._document(self._edited(self.rng.choice(tuple(self._recent.values()))), partition)
            case "long":
                made = self._document(mixed(self.rng, 1_000, 5_000), partition)
            case _:
                self._recent[len(self._written) % 64] = text = mixed(self.rng, 3, 25)
                made = self._document(text, partition)
        return made

    def _edited(self, text: str) -> str:
        """The same, or with a word changed."""
        words = text.split(" ")
        if self.rng.random() < 0.5:
            words[self.rng.randrange(len(words))] = "changed"
        return " ".join(words)

    def _document(self, text: str, partition: int) -> Made:
        doc_id = f"g{self._generation}-{len(self._written)}"
        if self._written and self.rng.random() < 0.01:
            doc_id = self._known()[0]  # published again under its id, from another partition perhaps
        self._written.append((doc_id, partition))
        return Made(partition, doc_id.encode(), json.dumps({"id": doc_id, "text": text}, ensure_ascii=False).encode(), [])

    def _known(self) -> tuple[str, int]:
        first = max(0, len(self._written) - RECENT) if self.rng.random() < 0.8 else 0
        return self._written[self.rng.randrange(first, len(self._written))]

    def _retraction(self, kind: str, partition: int) -> Made:
        """A null value or an event, in the document's own partition or another one, perhaps of an earlier generation's document."""
        doc_id, its_partition = self._known()
        if self._generation and self.rng.random() < 0.1:
            doc_id = f"g{self.rng.randrange(self._generation)}-{self.rng.randrange(2_000)}"
        partition = its_partition if self.rng.random() < 0.7 else partition
        if kind == "tombstone":
            return Made(partition, doc_id.encode(), None, [])
        event = {"ce_specversion": "1.0", "ce_id": f"r-{doc_id}-{len(self._written)}", "ce_source": "/soak", "ce_type": "document.retracted"}
        headers = [(name, value.encode()) for name, value in (event | {"content-type": "application/json"}).items()]
        return Made(partition, doc_id.encode(), json.dumps({"id": doc_id}).encode(), headers)


def send(producer: Any, topic: str, made: Made, ledger: Any) -> None:
    """Hand a record to the client; its acknowledgement goes into the ledger."""
    future = producer.send(topic, key=made.key, value=made.value, headers=made.headers, partition=made.partition)
    checksum = crc32(made.value or b"")
    future.add_callback(lambda found: ledger.write(ENTRY.pack(found.partition, found.offset, checksum)))


def run(args: argparse.Namespace) -> int:
    """Produce until SIGTERM; then wait for what is on its way."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    settings = load_settings("", {}, {"kafka.bootstrap_servers": args.bootstrap_servers, "kafka.topic_prefix": args.topic_prefix})
    topic, author = topic_names(settings).documents, Author(args.seed, args.generation, args.partitions)
    with args.ledger.open("ab", buffering=0) as ledger, open_producer(settings, linger_ms=20, delivery_timeout_ms=300_000) as producer:
        while not stop.is_set():
            rate, shortest_s, longest_s, _ = author.rng.choices(tuple(PHASES.values()), [phase[-1] for phase in PHASES.values()])[0]
            author.skew()
            rate *= args.rate
            start, due_s, num_sent = time.monotonic(), author.rng.uniform(shortest_s, longest_s), 0
            while not stop.is_set() and (passed_s := time.monotonic() - start) < due_s:
                for _ in range(int(passed_s * rate) - num_sent):
                    send(producer, topic, author.record(), ledger)
                    num_sent += 1
                stop.wait(TICK_S)
        producer.flush(args.flush_timeout_s)
    return 0


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser()
    for name in ("--bootstrap-servers", "--topic-prefix"):
        parser.add_argument(name, required=True)
    for name in ("--partitions", "--seed", "--generation"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--rate", type=float, default=1.0, help="times the records per second of PHASES")
    parser.add_argument("--ledger", type=Path, required=True)
    parser.add_argument("--flush-timeout-s", type=float, default=120.0)
    return run(parser.parse_args())


if __name__ == "__main__":
    raise SystemExit(main())
