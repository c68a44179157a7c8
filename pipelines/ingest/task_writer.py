"""A version written by Ray tasks: this process decides and computes places, and no token and no text passes through it.

Ray sends the task that settles a block (dataset/settling.py) to the node that holds it if it can. A shard, or a file of the audit trail, is
written by one task as soon as its last piece is known. Invariant: the files have the bytes that VersionWriter gives them, whatever the number of
blocks, tasks and hosts.
The tasks take none of Ray's CPUs, because reading may hold all of them while it waits for this process. The number of tasks that run at once is
bounded. Less than one shard of each split and one file of the trail waits in Ray's object store.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.dataset.boilerplate import Boilerplate
from pipelines.dataset.packing import Packing
from pipelines.dataset.settling import (
    DecidedBlock,
    Decision,
    Layout,
    Packed,
    Piece,
    Settled,
    segment_rows,
    settle,
    write_segment_of,
    write_shard_of,
    write_trail_file,
)
from pipelines.dataset.statistics import Statistics
from pipelines.dataset.trail_writer import TRAIL_FILE_ROWS
from pipelines.dataset.writer import VersionPlan
from pipelines.dedup.resolve import KeptApart
from pipelines.ingest.apart import remote
from pipelines.ingest.decisive import Decisive
from pipelines.kernels.ingest import ensure_compiled
from pipelines.runtime.crash import crash_point
from pipelines.runtime.ray_errors import original_errors
from pipelines.runtime.roles import node_resources, nodes_of
from pipelines.storage.mirror import root_name
from pipelines.text.log_lines import log_about
from schemas.arrow import Split
from schemas.manifest import FileEntry, ShardEntry
from schemas.settings import Settings

_log = logging.getLogger(__name__)
CPUS_PER_TASK = 4
"""One task may settle or write for so many CPUs of the cluster: preparing the same rows takes ten times the work."""
MIN_TASKS = 2
Positions = npt.NDArray[np.int64]


@dataclass
class _ShardTasks:
    """The shards of one split."""

    split: Split
    packing: Packing
    submit: Callable[[Split, int, list[Piece], list[Any]], Any]
    number: int = 0
    """Of the open shard."""
    pieces: list[Piece] = field(default_factory=list)
    sources: list[Any] = field(default_factory=list)
    written: list[Any] = field(default_factory=list)

    def close(self) -> None:
        """Have the open shard written, unless it is empty."""
        if self.pieces:
            self.written.append(self.submit(self.split, self.number, self.pieces, self.sources))
            self.number, self.pieces, self.sources = self.number + 1, [], []


class TaskWriter:
    """Takes blocks in commit order, as VersionWriter does; ``write_version`` drives it. Ray must be running."""

    def __init__(self, root: Path, plan: VersionPlan, settings: Settings, boilerplate: Boilerplate) -> None:
        packing = settings.packing
        self.statistics = Statistics()
        self._layout = Layout(str(root), plan.version, plan.attempt, plan.tokenizer, packing.sequence_length)
        self._boilerplate = boilerplate
        self._shards = [_ShardTasks(split, Packing(packing.sequence_length, packing.shard_rows), self._write_shard) for split in Split]
        self._trail_pieces: list[Piece] = []
        self._trail_sources: list[Any] = []
        self._trails: list[list[Any]] = []
        self._tasks: dict[Callable[..., Any], Any] = {}
        self._running: list[Any] = []
        """For each running task the smallest of the values that it returns."""
        self._lines: set[Any] = set()
        """Those of them that are counts of lines."""
        self._most_running = max(MIN_TASKS, nodes_of(settings.ray.ingest_nodes).num_cpus // CPUS_PER_TASK)
        self._resources = node_resources(settings.ray.ingest_nodes, "ray.ingest_nodes")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Forget what was not written; running tasks end by themselves."""
        self._running.clear()

    def add(self, block: DecidedBlock) -> None:
        """Say where the kept documents of a block stand, and have it settled. Raises what a task raised that began before."""
        is_kept = np.ones(len(block.num_tokens), np.bool_)
        is_kept[block.duplicates["position"].to_numpy()] = False
        is_validation = block.num_tokens < 0
        lengths = np.where(is_validation, -block.num_tokens, block.num_tokens + 1)
        chosen = [lengths[is_kept & (is_validation == (split == Split.VALIDATION))] for split in Split]
        runs = [shards.packing.place(of_split.astype(np.int64)) for shards, of_split in zip(self._shards, chosen, strict=True)]
        decision = Decision(block.changed, block.duplicates, runs, chosen)
        documents, *packed, lines = self._started(4, "settle a block", _settle, self._layout, decision, block.source, *block.names)
        if self._boilerplate.is_counting:
            self._lines.add(lines)
        for shards, of_split, source in zip(self._shards, runs, packed, strict=True):
            for run in of_split:
                if run.shard > shards.number:
                    shards.close()
                shards.pieces.append(Piece(run.first, run.stop, run.start))
                shards.sources.append(source)
        self._add_to_trail(documents, block.num_rows)

    def finish_shards(self) -> list[ShardEntry]:
        """Wait for all shards; train shards first."""
        import ray

        entries: list[ShardEntry] = []
        for shards in self._shards:
            shards.close()
            with original_errors():
                entries += ray.get(shards.written)
            crash_point("shard_written")
        return entries

    def finish_trail(self) -> list[FileEntry]:
        """Wait for all files of the audit trail, and for what was counted."""
        import ray

        if self._trail_pieces or not self._trails:
            self._write_trail()
        self._wait_for(len(self._running))
        with original_errors():
            written = [ray.get(returns) for returns in self._trails]
        for _, statistics in written:
            self.statistics.join(statistics)
        return [entry for entry, _ in written]

    def write_segment(self, segment: list[pa.Table | KeptApart]) -> list[FileEntry]:
        """Write the kept documents' fingerprints; rows that are elsewhere are put together by a task."""
        import ray

        parts, made = [], []
        for part in segment:
            parts.append(part.positions if isinstance(part, KeptApart) else part)
            made += [*part.source] if isinstance(part, KeptApart) else []
        with original_errors():
            found: list[FileEntry] = ray.get(self._started(1, "write the fingerprints", _write_segment, self._layout, parts, *made))
        return found

    def _wait_for(self, number: int) -> None:
        """Wait until so many of the running tasks have ended, and take in what they say. Raises what one of them raised."""
        import ray

        if not self._running:
            return
        if number:
            ray.wait(self._running, num_returns=number, fetch_local=False)
        ended, self._running = ray.wait(self._running, num_returns=len(self._running), timeout=0, fetch_local=False)
        with original_errors():
            said = ray.get(ended)
        for reference, value in zip(ended, said, strict=True):
            if reference in self._lines:
                self._lines.remove(reference)
                self._boilerplate.add_counts(value)

    def _add_to_trail(self, documents: Any, num_rows: int) -> None:
        first = 0
        while first < num_rows:
            room = TRAIL_FILE_ROWS - sum(piece.stop - piece.first for piece in self._trail_pieces)
            stop = min(num_rows, first + room)
            self._trail_pieces.append(Piece(first, stop))
            self._trail_sources.append(documents)
            if stop - first == room:
                self._write_trail()
            first = stop

    def _write_trail(self) -> None:
        pieces, sources = self._trail_pieces, self._trail_sources
        self._trails.append(self._started(2, "write a file of the audit trail", _write_trail, self._layout, len(self._trails), pieces, *sources))
        self._trail_pieces, self._trail_sources = [], []

    def _write_shard(self, split: Split, number: int, pieces: list[Piece], sources: list[Any]) -> Any:
        return self._started(1, "write a shard", _write_shard, self._layout, split, number, pieces, *sources)

    def _started(self, num_returns: int, name: str, task: Callable[..., Any], *arguments: Any) -> Any:
        """References to what the task will return, of which one alone or the last is small; waits while too many others run."""
        self._wait_for(max(0, len(self._running) - self._most_running + 1))
        if task not in self._tasks:
            self._tasks[task] = remote(task).options(num_cpus=0, resources=self._resources, num_returns=num_returns, name=f"ingest: {name}")
        found = self._tasks[task].remote(*arguments)
        self._running.append(found[-1] if num_returns > 1 else found)
        return found


def _settle(layout: Layout, decision: Decision, block: pa.Table, *names: pa.Array) -> Settled:
    log_about(_told(layout))
    _log.info("settles a block of %d records", len(block))
    ensure_compiled()
    return settle(block, decision, layout, names)


def _write_shard(layout: Layout, split: Split, number: int, pieces: list[Piece], *packed: Packed) -> ShardEntry:
    log_about(_told(layout))
    _log.info("writes %s shard %d", split, number)
    return write_shard_of(layout, split, number, pieces, packed)


def _write_trail(layout: Layout, number: int, pieces: list[Piece], *blocks: pa.Table) -> tuple[FileEntry, Statistics]:
    log_about(_told(layout))
    _log.info("writes file %d of the audit trail", number)
    return write_trail_file(layout, number, pieces, blocks)


def _write_segment(layout: Layout, parts: list[pa.Table | Positions], *made: Any) -> list[FileEntry]:
    """``made``: for each part that is positions, what decides about its block and the ids of that block's candidates."""
    log_about(_told(layout))
    _log.info("writes the fingerprints of the kept documents")
    blocks: Iterator[tuple[Decisive, pa.Array]] = zip(made[::2], made[1::2], strict=True)
    tables = [part if isinstance(part, pa.Table) else _rows_at(part, *next(blocks)) for part in parts]
    return write_segment_of(layout, tables)


def _told(layout: Layout) -> str:
    return f"version {layout.version} of {root_name(layout.root)}"


def _rows_at(positions: Positions, decisive: Decisive, ids: pa.Array) -> pa.Table:
    return segment_rows(decisive.candidates, ids, positions)
