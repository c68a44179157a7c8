"""The catalogue of topics: names, ids, configurations, partitions.

Invariant: the catalogue file, replaced atomically, decides what exists; a topic's folder is named after its id, so that a topic deleted and
created again shares nothing with the old one, and folders that the catalogue does not name are removed at start. Every change is durable first
and visible second: where the disk refuses (KAFKA_STORAGE_ERROR), clients see the catalogue as it was.
"""

import base64
import logging
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ops.broker.codes import ErrorCode, ProtocolError
from ops.broker.configs import TopicLimits
from ops.broker.epochs import next_epoch
from ops.broker.files import read_json, write_json
from ops.broker.log import PartitionLog
from pipelines.storage.durable import make_folder, sync_folder
from schemas.settings import BrokerSettings

logger = logging.getLogger(__name__)

NAME = re.compile(r"[a-zA-Z0-9._-]{1,249}")
MAX_PARTITIONS = 10_000


class Topic:
    """A topic and its open partitions."""

    def __init__(self, name: str, id: uuid.UUID, configs: Mapping[str, str], folder: Path, leader_epoch: int) -> None:
        self.name = name
        self.id = id
        self.configs = dict(configs)
        self.folder = folder
        self.leader_epoch = leader_epoch
        self.partitions: list[PartitionLog] = []

    def open_partitions(self, num_partitions: int) -> None:
        """Open (and so recover) or create partitions up to this number."""
        for index in range(len(self.partitions), num_partitions):
            self.partitions.append(PartitionLog(self.folder / str(index), self.leader_epoch))

    def create_partitions(self, num_partitions: int) -> None:
        """Make partitions up to this number; their folders are durable when this returns. Raises OSError with the topic as it was."""
        present = len(self.partitions)
        try:
            make_folder(self.folder)
            self.open_partitions(num_partitions)
            sync_folder(self.folder)
        except OSError:
            self.drop_partitions(present)
            raise

    def drop_partitions(self, keep: int) -> None:
        """Remove partitions beyond this number, files and all. What the disk does not let go stays until the next start."""
        dropped, self.partitions = self.partitions[keep:], self.partitions[:keep]
        for partition in dropped:
            with suppress(OSError):
                partition.delete()
            shutil.rmtree(partition.folder, ignore_errors=True)

    def describe(self) -> dict[str, Any]:
        """What the catalogue file keeps."""
        return {"name": self.name, "id": self.id.hex, "num_partitions": len(self.partitions), "configs": self.configs}


class Catalogue:
    """All topics. Changes are on disk when a method returns. Opening it begins a leader epoch."""

    def __init__(self, folder: Path, settings: BrokerSettings) -> None:
        self.settings = settings
        self.on_forget: list[Callable[[str], None]] = []
        """Told the name of a topic that is gone; told again before the name is used anew, for a crash or a full disk the first time."""
        self._file = folder / "catalogue.json"
        self._topics_folder = folder / "topics"
        self._by_name: dict[str, Topic] = {}
        self._by_id: dict[uuid.UUID, Topic] = {}
        self._limits: dict[uuid.UUID, TopicLimits] = {}
        self._load()

    def _load(self) -> None:
        stored = read_json(self._file, None)
        self.cluster_id = str(stored["cluster_id"]) if stored else _new_cluster_id()
        self.leader_epoch = next_epoch(int(stored.get("leader_epoch", 0)) if stored else 0)
        make_folder(self._topics_folder)
        self._begin_epoch(stored)
        for entry in stored["topics"] if stored else ():
            topic_id = uuid.UUID(hex=entry["id"])
            topic = Topic(entry["name"], topic_id, entry["configs"], self._topics_folder / topic_id.hex, self.leader_epoch)
            topic.open_partitions(entry["num_partitions"])
            self._add(topic)
        self._remove_orphans()

    def _begin_epoch(self, stored: Any) -> None:
        """Store the epoch. If the disk is full, an existing catalogue still serves: each batch stores the epoch too, and retention may free space."""
        try:
            self._write(stored["topics"] if stored else [])
        except OSError:
            if not stored:
                raise
            logger.exception("leader epoch %d could not be stored in %s", self.leader_epoch, self._file)

    def _remove_orphans(self) -> None:
        partitions = {topic.folder.name: len(topic.partitions) for topic in self}
        for folder in self._topics_folder.iterdir():
            if folder.name not in partitions:
                shutil.rmtree(folder)
                continue
            for partition in folder.iterdir():
                if partition.name.isdecimal() and int(partition.name) >= partitions[folder.name]:
                    shutil.rmtree(partition)

    def _add(self, topic: Topic) -> None:
        self._by_name[topic.name] = topic
        self._by_id[topic.id] = topic

    def _write(self, topics: list[dict[str, Any]]) -> None:
        write_json(self._file, {"cluster_id": self.cluster_id, "leader_epoch": self.leader_epoch, "topics": topics})

    def __iter__(self) -> Iterator[Topic]:
        return iter(tuple(self._by_name.values()))

    def find(self, name: str) -> Topic | None:
        """The topic of this name."""
        return self._by_name.get(name)

    def find_id(self, topic_id: uuid.UUID | None) -> Topic | None:
        """The topic with this id."""
        return self._by_id.get(topic_id) if topic_id else None

    def resolve(self, name: str | None, topic_id: uuid.UUID | None) -> Topic:
        """The topic by id if one is given, else by name. Raises UNKNOWN_TOPIC_ID or UNKNOWN_TOPIC_OR_PARTITION."""
        topic = self.find_id(topic_id) if topic_id else self.find(name or "")
        if topic is None:
            code = ErrorCode.UNKNOWN_TOPIC_ID if topic_id else ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
            raise ProtocolError(code, f"there is no topic {topic_id or name!r}")
        return topic

    def partition(self, name: str | None, topic_id: uuid.UUID | None, index: int) -> PartitionLog:
        """One partition's log. Raises as ``resolve``, and UNKNOWN_TOPIC_OR_PARTITION for an index there is not."""
        topic = self.resolve(name, topic_id)
        if not 0 <= index < len(topic.partitions):
            raise ProtocolError(ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, f"topic {topic.name} has no partition {index}")
        return topic.partitions[index]

    def limits(self, topic: Topic) -> TopicLimits:
        """What the topic's configurations and the broker's settings allow."""
        found = self._limits.get(topic.id)
        if found is None:
            found = self._limits[topic.id] = TopicLimits.of(topic.configs, self.settings)
        return found

    def check_name(self, name: str) -> None:
        """Raise INVALID_TOPIC_EXCEPTION for what cannot be a topic's name."""
        if not NAME.fullmatch(name) or name in (".", ".."):
            raise ProtocolError(ErrorCode.INVALID_TOPIC_EXCEPTION, f"topic name {name!r} is not 1 to 249 of a-z, A-Z, 0-9, '.', '_', '-'")

    def check_new(self, name: str, num_partitions: int) -> None:
        """Raise if a topic of this name cannot be created."""
        self.check_name(name)
        if name in self._by_name:
            raise ProtocolError(ErrorCode.TOPIC_ALREADY_EXISTS, f"Topic '{name}' already exists.")
        if not 0 < num_partitions <= MAX_PARTITIONS:
            raise ProtocolError(ErrorCode.INVALID_PARTITIONS, f"{num_partitions} partitions; a topic has 1 to {MAX_PARTITIONS}")

    @contextmanager
    def _change(self, what: str) -> Iterator[None]:
        """If the disk refuses, the client gets an error and may try again."""
        try:
            yield
        except OSError as error:
            logger.error("cannot %s: %s", what, error)
            with suppress(OSError):  # the new file may be in place and only not flushed: put back what clients see
                self._write([known.describe() for known in self])
            raise ProtocolError(ErrorCode.KAFKA_STORAGE_ERROR, f"cannot {what}: {error}") from error

    def create(self, name: str, num_partitions: int, configs: Mapping[str, str]) -> Topic:
        """Create a topic under a new id."""
        self.check_new(name, num_partitions)
        topic_id = uuid.uuid4()
        topic = Topic(name, topic_id, configs, self._topics_folder / topic_id.hex, self.leader_epoch)
        with self._change(f"create topic {name}"):
            try:
                # Step 1: nothing that was kept under this name is left.
                self._forget(name)
                # Step 2: the folders.
                topic.create_partitions(num_partitions)
                # Step 3: the catalogue names it.
                self._write([known.describe() for known in (*self, topic)])
            except OSError:
                topic.drop_partitions(0)
                shutil.rmtree(topic.folder, ignore_errors=True)
                raise
        # Step 4: clients see it.
        self._add(topic)
        return topic

    def create_default(self, name: str) -> Topic:
        """Create a topic because a client asked about it."""
        return self.create(name, self.settings.num_partitions, {})

    def add_partitions(self, topic: Topic, num_partitions: int) -> None:
        """Grow a topic to this many partitions."""
        present = len(topic.partitions)
        with self._change(f"add partitions to topic {topic.name}"):
            topic.create_partitions(num_partitions)
            try:
                self._write([known.describe() for known in self])
            except OSError:
                topic.drop_partitions(present)
                raise

    def set_configs(self, topic: Topic, configs: Mapping[str, str]) -> None:
        """Replace a topic's configurations."""
        with self._change(f"change the configurations of topic {topic.name}"):
            self._write([known.describe() | ({"configs": dict(configs)} if known is topic else {}) for known in self])
        topic.configs = dict(configs)
        self._limits.pop(topic.id, None)

    def delete(self, topic: Topic) -> None:
        """Remove a topic: first from the catalogue, then from view, then its files; then whoever keeps state about it removes that."""
        with self._change(f"delete topic {topic.name}"):
            self._write([known.describe() for known in self if known is not topic])
        del self._by_name[topic.name], self._by_id[topic.id]
        self._limits.pop(topic.id, None)
        topic.drop_partitions(0)
        shutil.rmtree(topic.folder, ignore_errors=True)
        try:
            self._forget(topic.name)
        except OSError:
            logger.exception("what is kept about the deleted topic %s goes when a topic of that name is created", topic.name)

    def _forget(self, name: str) -> None:
        for listener in self.on_forget:
            listener(name)

    def close(self) -> None:
        """Flush and close every log."""
        for topic in self:
            for partition in topic.partitions:
                partition.close()


def _new_cluster_id() -> str:
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode("ascii").rstrip("=")
