"""The processes of a soak, what happens to them, and what is seen of them while they run."""

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from benchmarks.soak.chaos import Strike, strikes
from benchmarks.soak.children import Child, Memory
from benchmarks.soak.traffic import ENTRY
from ops.cli.output import say
from pipelines.dataset.dataset import latest_version
from pipelines.kafka.planning import plan_ranges
from pipelines.kafka.topics import ensure_topics, topic_names
from pipelines.runtime.ports import free_ports
from schemas.settings import Settings
from schemas.settings_sources import load_settings

NUM_PARTITIONS = 4
TICK_S = 0.2
MEMORY_EVERY_S = 5.0
PROGRESS_EVERY_S = 60.0
FIRST_STRIKE_S = 20.0
CALM = 0.25
"""Share of the time, at its end, in which the ingester is not killed any more."""
START_TIMEOUT_S = 120.0
DRAIN_TIMEOUT_S = 600.0
RIVAL_TIMEOUT_S = 600.0
PATIENCE_S = 45.0
"""After so long without a commit nothing is struck until there is one: on a slow machine nothing would ever come to its end otherwise."""
SMALL = {
    "kafka.num_partitions": NUM_PARTITIONS,
    "kafka.request_timeout_s": 10,
    "ingest.follow_interval_s": 0.5,
    "ingest.max_wait_s": 2,
    "ingest.min_commit_interval_s": 0,
    "ingest.min_batch_records": 500,
    "ingest.target_commit_s": 5,
    "ingest.slice_records": 1_000,
    "tokenizer.min_training_bytes": 0,
    "ingest.gc_grace_s": 120,
    "dedup.compact_segments": 16,
    "broker.segment_bytes": 16 * 2**20,
    "ray.dashboard_port": 0,
}
"""Small versions, so that kills meet every step; what is not here is as users have it."""


class Watch(NamedTuple):
    """Everything acknowledged before a strike, until it is committed."""

    strike: Strike
    ends: dict[int, int]


class Soak:
    """The processes, what happened to them, and what was seen."""

    def __init__(self, folder: Path, seed: int, runner: str, rate: float = 1.0) -> None:
        """``rate`` is how many times the producer's usual records per second it shall be."""
        self.folder, self.seed, self._rate = folder, seed, rate
        self.address = f"127.0.0.1:{free_ports(1)[0]}"
        self._values = {**SMALL, "kafka.bootstrap_servers": self.address, "root": str(folder / "data"), "ingest.runner": runner}
        self.settings: Settings = load_settings("", {}, self._values)
        self.root = Path(self.settings.root)
        self.broker, self.ingester, self.producer = (self._child(name) for name in ("broker", "ingester", "producer"))
        self.findings: list[str] = []
        self.strikes: Counter[str] = Counter()
        self.memory: list[Memory] = []
        self.caught_up: list[tuple[str, float]] = []
        """What was struck, and seconds from then until everything acknowledged before was committed."""
        self._watches: list[Watch] = []
        self._pending: list[tuple[float, Child]] = []
        self._acknowledged: dict[int, int] = {}
        self._read_of_ledger = (Path(), 0)
        self._began = time.monotonic()
        self._newest, self._newest_at_s = 0, 0.0
        """Newest version, and when it was first seen."""

    @property
    def at_s(self) -> float:
        """Seconds since the soak began."""
        return time.monotonic() - self._began

    @property
    def children(self) -> tuple[Child, Child, Child]:
        """In the order in which they need each other."""
        return self.broker, self.ingester, self.producer

    def start(self) -> None:
        """Broker and topics, then the others."""
        self.root.mkdir()
        self.broker.start()
        patient = self.settings.model_copy(update={"kafka": self.settings.kafka.model_copy(update={"request_timeout_s": START_TIMEOUT_S})})
        ensure_topics(patient)
        self.ingester.start()
        self.producer.start()

    def run(self, duration_s: float) -> None:
        """Let it run and strike when it is time."""
        coming = strikes(self.seed, FIRST_STRIKE_S, duration_s, CALM * duration_s)
        strike, next_memory_s, next_progress_s = next(coming, None), 0.0, 0.0
        while self.at_s < duration_s:
            self._turn()
            while strike is not None and strike.at_s <= self.at_s:
                self._strike(strike)
                strike = next(coming, None)
            if self.at_s >= next_memory_s:
                next_memory_s = self.at_s + MEMORY_EVERY_S
                self.memory += [found] if (found := self.ingester.memory(self.at_s)) else []
            if self.at_s >= next_progress_s:
                next_progress_s = self.at_s + PROGRESS_EVERY_S
                self._tell()
            time.sleep(TICK_S)

    def drain(self) -> None:
        """Everything runs again; the producer stops, the ingester takes in the rest and stops."""
        for child in self.children:
            child.resume()
            if not child.is_running:
                child.start()
        self._pending.clear()
        self._expect("the producer", self.producer.stop())
        ends = {partition: span.end for partition, span in plan_ranges(self.settings, self.topic, {}, 2**62).items()}
        deadline = time.monotonic() + DRAIN_TIMEOUT_S
        while not _covers(self._committed(), ends):
            self._turn()
            if time.monotonic() > deadline:
                self.findings.append(f"after {DRAIN_TIMEOUT_S:g} s the ingester is at {self._committed()} of {ends}")
                break
            time.sleep(TICK_S)
        self._expect("the ingester", self.ingester.stop())

    @property
    def topic(self) -> str:
        """Of the documents."""
        return topic_names(self.settings).documents

    def ledgers(self) -> list[Path]:
        """What the producers were told, one file for each start."""
        return sorted(self.folder.glob("ledger-*"))

    def kill_all(self) -> None:
        """Leave nothing behind."""
        for child in reversed(self.children):
            child.kill()

    def command(self, *arguments: str) -> list[str]:
        """``headrace`` with the soak's settings."""
        options = [part for name, value in self._values.items() for part in ("--set", f"{name}={value}")]
        return [sys.executable, "-m", "ops.cli.main", *arguments, *options]

    def _child(self, name: str) -> Child:
        def command(number: int) -> list[str]:
            match name:
                case "broker":
                    return self.command("broker", "--listen", self.address)
                case "ingester":
                    return self.command("ingest", "--follow")
            options = {
                "bootstrap-servers": self.address,
                "topic-prefix": self.settings.kafka.topic_prefix,
                "partitions": NUM_PARTITIONS,
                "seed": self.seed,
                "generation": number,
                "rate": self._rate,
                "ledger": self.folder / f"ledger-{number:04d}",
            }
            return [sys.executable, "-m", "benchmarks.soak.traffic", *(part for key, value in options.items() for part in (f"--{key}", str(value)))]

        return Child(name, command, self.folder / f"{name}.log")

    def _turn(self) -> None:
        """Start what is due, look for what ended by itself, and see what has been committed."""
        self._start_due()
        for child in self.children:
            if (code := child.ended_by_itself()) is not None:
                self.findings.append(f"at {self.at_s:.0f} s the {child.name} ended by itself with {code}; the end of its log:\n{child.last_words()}")
                child.start()
        if (newest := latest_version(self.root)) != self._newest:
            self._newest, self._newest_at_s = newest, self.at_s
        committed = self._committed()
        done = [watch for watch in self._watches if _covers(committed, watch.ends)]
        self._watches = [watch for watch in self._watches if watch not in done]
        self.caught_up += [(f"{watch.strike.action} {watch.strike.victim}", self.at_s - watch.strike.at_s) for watch in done]

    def _start_due(self) -> None:
        """What was killed or suspended for a while goes on."""
        due = [item for item in self._pending if item[0] <= self.at_s]
        self._pending = [item for item in self._pending if item[0] > self.at_s]
        for _, child in due:
            child.resume()
            if not child.is_running:
                child.start()

    def _strike(self, strike: Strike) -> None:
        child: Child = getattr(self, strike.victim)
        is_struck = not child.is_running or child.is_suspended or any(waiting is child for _, waiting in self._pending)
        if is_struck or self.at_s - self._newest_at_s > PATIENCE_S:
            return
        self.strikes[f"{strike.action} {strike.victim}"] += 1
        self._watches.append(Watch(strike._replace(at_s=self.at_s), self._acknowledged_ends()))
        match strike.action:
            case "kill":
                child.kill()
                self._pending.append((self.at_s + strike.lasts_s, child))
            case "hang":
                child.suspend()
                self._pending.append((self.at_s + strike.lasts_s, child))
            case "rival":
                self._rival()

    def _rival(self) -> None:
        """Two ingesters of one dataset: one of them must give way, in words, and the other go on."""
        rival = self._child("ingester")
        rival.start()
        deadline = time.monotonic() + RIVAL_TIMEOUT_S
        while (codes := (self.ingester.ended_by_itself(), rival.ended_by_itself())) == (None, None) and time.monotonic() < deadline:
            self._start_due()
            time.sleep(TICK_S)
        if codes not in ((1, None), (None, 1)) or "was published by another writer" not in rival.last_words(30):
            self.findings.append(f"at {self.at_s:.0f} s two ingesters ended with {codes} and not one with 1:\n{rival.last_words(30)}")
        if rival.is_running and self.ingester.is_running:
            rival.kill()
        if not self.ingester.is_running:
            rival.num_starts = self.ingester.num_starts + 1
            self.ingester = rival
            if not rival.is_running:
                rival.start()

    def _committed(self) -> dict[int, int]:
        """Next offsets of the newest version, from its manifest's bytes: this process need not hold more."""
        newest = latest_version(self.root)
        if not newest:
            return {}
        manifest = json.loads((self.root / "log" / f"{newest:08d}.json").read_bytes())
        return {int(partition): span["end"] for partition, span in manifest["offsets"].get(self.topic, {}).items()}

    def _acknowledged_ends(self) -> dict[int, int]:
        """First offset of each partition of which the producers have heard nothing yet."""
        for path in self.ledgers():
            before, position = self._read_of_ledger
            if path < before:
                continue
            with path.open("rb") as file:
                file.seek(position if path == before else 0)
                data = file.read()
            data = data[: len(data) // ENTRY.size * ENTRY.size]
            for partition, offset, _ in ENTRY.iter_unpack(data):
                self._acknowledged[partition] = max(self._acknowledged.get(partition, 0), offset + 1)
            self._read_of_ledger = path, (position if path == before else 0) + len(data)
        return dict(self._acknowledged)

    def _expect(self, who: str, code: int) -> None:
        if code:
            self.findings.append(f"{who} ended with {code} when it was asked to stop")

    def _tell(self) -> None:
        committed, acknowledged = sum(self._committed().values()), sum(self._acknowledged_ends().values())
        memory = f"{self.memory[-1].anonymous_mb:,.0f} MB" if self.memory else "?"
        say(
            f"{self.at_s / 60:5.1f} min: version {self._newest:,}, {committed:,} records committed, {acknowledged - committed:,} behind; "
            f"{self.strikes.total()} strikes; ingester holds {memory}; {len(self.findings)} findings"
        )


def _covers(committed: dict[int, int], ends: dict[int, int]) -> bool:
    return all(committed.get(partition, 0) >= end for partition, end in ends.items())
