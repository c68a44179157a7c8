"""Kafka as a source of Ray Data: one read task per few windows of slices.

``ray.data.read_kafka`` is not used: it waits for ever where a partition ends in a transaction marker or a compaction gap, and resolves
"latest" per task. Here the driver fixes every range beforehand (planning.py) and tasks only read them (reading.py).
The only module of this package that imports Ray.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from pipelines.kafka.reading import EXPECTED_RECORD_BYTES, Slice, read_slice, read_slices, slices
from pipelines.text.log_lines import log_about
from schemas.arrow import RECORDS
from schemas.counting import counted
from schemas.settings import Settings

__all__ = ["KafkaDatasource", "Slice", "read_slice", "slices"]
_log = logging.getLogger(__name__)
TOLD_SLICES = 3
"""Slices that a line of the log names."""


class KafkaDatasource(Datasource):
    """Rows of schemas.arrow.RECORDS, one per offset of the slices.

    With ``preserve_order`` in the execution options they come out in the order of the slices, and in offset order within each.
    """

    def __init__(self, groups: Sequence[Sequence[Slice]], settings: Settings) -> None:
        """``groups``: the slices of each read task, at least one."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._groups = [tuple(parts) for parts in groups]
        self._settings = settings

    def get_name(self) -> str:
        """Name of the read tasks in Ray's dashboard."""
        return f"Kafka({', '.join(sorted({part.topic for parts in self._groups for part in parts}))})"

    def estimate_inmemory_data_size(self) -> int:
        """Bytes, guessed from the number of offsets."""
        return sum(map(_num_rows, self._groups)) * EXPECTED_RECORD_BYTES

    def get_read_tasks(self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None) -> list[ReadTask]:  # noqa: ARG002
        """One task per group, whatever parallelism Ray would like."""
        return [_read_task(parts, self._settings, per_task_row_limit) for parts in self._groups]


def _read_task(parts: Sequence[Slice], settings: Settings, row_limit: int | None) -> ReadTask:
    num_rows = _num_rows(parts)
    metadata = BlockMetadata(
        num_rows=num_rows,
        size_bytes=num_rows * EXPECTED_RECORD_BYTES,
        input_files=tuple(f"{part.topic}/{part.partition}/{part.start}-{part.end}" for part in parts),
        exec_stats=None,
    )
    read: Callable[[], Iterator[pa.Table]] = partial(_read, parts, settings)
    return ReadTask(read, metadata, schema=RECORDS, per_task_row_limit=row_limit)


def _read(parts: Sequence[Slice], settings: Settings) -> Iterator[pa.Table]:
    """In the task. The step that prepares the records is part of it, so its lines in the log are about these records too."""
    log_about(subject_of(parts), settings.telemetry.log_level)
    _log.info("reads and prepares %d records", _num_rows(parts))
    yield from read_slices(parts, settings)


def subject_of(parts: Sequence[Slice]) -> str:
    """``headrace.documents/0 100-299, headrace.documents/1 0-199 and 3 more slices``: partitions and offsets."""
    first = ", ".join(f"{part.topic}/{part.partition} {part.start}-{part.end - 1}" for part in parts[:TOLD_SLICES])
    left = len(parts) - TOLD_SLICES
    return f"{first} and {counted(left, 'more slice')}" if left > 0 else first


def _num_rows(parts: Sequence[Slice]) -> int:
    return sum(part.end - part.start for part in parts)
