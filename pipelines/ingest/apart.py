"""Blocks that stay on the node that prepared them: a task there looks at each, and only what decides comes to this process (decisive.py).

The task also looks up the block's documents in the newest generation of the duplicate index that this process had when it started the task
(dedup/generations.py). A tier of a generation is put into Ray's object store once, and each node that needs it gets it once.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

import pyarrow as pa

from pipelines.dedup.generations import Generation
from pipelines.dedup.tables import Tables
from pipelines.ingest.decisive import BlockApart, Decisive, MadeOf, decisive_of, wide_rows
from pipelines.kernels.ingest import ensure_compiled

LOOK_AHEAD_BLOCKS = 2
"""Blocks whose decisive rows are asked for while those of the block before them are used."""
NewestGeneration = Callable[[], Generation | None]


class _Handed:
    """Generations as tasks take them."""

    def __init__(self) -> None:
        self._tiers: dict[int, tuple[Tables, Any]] = {}
        """By id: the tier, which keeps the id from being used again, and the reference to its copy."""

    def arguments(self, generation: Generation | None) -> list[Any]:
        """The generation without its tiers, and references to these; tiers that are in no generation any more are let go."""
        import ray

        if generation is None:
            return [None]
        kept = {id(tier): self._tiers.get(id(tier)) or (tier, ray.put(tier)) for tier in generation.tiers}
        self._tiers = kept
        return [generation._replace(tiers=()), *(reference for _, reference in kept.values())]


def blocks_apart(sources: Iterable[Any], newest: NewestGeneration, resources: dict[str, float]) -> Iterator[BlockApart]:
    """``sources``: references to prepared blocks, in order."""
    # These tasks take no CPU, because reading may hold all of them.
    look = remote(_look).options(num_cpus=0, resources=resources, num_returns=2, name="ingest: look at a block")
    waiting: deque[tuple[Any, list[Any]]] = deque()
    handed = _Handed()
    for source in sources:
        waiting.append((source, look.remote(source, *handed.arguments(newest()))))
        if len(waiting) > LOOK_AHEAD_BLOCKS:
            yield from _looked_at(*waiting.popleft())
    for source, found in waiting:
        yield from _looked_at(source, found)


def wide(block: BlockApart, resources: dict[str, float]) -> pa.Table:
    """Fetch its ``wide_rows``."""
    import ray

    rows = remote(_wide).options(num_cpus=0, resources=resources, name="ingest: look at a block with ids").remote(block.source)
    found: pa.Table = ray.get(rows)
    return found


def fetch_ids(made: MadeOf) -> pa.Array:
    """The ids of a block's candidates."""
    import ray

    found: pa.Array = ray.get(made.ids)
    return found


@cache
def remote(task: Callable[..., Any]) -> Any:
    """One for each function and process: Ray keeps every one that is made in its head's memory."""
    import ray

    return ray.remote(task)


def _look(block: pa.Table, generation: Generation | None, *tiers: Tables) -> tuple[Decisive, pa.Array] | tuple[None, None]:
    """None for a block without rows, which has no columns."""
    if not len(block):
        return None, None
    ensure_compiled()
    return decisive_of(block, generation and generation._replace(tiers=tiers))


def _wide(block: pa.Table) -> pa.Table:
    return wide_rows(block)


def _looked_at(source: Any, found: list[Any]) -> Iterator[BlockApart]:
    import ray

    made = MadeOf(*found)
    decisive = ray.get(made.decisive)
    if decisive is not None:
        yield BlockApart(decisive, source, made)
