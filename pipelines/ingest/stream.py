"""The exactly-once micro-batch: from committed offsets to the next dataset version. The only place that orders the steps.

The commit protocol. Its order is the argument for correctness: everything that a version consists of is durable before the one atomic
act that makes it visible, and whatever only informs others comes after.

 Step 0.  If the duplicate index has grown enough, compact it; if many small shards stand in a row, merge them. Each is a version of its own,
          without documents (upkeep.py).
 Step 1.  Read the newest manifest N: its ``next`` offsets are where reading goes on. Kafka's own group offsets are never read.
          Compare the topic's id with the manifest's: offsets mean nothing in another topic of the same name. Compare the leader epochs
          too: in a log that was cut and grew again, offsets are those of other records. What is lost stops the stream until a person
          accepts the loss (acceptance.py).
 Step 2.  Fix the range [start, end) of every partition. What comes later belongs to a later version, so that running this step's
          outcome again gives the same rows. Ask for the leader epoch of each end, before anything is read.
 Step 3.  The first version chooses the tokenizer, a pure function of the first documents or of the settings.
 Step 4.  Run the job and write every file of the version under names that no other attempt uses: fsync, rename, fsync of the folder.
 Step 5.  Compare the topic's id and the leader epochs again: Kafka raises nothing when a topic is deleted and re-created, or its log cut,
          under a reader.
 Step 6.  Produce the dead letters and wait for their acknowledgement. A crash after this produces them again, equal in key and id.
 Step 7.  Publish manifest N+1 by create-if-absent. This is the commit. Of two writers one fails here, and nothing of it is visible.
 Step 8.  Group offsets and the ``dataset.committed`` event, for lag monitors and people. Never the truth: if they fail it is logged,
          and the next start tells the newest version again.

A crash before step 7 leaves files that no manifest lists (dataset/gc.py) and perhaps dead letters that will come again; a crash after
it leaves a committed version. There is no third case.
"""

import logging
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa

from pipelines.dataset.boilerplate import Boilerplate
from pipelines.dataset.dataset import Dataset, latest_version
from pipelines.dataset.duplicates import Duplicates
from pipelines.dataset.gc import collect_garbage
from pipelines.dataset.retractions.retractions import Retractions
from pipelines.dataset.settling import DecidedBlock
from pipelines.dataset.writer import ResolvedBlock, VersionFiles, VersionPlan, build_manifest, publish, write_version
from pipelines.dedup.index_shards import Shards
from pipelines.ingest.announcer import Announcer
from pipelines.ingest.batching import Limits, Pace, new_record_bytes, plan_batch, slice_records
from pipelines.ingest.bootstrap import check_unchanged, create_tokenizer, with_what_is_fixed
from pipelines.ingest.dead_rows import DeadRows
from pipelines.ingest.deciding_apart import decided
from pipelines.ingest.decisive import BlockApart, only_dead
from pipelines.ingest.job import ingest_resources, run_local, run_ray, run_ray_apart
from pipelines.ingest.metering import Meter
from pipelines.ingest.metrics import served
from pipelines.ingest.progress import Progress
from pipelines.ingest.task_writer import TaskWriter
from pipelines.ingest.upkeep import Upkeep
from pipelines.kafka.planning import advice, check_not_cut, find_lost, leader_epochs, plan_ranges
from pipelines.kafka.reading import Slice, slices
from pipelines.kafka.topics import ensure_topics, topic_ids, topic_names
from pipelines.lineage.openlineage import Lineage
from pipelines.runtime.cluster import is_own_machine, ray_session
from pipelines.runtime.crash import crash_point
from pipelines.runtime.memory import release
from pipelines.runtime.tracing import Attributes, current_traceparent, span, start_tracing
from pipelines.steps.pii.ner import check_ner
from pipelines.storage.durable import check_root
from pipelines.storage.mirror import root_name, worker_environment
from schemas.errors import TopicRecreated
from schemas.manifest import DatasetManifest, OffsetRange
from schemas.settings import Settings

UNLIMITED = 2**62
Ranges = Mapping[int, OffsetRange]
_log = logging.getLogger(__name__)


class Abandoned(Exception):
    """The batch was given up because the process was asked to stop; nothing of it is visible."""


class Stream:
    """One writer of the dataset under ``settings.root``; use it in a ``with`` block. Not for use by several threads."""

    def __init__(
        self, settings: Settings, progress: Progress | None = None, stop: threading.Event | None = None, *, in_background: bool = False
    ) -> None:
        """``in_background``: the duplicate index is compacted, and shards are merged, while batches go on, and published between two of them."""
        self.settings = settings
        self._upkeep = Upkeep(settings, in_background=in_background)
        self.root = Path(settings.root).resolve()
        self.topic = topic_names(settings).documents
        self._progress = progress or Progress()
        self._stop = stop or threading.Event()
        self._pace = Pace(settings.ingest.target_commit_s, settings.ingest.slice_records) if in_background else None
        self._meter = Meter(self.topic)
        self.metrics = self._meter.metrics
        self._duplicates = Duplicates(settings.dedup, self._start_shards)
        self._retractions = Retractions()
        self._boilerplate = Boilerplate(settings.dedup)
        self._resources = ExitStack()
        self._announcer = self._resources.enter_context(Announcer(settings))
        self._lineage = Lineage(settings)
        self._dataset: Dataset | None = None
        self._has_topics = False
        self._has_ray = False

    def __enter__(self) -> Self:
        start_tracing(self.settings.telemetry, "headrace-ingest")
        check_root(self.root)
        self._resources.enter_context(served(self.metrics, self.settings.telemetry))
        self.dataset()  # and with it the columns of all versions, which make the next line cheap
        self._collect_garbage()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._resources.close()
        self._collect_garbage()

    def _collect_garbage(self) -> None:
        ingest = self.settings.ingest
        collect_garbage(self.root, grace_s=ingest.gc_grace_s, merged_grace_s=ingest.merged_grace_s)

    def dataset(self) -> Dataset | None:
        """The newest committed version, read from disk."""
        newest = latest_version(self.root, self._dataset.version if self._dataset else 0)
        if newest and (self._dataset is None or self._dataset.version != newest):
            self._dataset = Dataset(self.root, newest, before=self._dataset)
            self._dataset.save_checkpoints()
        return self._dataset

    def available(self) -> dict[int, OffsetRange]:
        """Offsets of every partition that no version has read. Raises TopicMissing, TopicRecreated, OffsetsLost, BrokerUnavailable."""
        dataset = self.dataset()
        self._topic_id(dataset)
        return self._available(dataset)

    def commit_next(self, until: Mapping[int, int] | None = None, *, with_little_text: bool = False) -> DatasetManifest | None:
        """Take in the next micro-batch and commit it (the steps are in the module's docstring); None if nothing is new.

        ``until`` limits it to offsets below the given ones; ``with_little_text`` trains a tokenizer on whatever is there. Raises SourceError,
        BrokerUnavailable, CommitConflict, SettingsError, TokenizerMismatch, NotEnoughText, Abandoned; then nothing is committed.
        """
        # Step 0.
        self.compact_if_due()
        # Step 1.
        dataset = self.dataset()
        topic_id = self._topic_id(dataset)
        if dataset:
            self.settings = with_what_is_fixed(dataset.manifest, self.settings)
            check_unchanged(dataset.manifest, self.settings)
        check_ner(self.settings.pii)
        # Step 2.
        known_bytes = dataset.manifest.record_bytes.get(self.topic, {}) if dataset else {}
        waiting = _below(self._available(dataset), until)
        ranges = self._ranges(waiting, known_bytes)
        epochs = leader_epochs(self.settings, self.topic, {partition: span.end for partition, span in ranges.items() if len(span)})
        parts = slices(self.topic, ranges, slice_records(ranges, known_bytes, self.settings.ingest))
        if not parts:
            return None
        self._ensure_topics()
        self._meter.started()
        crash_point("planned")
        # Steps 3 to 7.
        with span("dataset.version", {"headrace.topic": self.topic}) as traced, self._lineage.attempt():
            manifest = self._commit(dataset, topic_id, ranges, parts, epochs, 0 if with_little_text else self._min_text_bytes(ranges, waiting))
            times = self._meter.committed(manifest)
            traced.set_attributes({**_told(manifest), **times.attributes})
        self._duplicates.committed(manifest.version, *(self.root / entry.path for entry in manifest.dedup_segments))
        self._retractions.committed(manifest.version)
        if self._pace:
            self._pace.committed(manifest.num_records, times.commit_s)
        self._progress.committed(manifest, times)
        # Step 8.
        self._lineage.completed(manifest)
        self.announce()
        return manifest

    def compact_if_due(self) -> DatasetManifest | None:
        """Commit a compaction of the duplicate index if it pays off, and a merge of shards if one is due; None if none was published. Raises
        CommitConflict if another writer was faster with a compaction.

        In the background they are begun by one call and published by a later one, which a stream without new documents has to make too.
        """
        dataset, published = self.dataset(), None
        if dataset is None:
            return None
        if self._upkeep.has_base() or self._duplicates.is_compaction_due(dataset):
            published = self._upkeep.compact(dataset)
        if (dataset := self.dataset()) is not None and (merged := self._upkeep.merge(dataset)) is not None:
            self._duplicates.passed(merged.version)
            self._retractions.passed(merged.version)
            published = merged
        return published

    def _commit(
        self, dataset: Dataset | None, topic_id: str, ranges: dict[int, OffsetRange], parts: list[Slice], epochs: dict[int, int], min_text_bytes: int
    ) -> DatasetManifest:
        # Step 3.
        with span("dataset.plan"):
            plan = self._plan(dataset, topic_id, ranges, parts, min_text_bytes)
            self._lineage.started(plan)
            crash_point("tokenizer_written")
        with DeadRows(self.root) as dead:
            # Step 4.
            with span("dataset.job", {"headrace.slices": len(parts)}):
                files = self._write(dataset, plan, parts, dead)
            # Step 5.
            self._topic_id(dataset, expected=topic_id)
            check_not_cut(self.settings, self.topic, {partition: span.end for partition, span in ranges.items()}, epochs)
            crash_point("topic_checked")
            # Step 6.
            with span("dataset.dead_letters"):
                dead.publish(self.settings)
                crash_point("dead_letters_acked")
        # Step 7.
        parent, traceparent = dataset.manifest if dataset else None, current_traceparent()
        manifest = build_manifest(plan, files, self.settings, parent=parent, now=datetime.now(UTC), traceparent=traceparent)
        known_epochs = {**(parent.leader_epochs if parent else {}), self.topic: _epochs_of(parent, self.topic) | epochs}
        manifest = manifest.model_copy(update={"record_bytes": self._record_bytes(parent, ranges), "leader_epochs": known_epochs})
        with span("dataset.publish"):
            publish(self.root, manifest)
            crash_point("published")
        return manifest

    def announce(self) -> None:
        """Tell lag monitors and people about the newest version. Never raises because of Kafka."""
        dataset = self.dataset()
        if dataset is not None:
            self._announcer.announce(dataset, self.topic)

    def _topic_id(self, dataset: Dataset | None, expected: str | None = None) -> str:
        """The topic's id. Raises TopicRecreated if it is not the one that was read before, TopicMissing if there is none."""
        found = topic_ids(self.settings, [self.topic])[self.topic]
        known = expected or (dataset.manifest.topic_ids.get(self.topic) if dataset else None)
        if known not in (None, found):
            before = dataset.next_offsets(self.topic) if dataset else {}
            reader = f"version {dataset.version}" if dataset and before else "this batch"
            lost = find_lost(self.settings, self.topic, before, {}, is_recreated=True) if before else []
            raise TopicRecreated(
                f"topic {self.topic!r} was deleted and created again: its id is {found}, {reader} was read from {known}, so offsets do not mean "
                f"the same any more; nothing was committed. {advice(lost) if lost else 'Start again'}"
            )
        return found

    def _available(self, dataset: Dataset | None) -> dict[int, OffsetRange]:
        next_offsets = dataset.next_offsets(self.topic) if dataset else {}
        available = plan_ranges(self.settings, self.topic, next_offsets, UNLIMITED, _epochs_of(dataset.manifest if dataset else None, self.topic))
        self._meter.seen(available)
        return available

    def _record_bytes(self, parent: DatasetManifest | None, ranges: Ranges) -> dict[str, dict[int, int]]:
        before = parent.record_bytes if parent else {}
        num_records = {partition: len(span) for partition, span in ranges.items()}
        return {**before, self.topic: new_record_bytes(before.get(self.topic, {}), num_records, self._meter.size_bytes)}

    def _ranges(self, waiting: dict[int, OffsetRange], record_bytes: Mapping[int, int]) -> dict[int, OffsetRange]:
        """What of the waiting offsets this version takes; without a pace to keep it follows from the arguments and the settings."""
        ingest = self.settings.ingest
        num_records = self._pace.limit(ingest.max_batch_records) if self._pace else ingest.max_batch_records
        return plan_batch(waiting, record_bytes, Limits(num_records, ingest.max_batch_bytes))

    def _min_text_bytes(self, ranges: Ranges, waiting: Ranges) -> int:
        """Text that a first version needs: none if it is as large as a version can be, for then waiting gives it no more."""
        is_all = sum(map(len, ranges.values())) == sum(map(len, waiting.values()))
        return self.settings.tokenizer.min_training_bytes if is_all else 0

    def _plan(self, dataset: Dataset | None, topic_id: str, ranges: dict[int, OffsetRange], parts: list[Slice], min_text_bytes: int) -> VersionPlan:
        return VersionPlan(
            version=dataset.version + 1 if dataset else 1,
            attempt=secrets.token_hex(6),
            topic_ids={self.topic: topic_id},
            offsets={self.topic: ranges},
            tokenizer=dataset.tokenizer if dataset else create_tokenizer(parts, self.settings, min_bytes=min_text_bytes),
        )

    def _write(self, dataset: Dataset | None, plan: VersionPlan, parts: list[Slice], dead: DeadRows) -> VersionFiles:
        """Run the job and write the version's files; dead records are put aside in ``dead``."""
        self._progress.started(plan.version, sum(part.end - part.start for part in parts))
        self._duplicates.open(dataset)
        self._retractions.open(dataset)
        self._boilerplate.open(dataset)
        arguments = (parts, self.settings, plan.tokenizer, self._boilerplate.known)
        masks, lines = self._retractions.masks, self._boilerplate
        if self._writes_in_tasks():  # asked once: nodes may come and go
            decided = self._decided(plan, run_ray_apart(*arguments, self._duplicates.generation), dead)
            return write_version(self.root, plan, self.settings, decided, self._duplicates.new_rows, masks, lines, TaskWriter)
        runner = run_local if self.settings.ingest.runner == "local" else run_ray
        resolved = self._resolved(plan, runner(*arguments), dead)
        return write_version(self.root, plan, self.settings, resolved, self._duplicates.new_segment, masks, lines)

    def _resolved(self, plan: VersionPlan, blocks: Iterator[pa.Table], dead: DeadRows) -> Iterator[ResolvedBlock]:
        for prepared in blocks:
            block = self._meter.read(prepared)
            self._check_not_stopped(plan)
            dead.put(only_dead(block))
            block = self._retractions.admit(block)  # what was published before its retraction is no candidate any more
            yield ResolvedBlock(block, self._retractions.resolve(block, self._duplicates))
            release()
            self._progress.advanced(len(block))

    def _decided(self, plan: VersionPlan, blocks: Iterator[BlockApart], dead: DeadRows) -> Iterator[DecidedBlock]:
        """The same of blocks that stay where they were prepared."""
        resources = ingest_resources(self.settings)
        for block in blocks:
            self._meter.add(block.decisive.counts)
            self._check_not_stopped(plan)
            if block.decisive.dead is not None:
                dead.put(block.decisive.dead)
            yield decided(block, self._retractions, self._duplicates, resources)
            self._progress.advanced(len(block))

    def _check_not_stopped(self, plan: VersionPlan) -> None:
        if self._stop.is_set():
            raise Abandoned(f"version {plan.version} was given up half-way; the next start takes it in from the beginning")

    def _writes_in_tasks(self) -> bool:
        """Whether blocks stay where they were prepared. On one machine they are in shared memory, and one writer is cheapest."""
        if self.settings.ingest.runner == "local":
            return False
        self._connect_ray()
        return self.settings.ingest.writer == "tasks" or (self.settings.ingest.writer == "auto" and not is_own_machine())

    def _connect_ray(self) -> None:
        if not self._has_ray:
            self._resources.enter_context(ray_session(self.settings.ray, f"ingest {root_name(self.root)}", worker_environment(self.root)))
            self._has_ray = True

    def _start_shards(self, base: Path) -> Shards:
        from pipelines.dedup.actors import ActorShards

        self._connect_ray()
        self._resources.callback(self._duplicates.close)
        return ActorShards(base, self.settings.dedup.max_hamming, self.settings.dedup.index_shards, root_name(self.root))

    def _ensure_topics(self) -> None:
        """Once per stream: the dead-letter and event topics, the documents topic being there already."""
        if not self._has_topics:
            ensure_topics(self.settings)
            self._has_topics = True

    def create_topic_of_new_dataset(self) -> None:
        """Create the topics if no version has read any; a topic that was read and is gone is for ``available`` to complain about."""
        dataset = self.dataset()
        if dataset is None or self.topic not in dataset.manifest.topic_ids:
            self._ensure_topics()


def _below(available: Ranges, until: Mapping[int, int] | None) -> dict[int, OffsetRange]:
    """The part of the available offsets below the given ones."""
    ends = {partition: span.end if until is None else min(span.end, until.get(partition, 0)) for partition, span in available.items()}
    return {partition: OffsetRange(start=span.start, end=max(span.start, ends[partition])) for partition, span in available.items()}


def _epochs_of(manifest: DatasetManifest | None, topic: str) -> dict[int, int]:
    return manifest.leader_epochs.get(topic, {}) if manifest else {}


def _told(manifest: DatasetManifest) -> Attributes:
    """What the span of a version says."""
    counts = {f"headrace.outcome.{outcome}": count for outcome, count in manifest.outcomes.items()}
    return counts | {
        "headrace.dataset_version": manifest.version,
        "headrace.records": manifest.num_records,
        "headrace.tokens": manifest.num_tokens,
        "headrace.shards": len(manifest.shards),
    }


def ingest_once(settings: Settings, progress: Progress | None = None) -> list[DatasetManifest]:
    """Take in everything up to the ends of the partitions as they are now, in as many versions as ``max_batch_records`` makes of it."""
    with Stream(settings, progress) as stream:
        stream.announce()
        until = {partition: span.end for partition, span in stream.available().items()}
        stream.metrics.not_ready = None
        return list(iter(lambda: stream.commit_next(until), None))
