"""Dead records of a batch, put aside until every file of the version is durable: on disk, because a batch may hold more of them than memory.

The file has no name, so a crash leaves nothing behind.
"""

import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa

from pipelines.kafka.deadletters import publish_dead_letters
from schemas.settings import Settings

WINDOW_BYTES = 16 * 2**20
"""Dead rows are read back and published in portions of about this size."""


class DeadRows:
    """Use it in a ``with`` block: ``put`` blocks, then ``publish`` once."""

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  (closed by __exit__)
        self._num_blocks = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def put(self, rows: pa.Table) -> None:
        """Keep the dead rows of a prepared block."""
        if len(rows):
            with pa.ipc.new_stream(self._file, rows.schema) as writer:
                writer.write_table(rows)
            self._num_blocks += 1

    def publish(self, settings: Settings) -> None:
        """Produce them in order, each acknowledged. Raises BrokerUnavailable."""
        self._file.seek(0)
        window: list[pa.Table] = []
        for _ in range(self._num_blocks):
            window.append(pa.ipc.open_stream(self._file).read_all())
            if sum(rows.nbytes for rows in window) >= WINDOW_BYTES:
                publish_dead_letters(settings, pa.concat_tables(window))
                window = []
        if window:
            publish_dead_letters(settings, pa.concat_tables(window))
