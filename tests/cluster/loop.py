"""The loop on the cluster, as seen from outside: what is sent to it, and what lies in the folder that its hosts share."""

import itertools
import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from pydoc_data.topics import topics

import httpx
import polars as pl
from kafka import TopicPartition

from pipelines.dataset.verify import verify
from pipelines.kafka.clients import open_consumer
from pipelines.kafka.topics import topic_names
from pipelines.storage.commit_log import CommitLog
from ray_apps.loop.disk import Disk
from ray_apps.training.files import RUN_FILE
from ray_apps.training.loss_curve import FILE_NAME, LossRecord, read_losses
from schemas.manifest import DatasetManifest, ModelManifest
from schemas.rollout import Decision, Phase, RolloutState
from schemas.settings import KafkaSettings, Settings
from tests.cluster.cluster import Cluster, logs_of
from tests.cluster.hosts import SHARED, Host
from tests.cluster.waiting import ResultT, until

ROUND_DOCUMENTS = 400
LONG, SHORT = 14, 3
"""Lines of a document. A round of long ones has about 120,000 tokens, which start a training run; two rounds of short ones have 52,000."""
SETTINGS = {
    "ingest.slice_records": 20,  # so that a small round has many tasks
    "ingest.min_batch_records": ROUND_DOCUMENTS,
    "ingest.max_wait_s": 20,
    "ingest.follow_interval_s": 0.5,
    "ingest.min_commit_interval_s": 0,
    "tokenizer.vocab_size": 1024,
    "tokenizer.min_training_bytes": 0,
    "packing.sequence_length": 128,
    "training.max_steps": 60,
    "training.checkpoint_every_steps": 5,
    "training.evaluate_rows": 32,
    "training.global_batch_rows": 8,
    "training.threads_per_worker": 2,  # of the three CPUs of a node: so two training workers need two hosts
    "loop.min_new_tokens": 60_000,
    "rollout.canary_fraction": 0.5,
    "rollout.max_latency_ratio": 20,  # hosts that share two cores say little about time
}


def documents(number: int, num_lines: int) -> str:
    """A round's documents as JSON Lines: lines of Python's own reference, which every machine has, in an order of the round's own."""
    rng = random.Random(number)
    lines = [line.strip() for text in topics.values() for line in text.splitlines() if len(line) > 40]
    texts = ("\n".join(rng.sample(lines, num_lines)) for _ in range(ROUND_DOCUMENTS))
    return "".join(json.dumps({"id": f"round-{number}-{index}", "text": text}) + "\n" for index, text in enumerate(texts))


@dataclass
class Loop:
    """``headrace up`` on the cluster, and what was sent to it."""

    cluster: Cluster
    kafka: str
    published: int = 0
    rounds: int = 0
    jobs: list[str] = field(default_factory=list)

    @property
    def root(self) -> Path:
        """The root, as this machine sees it."""
        return self.cluster.site.shared

    def submit(self) -> None:
        """Submit it as the page says."""
        up = f"headrace up --root {SHARED} --bootstrap-servers {self.kafka} --set ray.address=auto"
        self.jobs.append(self.cluster.submit(up, SETTINGS))

    def produce(self, num_lines: int = LONG) -> None:
        """Publish the next round of documents from the operator's machine."""
        self.rounds += 1
        (self.cluster.operator.folder / "root/round.jsonl").write_text(documents(self.rounds, num_lines))
        words = f"headrace produce /root/round.jsonl --bootstrap-servers {self.kafka} --root /root/no-data --json"
        output = self.cluster.type(words, 180)
        self.published += json.loads(output[output.index("{") :])["published"]

    def datasets(self) -> list[DatasetManifest]:
        """All versions."""
        log = CommitLog(self.root / "log")
        return [DatasetManifest.model_validate_json(log.read(version)) for version in range(1, log.latest() + 1)]

    def wait_ingested(self, timeout_s: float) -> DatasetManifest:
        """Until every published record is in a version; the newest."""

        def look() -> DatasetManifest | None:
            versions = self.datasets()
            return versions[-1] if versions and versions[-1].totals.num_records >= self.published else None

        return self.wait_for(look, "a version with all that was published", timeout_s)

    def wait_model(self, number: int, timeout_s: float) -> ModelManifest:
        """Until this model is registered."""
        disk = Disk(self.root)
        return self.wait_for(lambda: disk.model(number) if disk.registry.log.latest() >= number else None, f"model {number}", timeout_s)

    @property
    def num_models(self) -> int:
        """How many models are registered."""
        return Disk(self.root).registry.log.latest()

    def rollouts(self) -> list[RolloutState]:
        """All states of the rollout."""
        return Disk(self.root).rollouts.after(0)

    def losses(self, number: int) -> list[LossRecord]:
        """The loss curve of run ``number``, counted from the oldest."""
        runs = sorted((self.root / "training").glob(f"*/{RUN_FILE}"), key=lambda path: path.stat().st_mtime)
        return read_losses(runs[number - 1].parent / FILE_NAME) if len(runs) >= number else []

    def decisions(self) -> list[Decision]:
        """What led to each state of the rollout."""
        return [state.decision for state in self.rollouts()]

    @property
    def is_on_trial(self) -> bool:
        """Whether a model is on trial."""
        return self.rollouts()[-1].phase is not Phase.IDLE

    def engine_host(self, number: int | None) -> Host | None:
        """Where the engine of a model lives; None while there is none."""
        names = self.cluster.hosts_of(f"model-{number}:engine")
        return next((host for host in self.cluster.workers if host.name in names), None)

    def wait_champion(self) -> Host:
        """The host of the champion's engine."""
        return self.wait_for(lambda: self.engine_host(self.rollouts()[-1].champion), "the champion's engine", 300)

    def wait_trial(self) -> None:
        """Until a model is on trial and has its engine. Nobody asks, so it stays on trial."""
        self.wait_for(lambda: self.is_on_trial or None, "a trial", 300)
        self.wait_for(lambda: self.engine_host(self.rollouts()[-1].challenger), "the challenger's engine", 300)

    def wait_for(self, look: Callable[[], ResultT | None], what: str, timeout_s: float) -> ResultT:
        """``until``; where it waits in vain, the test fails with the ends of the logs."""
        try:
            return until(look, what, timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{logs_of(self.root)}\n== job\n{self._job_log()}") from None

    def _job_log(self) -> str:
        try:
            return self.cluster.job_log(self.jobs[-1])[-3000:]
        except httpx.HTTPError as error:
            return f"the dashboard does not say: {error}"

    def check_documents(self) -> None:
        """Every file is whole, and each offset of the topic is in one version with one outcome."""
        assert verify(self.root).problems == []
        versions = self.datasets()
        files = [self.root / file.path for each in versions for file in each.documents]
        trail = pl.concat([pl.read_parquet(file, columns=["topic", "partition", "offset"]) for file in files])
        assert len(trail) == trail.n_unique() == self.published == sum(sum(each.outcomes.values()) for each in versions)

    def check_losses(self) -> None:
        """The loss curve of each registered model has each step once."""
        for number in range(1, self.num_models + 1):
            steps = [record.step for record in self.losses(number)]
            assert steps == list(range(int(SETTINGS["training.max_steps"]))), f"model {number}: {steps}"

    def check_events(self) -> None:
        """Each dataset version and each model was announced under one id; an event that was sent again after a crash has the id that it had."""
        ids = {kind: {name for each, name in events_of(self.kafka) if each == kind} for kind in ("dataset.committed", "model.registered")}
        assert len(ids["dataset.committed"]) == len(self.datasets())
        assert len(ids["model.registered"]) == self.num_models

    def check_trials(self) -> None:
        """Each trial began once and had one end, except for one that still goes on."""
        decisions = Counter(self.decisions())
        assert decisions[Decision.BOOTSTRAP] == 1
        assert decisions[Decision.START] == decisions[Decision.PROMOTE] + decisions[Decision.ABORT] + self.is_on_trial
        challengers = [state.challenger for state in self.rollouts() if state.decision is Decision.START]
        assert challengers == list(range(2, 2 + len(challengers)))

    def check_nothing_lost_or_doubled(self) -> None:
        """All checks."""
        self.check_documents()
        self.check_losses()
        self.check_trials()
        self.check_events()


def events_of(kafka: str) -> Counter[tuple[str, str]]:
    """How often each (type, id) is in the events topic."""
    settings = Settings(kafka=KafkaSettings(bootstrap_servers=kafka))
    found = Counter[tuple[str, str]]()
    consumer = open_consumer(settings)
    try:
        parts = [TopicPartition(topic_names(settings).events, number) for number in consumer.partitions_for_topic(topic_names(settings).events)]
        consumer.assign(parts)
        consumer.seek_to_beginning(*parts)
        ends = consumer.end_offsets(parts)
        while any(consumer.position(part) < ends[part] for part in parts):
            for record in itertools.chain.from_iterable(consumer.poll(1_000).values()):
                headers = {name: (value or b"").decode() for name, value in record.headers}
                found[headers["ce_type"], headers["ce_id"]] += 1
    finally:
        consumer.close()
    return found
