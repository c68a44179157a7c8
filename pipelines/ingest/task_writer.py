"""A version written by Ray tasks: this process decides and computes places, and no token and no text passes through it.

Ray sends the task that settles a block (dataset/settling.py) to the node that holds it if it can. A shard, or a file of the audit trail, is
written by one task as soon as its last piece is known. Invariant: the files have the bytes that VersionWriter gives them, whatever the number of
blocks, tasks and hosts.
The tasks take none of Ray's CPUs, because reading may hold all of them while it waits for this process. The number of tasks that run at once is
bounded. Less than one shard of each split and one file of the trail waits in Ray's object store.
"""

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa

from pipelines.dataset.boilerplate import Boilerplate
from pipelines.dataset.packing import Packing
from pipelines.dataset.settling import Decision, Layout, Packed, Piece, Settled, settle, write_shard_of, write_trail_file
from pipelines.dataset.statistics import Statistics
from pipelines.dataset.trail_writer import TRAIL_FILE_ROWS
from pipelines.dataset.writer import ResolvedBlock, VersionPlan, outcomes_of, rows_by_split
from pipelines.ingest.decisive import NUM_TOKENS
from pipelines.kernels.ingest import ensure_compiled
from pipelines.runtime.crash import crash_point
from pipelines.runtime.ray_errors import original_errors
from pipelines.runtime.roles import node_resources
from pipelines.storage.mirror import root_name
from pipelines.text.log_lines import log_about
from schemas.arrow import Split
from schemas.manifest import FileEntry, ShardEntry
from schemas.settings import Settings

_log = logging.getLogger(__name__)
CPUS_PER_TASK = 4
"""One task may settle or write for so many CPUs of the cluster: preparing the same rows takes ten times the work."""
MIN_TASKS = 2


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
        self._lines: list[Any] = []
        self._running: deque[Any] = deque()
        self._most_running = _most_running()
        self._resources = node_resources(settings.ray.ingest_nodes, "ray.ingest_nodes")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Forget what was not written; running tasks end by themselves."""
        self._running.clear()

    def add(self, resolved: ResolvedBlock) -> None:
        """Say where the kept documents of a block stand, and have it settled."""
        outcomes = outcomes_of(resolved.rows, resolved.verdicts)
        lengths = resolved.rows[NUM_TOKENS].to_numpy()
        chosen = [(lengths[rows] + 1).astype(np.int64) for rows in rows_by_split(resolved.rows, outcomes)]
        runs = [shards.packing.place(of_split) for shards, of_split in zip(self._shards, chosen, strict=True)]
        outcome, verdicts = resolved.rows.select(["outcome", "reason"]).combine_chunks(), resolved.verdicts.combine_chunks()
        decision = Decision(outcome, verdicts, runs, [int(of_split.sum()) for of_split in chosen])
        documents, *packed, lines = self._started(4, "settle a block", _settle, self._layout, decision, resolved.source)
        for shards, of_split, source in zip(self._shards, runs, packed, strict=True):
            for run in of_split:
                if run.shard > shards.number:
                    shards.close()
                shards.pieces.append(Piece(run.first, run.stop, run.start))
                shards.sources.append(source)
        if self._boilerplate.is_counting:
            self._lines.append(lines)
            self._take_in_lines(timeout_s=0)
        self._add_to_trail(documents, len(resolved.rows))

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
        with original_errors():
            self._take_in_lines(timeout_s=None)
            written = [ray.get(returns) for returns in self._trails]
        for _, statistics in written:
            self.statistics.join(statistics)
        return [entry for entry, _ in written]

    def _take_in_lines(self, timeout_s: float | None) -> None:
        """Add up the lines that have been counted, in whatever order."""
        import ray

        if self._lines:
            ready, self._lines = ray.wait(self._lines, num_returns=len(self._lines), timeout=timeout_s)
            for counts in ray.get(ready):
                self._boilerplate.add_counts(counts)

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
        """References to what the task will return; waits while too many others run."""
        import ray

        while len(self._running) >= self._most_running:
            _, running = ray.wait(list(self._running), fetch_local=False)
            self._running = deque(running)
        found = _remote(task).options(num_cpus=0, resources=self._resources, num_returns=num_returns, name=f"ingest: {name}").remote(*arguments)
        self._running.append(found[0] if num_returns > 1 else found)
        return found


@cache
def _remote(task: Callable[..., Any]) -> Any:
    """One for each function and process: Ray keeps every one that is made in its head's memory."""
    import ray

    return ray.remote(task)


def _settle(layout: Layout, decision: Decision, block: pa.Table) -> Settled:
    log_about(_told(layout))
    _log.info("settles a block of %d records", len(block))
    ensure_compiled()
    return settle(block, decision, layout)


def _write_shard(layout: Layout, split: Split, number: int, pieces: list[Piece], *packed: Packed) -> ShardEntry:
    log_about(_told(layout))
    _log.info("writes %s shard %d", split, number)
    return write_shard_of(layout, split, number, pieces, packed)


def _write_trail(layout: Layout, number: int, pieces: list[Piece], *blocks: pa.Table) -> tuple[FileEntry, Statistics]:
    log_about(_told(layout))
    _log.info("writes file %d of the audit trail", number)
    return write_trail_file(layout, number, pieces, blocks)


def _told(layout: Layout) -> str:
    return f"version {layout.version} of {root_name(layout.root)}"


def _most_running() -> int:
    import ray

    return max(MIN_TASKS, int(ray.cluster_resources().get("CPU", 1)) // CPUS_PER_TASK)  # type: ignore[no-untyped-call]
