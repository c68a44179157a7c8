"""Committed offsets of consumer groups, and how they survive.

Invariant: a commit is in the file (with the operating system) before it is acknowledged. The file is a journal of JSON lines; the last word
on a (group, topic, partition) counts, an unfinished last line is cut off, and the journal is rewritten when most of it is history. A rewriting that
fails leaves the journal as it was, and commits go on into it.
"""

import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.storage.durable import sync_folder
from schemas.errors import BrokerError

logger = logging.getLogger(__name__)

COMPACT_ABOVE_LINES = 20_000
"""The journal is rewritten when it has this many lines and four times more than there are committed offsets."""


class TopicPartition(NamedTuple):
    """Key of a committed offset within a group."""

    topic: str
    partition: int


class Committed(NamedTuple):
    """What a consumer committed."""

    offset: int
    leader_epoch: int
    metadata: str


class OffsetStore:
    """Offsets by group."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._groups: dict[str, dict[TopicPartition, Committed]] = {}
        self._num_lines = 0
        self._retry_at_lines = 0
        """After a rewriting that failed: the number of lines at which the next one is tried."""
        self._fd = _open(path)
        sync_folder(path.parent)
        self._load()

    def _load(self) -> None:
        data = self._path.read_bytes()
        whole_bytes = data.rfind(b"\n") + 1
        os.ftruncate(self._fd, whole_bytes)
        for line in data[:whole_bytes].splitlines():
            self._num_lines += 1
            try:
                self._apply(json.loads(line))
            except (ValueError, KeyError) as error:
                raise BrokerError(f"{self._path} is damaged in line {self._num_lines}; remove that line to go on without its offset") from error

    def _apply(self, entry: Mapping[str, Any]) -> None:
        offsets = self._groups.setdefault(entry["group"], {})
        if "topic" not in entry:
            del self._groups[entry["group"]]
            return
        key = TopicPartition(entry["topic"], entry["partition"])
        if "offset" in entry:
            offsets[key] = Committed(entry["offset"], entry["leader_epoch"], entry["metadata"])
        else:
            offsets.pop(key, None)
        if not offsets:
            del self._groups[entry["group"]]

    def groups(self) -> list[str]:
        """Groups that have committed something."""
        return list(self._groups)

    def of(self, group: str) -> Mapping[TopicPartition, Committed]:
        """All committed offsets of a group."""
        return self._groups.get(group, {})

    def commit(self, group: str, offsets: Mapping[TopicPartition, Committed]) -> None:
        """Store offsets; when this returns they survive a SIGKILL."""
        self._write([_entry(group, key, committed) for key, committed in offsets.items()])

    def delete(self, group: str, keys: Iterable[TopicPartition]) -> None:
        """Forget these offsets of a group."""
        self._write([{"group": group, **key._asdict()} for key in keys])

    def delete_group(self, group: str) -> None:
        """Forget all offsets of a group."""
        if group in self._groups:
            self._write([{"group": group}])

    def delete_topic(self, topic: str) -> None:
        """Forget the offsets of a topic that is no more, in all groups."""
        for group, offsets in list(self._groups.items()):
            self.delete(group, [key for key in offsets if key.topic == topic])

    def _write(self, entries: list[dict[str, Any]]) -> None:
        if not entries:
            return
        self._append(b"".join(map(_line, entries)))
        for entry in entries:
            self._apply(entry)
        self._num_lines += len(entries)
        self._compact_if_due()

    def _append(self, lines: bytes) -> None:
        """All of it or nothing: half a line in the middle would spoil the journal."""
        size_bytes = os.fstat(self._fd).st_size
        try:
            if os.write(self._fd, lines) != len(lines):
                raise OSError(f"offsets did not fit into {self._path}; is the disk full?")
        except OSError:
            os.ftruncate(self._fd, size_bytes)
            raise

    def _compact_if_due(self) -> None:
        num_live = sum(map(len, self._groups.values()))
        if self._num_lines < max(COMPACT_ABOVE_LINES, 4 * num_live, self._retry_at_lines):
            return
        try:
            self._compact()
        except OSError as error:
            self._retry_at_lines = 2 * self._num_lines
            logger.warning("%s could not be shortened (%s); it grows until that works", self._path, error)

    def _compact(self) -> None:
        """Rewrite the journal beside itself, and go on in the new file from the moment of the rename."""
        draft = self._path.with_name(self._path.name + ".tmp")
        lines = [
            _line({"group": group, **key._asdict(), **entry._asdict()}) for group, offsets in self._groups.items() for key, entry in offsets.items()
        ]
        try:
            with draft.open("wb") as file:
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
            shortened = _open(draft)
            try:
                draft.replace(self._path)
            except OSError:
                os.close(shortened)
                raise
        finally:
            draft.unlink(missing_ok=True)
        os.close(self._fd)
        self._fd, self._num_lines, self._retry_at_lines = shortened, len(lines), 0
        sync_folder(self._path.parent)

    def close(self) -> None:
        """Flush to disk."""
        os.fsync(self._fd)
        os.close(self._fd)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)


def _entry(group: str, key: TopicPartition, committed: Committed) -> dict[str, Any]:
    return {"group": group, **key._asdict(), **committed._asdict()}


def _line(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry).encode("ascii") + b"\n"
