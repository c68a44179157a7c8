"""Idempotent producers: who they are, and which of their batches a partition already has.

A producer numbers its batches per partition. A batch that was appended but whose answer was lost comes again with the same numbers; it
is answered with its first offset and not appended twice. The last five batches per producer are remembered, because a producer has at
most five requests in flight. The state lives in the batch headers of the log and is rebuilt from them.
Source: KIP-98; Apache Kafka's rules for gaps, new epochs and forgotten producers.
"""

import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ops.broker.batch import NO_PRODUCER, BatchHeader
from ops.broker.codes import ErrorCode, ProtocolError
from ops.broker.files import read_json, write_json

BATCHES_REMEMBERED = 5
FORGET_AFTER_S = 24 * 3600.0
"""A producer that has not written for a day is forgotten, as ``producer.id.expiration.ms`` has it."""
ID_BLOCK = 1_000


class _Appended(NamedTuple):
    first_sequence: int
    last_sequence: int
    base_offset: int


@dataclass
class _Producer:
    epoch: int
    last_append_s: float
    recent: deque[_Appended] = field(default_factory=lambda: deque(maxlen=BATCHES_REMEMBERED))


class ProducerStates:
    """The idempotent producers of one partition."""

    def __init__(self) -> None:
        self._producers: dict[int, _Producer] = {}

    def original_offset(self, header: BatchHeader) -> int | None:
        """Base offset of the batch if it is already in the log, else None, and then it may be appended.

        Raises ProtocolError for an old epoch (INVALID_PRODUCER_EPOCH) or a gap (OUT_OF_ORDER_SEQUENCE_NUMBER).
        """
        known = self._producers.get(header.producer_id)
        if header.producer_id == NO_PRODUCER or known is None:
            return None
        if header.producer_epoch < known.epoch:
            raise ProtocolError(ErrorCode.INVALID_PRODUCER_EPOCH, f"producer {header.producer_id} has moved on to epoch {known.epoch}")
        if header.producer_epoch > known.epoch:
            _expect(header, 0)
            return None
        for appended in known.recent:
            if appended[:2] == (header.base_sequence, header.last_sequence):
                return appended.base_offset
        _expect(header, (known.recent[-1].last_sequence + 1) & 0x7FFFFFFF)
        return None

    def record(self, header: BatchHeader, base_offset: int) -> None:
        """Remember an appended batch."""
        if header.producer_id == NO_PRODUCER:
            return
        known = self._producers.get(header.producer_id)
        if known is None or known.epoch != header.producer_epoch:
            known = self._producers[header.producer_id] = _Producer(header.producer_epoch, 0.0)
        known.last_append_s = time.monotonic()
        known.recent.append(_Appended(header.base_sequence, header.last_sequence, base_offset))

    def forget_idle(self, now_s: float) -> None:
        """Drop producers that have not written for a day, so that the table stays small."""
        idle = [key for key, known in self._producers.items() if now_s - known.last_append_s > FORGET_AFTER_S]
        for key in idle:
            del self._producers[key]


def _expect(header: BatchHeader, sequence: int) -> None:
    if header.base_sequence != sequence:
        raise ProtocolError(
            ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER,
            f"producer {header.producer_id} sent sequence {header.base_sequence}, the next one is {sequence}",
        )


class ProducerIds:
    """Hands out producer ids that no one has had, also not before a crash: they are reserved on disk in blocks."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._next = int(read_json(path, {"reserved": 0})["reserved"])
        self._reserved = self._next

    def take(self) -> int:
        """A new producer id. Raises OSError when no more can be reserved."""
        if self._next == self._reserved:
            reserved = self._reserved + ID_BLOCK
            write_json(self._path, {"reserved": reserved})
            self._reserved = reserved
        self._next += 1
        return self._next - 1
