"""Kafka as a source of Ray Data: one read task per few windows of slices.

``ray.data.read_kafka`` is not used: it waits for ever where a partition ends in a transaction marker or a compaction gap, and resolves
"latest" per task. Here the driver fixes every range beforehand (planning.py) and tasks only read them (reading.py).
The only module of this package that imports Ray.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from pipelines.kafka.reading import EXPECTED_RECORD_BYTES, Slice, read_slice, read_slices, slices
from schemas.arrow import RECORDS
from schemas.settings import Settings

__all__ = ["KafkaDatasource", "Slice", "read_slice", "slices"]


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
        return "Kafka"

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
    read: Callable[[], Iterator[pa.Table]] = partial(read_slices, parts, settings)
    return ReadTask(read, metadata, schema=RECORDS, per_task_row_limit=row_limit)


def _num_rows(parts: Sequence[Slice]) -> int:
    return sum(part.end - part.start for part in parts)
