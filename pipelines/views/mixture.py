"""Which row stands at which position of the endless sequence that training reads: shares of groups, each in epochs of its own.

Pure functions of (seed, position): there is no state to save, so a run resumes bit for bit, on any number of workers. Positions are
taken in blocks of BLOCK_ROWS. In each block every group has exactly its quota, its share rounded by largest remainder, in places that
a keyed permutation of the block gives it. The t-th place of group g in block b reads element b * quota + t of the group's own sequence:
epoch after epoch of its rows, each in the order of a permutation of its own (dataset/loader.py). So a group's rows come once per
epoch, whatever the other groups hold. Cost: one permutation of a block for each block that a batch touches, about 0.6 ms.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xxhash

from pipelines.dataset.loader import Ids, permute
from schemas.errors import NotEnoughData
from schemas.view import BLOCK_ROWS


def quotas(shares: tuple[float, ...], block_rows: int = BLOCK_ROWS) -> Ids:
    """Rows per block of each group; they sum to ``block_rows``, none is a whole row away from its share. Of equal remainders the first wins."""
    exact = np.array(shares) * block_rows
    whole = np.floor(exact + 1e-9).astype(np.int64)
    missing = block_rows - int(whole.sum())
    whole[np.argsort(whole - exact, kind="stable")[:missing]] += 1
    return whole


def _derived(seed: int, label: str) -> int:
    """A seed of its own for each purpose."""
    digest: int = xxhash.xxh3_64_intdigest(f"{seed}/{label}".encode())
    return digest


@dataclass(frozen=True)
class Mixture:
    """Groups of rows, numbered one group after the other, and their shares."""

    names: tuple[str, ...]
    num_rows: tuple[int, ...]
    shares: tuple[float, ...]

    @cached_property
    def quotas(self) -> Ids:
        """Rows of each group per block."""
        return quotas(self.shares)

    @cached_property
    def first_rows(self) -> Ids:
        """Row id of each group's first row."""
        return np.cumsum([0, *self.num_rows[:-1]], dtype=np.int64)

    def check(self) -> None:
        """Raise NotEnoughData if a group has no rows."""
        empty = [name for name, rows in zip(self.names, self.num_rows, strict=True) if not rows]
        if empty:
            counts = ", ".join(f"{name} {rows:,}" for name, rows in zip(self.names, self.num_rows, strict=True))
            raise NotEnoughData(f"no document of the view is in group {empty[0]!r} (rows: {counts}); ingest some, or change the view")

    def rows_at(self, positions: Ids, seed: int) -> Ids:
        """Row ids at these positions of the sequence. Raises NotEnoughData if a group has no rows."""
        self.check()
        blocks, slots = np.divmod(positions, BLOCK_ROWS)
        groups, ranks = self._places(blocks, slots, seed)
        indexes = blocks * self.quotas[groups] + ranks
        row_ids = np.empty(len(positions), np.int64)
        for group in np.unique(groups):
            chosen = groups == group
            row_ids[chosen] = self.first_rows[group] + self._shuffled(int(group), indexes[chosen], seed)
        return row_ids

    def rows_for_step(self, *, seed: int, step: int, global_batch_rows: int, rank: int = 0, world_size: int = 1) -> Ids:
        """Row ids that ``rank`` reads at ``step``; as ``row_ids_for_step`` of dataset/loader.py, and as independent of ``world_size``."""
        if global_batch_rows % world_size or not 0 <= rank < world_size:
            raise ValueError(f"a global batch of {global_batch_rows} rows cannot be shared by {world_size} workers (rank {rank})")
        per_rank = global_batch_rows // world_size
        return self.rows_at(step * global_batch_rows + rank * per_rank + np.arange(per_rank, dtype=np.int64), seed)

    def epochs(self, num_positions: int) -> tuple[float, ...]:
        """How often each group is gone through while so many rows are read, up to the rounding of the last block."""
        return tuple(num_positions / BLOCK_ROWS * int(quota) / max(1, rows) for quota, rows in zip(self.quotas, self.num_rows, strict=True))

    def _places(self, blocks: Ids, slots: Ids, seed: int) -> tuple[Ids, Ids]:
        """(group of each position, how many positions of that group stand before it in its block)."""
        numbers, which = np.unique(blocks, return_inverse=True)
        places = np.tile(np.arange(BLOCK_ROWS, dtype=np.int64), len(numbers))
        order = permute(places, np.repeat(numbers, BLOCK_ROWS), num_rows=BLOCK_ROWS, seed=_derived(seed, "blocks"))
        groups = np.searchsorted(np.cumsum(self.quotas), order, side="right").reshape(-1, BLOCK_ROWS)
        ranks = np.empty_like(groups)
        for group in range(len(self.quotas)):
            is_group = groups == group
            ranks[is_group] = (np.cumsum(is_group, axis=1) - 1)[is_group]
        return groups[which, slots], ranks[which, slots]

    def _shuffled(self, group: int, indexes: Ids, seed: int) -> Ids:
        epochs, within = np.divmod(indexes, self.num_rows[group])
        return permute(within, epochs, num_rows=self.num_rows[group], seed=_derived(seed, f"group/{self.names[group]}"))
