"""Which rows a training step reads, and reading them.

``row_ids_for_step`` is a pure function of (number of rows, seed, step): there is no iterator state to save, so a run resumes bit for
bit after a kill, also on another number of workers. Epoch e visits the rows in the order of a keyed permutation P(seed, e): a
Feistel network over the next power of four with cycle walking (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).
It needs no memory and a handful of passes per batch: the domain is less than four times the rows, 64 at least. Step s takes
positions [s*G, (s+1)*G) of the endless sequence of epochs: no row is skipped or read twice where an epoch ends inside a batch.

Nothing of a retracted document's text is read (dataset/retractions/masks.py). Row ids do not change: its places are padding.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipelines.dataset.dataset import Dataset
from pipelines.dataset.retractions.masks import Mask, span_mask
from pipelines.dataset.shard_maps import ShardMaps, files_in
from schemas.arrow import Split
from schemas.errors import CheckpointCorrupt, NotEnoughData

Ids = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

NUM_ROUNDS = 8
"""Feistel rounds; four make a strong pseudo-random permutation of a good round function, tiny domains want more."""
MIN_HALF_BITS = 3
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(words: Words) -> Words:
    """SplitMix64's finalizer, element-wise: every input bit flips every output bit with probability close to 1/2."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _keys(seed: int, epochs: Words) -> Words:
    """One 64-bit key per element."""
    seeds = np.full(epochs.shape, seed % 2**64, dtype=np.uint64)
    return _mix(_mix(seeds + _GOLDEN) + epochs * _GOLDEN)


def _feistel(words: Words, keys: Words, half_bits: int) -> Words:
    """Permute [0, 2^(2 * half_bits)) under each element's key."""
    mask, shift = np.uint64(2**half_bits - 1), np.uint64(half_bits)
    left, right = words >> shift, words & mask
    for number in range(NUM_ROUNDS):
        tweak = np.uint64((number + 1) * 0xD6E8FEB86659FD93 % 2**64)
        left, right = right, left ^ (_mix(right ^ keys ^ tweak) & mask)
    return (left << shift) | right


def permute(indexes: Ids, epochs: Ids, *, num_rows: int, seed: int) -> Ids:
    """Element-wise P(seed, epoch)(index): for each epoch a permutation of [0, num_rows)."""
    half_bits = max(MIN_HALF_BITS, ((num_rows - 1).bit_length() + 1) // 2)
    keys = _keys(seed, epochs.astype(np.uint64))
    words = _feistel(indexes.astype(np.uint64), keys, half_bits)
    outside = np.flatnonzero(words >= num_rows)
    while len(outside):  # walk the cycle until it comes back into the domain; expected under 4 times
        words[outside] = _feistel(words[outside], keys[outside], half_bits)
        outside = outside[words[outside] >= num_rows]
    return words.astype(np.int64)


def row_ids_for_step(num_rows: int, *, seed: int, step: int, global_batch_rows: int, rank: int = 0, world_size: int = 1) -> Ids:
    """Row ids that ``rank`` reads at ``step``: its contiguous part, global_batch_rows / world_size, of the step's global batch.

    The global batch does not depend on ``world_size``. Raises NotEnoughData if there are no rows.
    """
    if num_rows < 1:
        raise NotEnoughData("the dataset version has no rows of this split; ingest more documents first")
    if global_batch_rows % world_size or not 0 <= rank < world_size:
        raise ValueError(f"a global batch of {global_batch_rows} rows cannot be shared by {world_size} workers (rank {rank})")
    per_rank = global_batch_rows // world_size
    positions = step * global_batch_rows + rank * per_rank + np.arange(per_rank, dtype=np.int64)
    epochs, indexes = np.divmod(positions, num_rows)
    return permute(indexes, epochs, num_rows=num_rows, seed=seed)


@dataclass(frozen=True)
class LoaderState:
    """Everything needed to go on reading: bound to the dataset version's hash, because applied to another one it would skip rows silently."""

    dataset_sha256: str
    seed: int
    step: int

    def check(self, *, dataset_sha256: str, seed: int) -> None:
        """Raise CheckpointCorrupt unless this state was made for that dataset version and seed."""
        if (self.dataset_sha256, self.seed) != (dataset_sha256, seed):
            raise CheckpointCorrupt(
                f"the checkpoint reads dataset {self.dataset_sha256[:12]} with seed {self.seed}, this run reads {dataset_sha256[:12]} "
                f"with seed {seed}; start a new run, or name the dataset version and the seed of the old one"
            )


class TokenRows:
    """All rows of one split of a dataset version, memory-mapped as they are read. Row ids count the rows of the shards in the order of versions,
    wherever these rows lie. A merge of shards changes no row id.
    """

    def __init__(self, root: Path, dataset_version: int | None, split: Split) -> None:
        dataset = Dataset(root, dataset_version)
        self.sequence_length = dataset.manifest.sequence_length
        self._tokenizer = dataset.tokenizer
        self.dataset_sha256 = dataset.sha256
        self._first, end = dataset.row_range(split)
        self.num_rows = end - self._first
        self._maps = ShardMaps(dataset)
        self._maps.check_present(files_in(self._maps.placement, self._first, end))
        self._mask = span_mask(dataset)

    def gather(self, row_ids: Ids) -> Ids:
        """Copy the rows (n,) -> (n, S) int64, in the order asked for, padding in place of retracted text.

        Raises IndexError for a row that does not exist.
        """
        return self.gather_masked(row_ids)[0]

    def gather_masked(self, row_ids: Ids) -> tuple[Ids, Mask | None]:
        """The rows, and which positions belong to retracted documents, both (n, S); None if none does.

        Their text is replaced by padding. The end-of-text token that closed it stays, so that what follows begins after a boundary as
        it did; it is marked like the rest, since nobody should learn to predict it.
        """
        if len(row_ids) and not 0 <= int(row_ids.min()) <= int(row_ids.max()) < self.num_rows:
            raise IndexError(f"row ids {row_ids.min()}..{row_ids.max()} are not all within [0, {self.num_rows})")
        rows = np.empty((len(row_ids), self.sequence_length), dtype=np.int64)
        placement, numbers = self._maps.placement, self._first + row_ids
        file_of = placement.files_of(numbers)
        for file in np.unique(file_of).tolist():
            chosen = file_of == file
            rows[chosen] = self._maps[file][numbers[chosen] - placement.first_rows[file]]
        masked = self._mask.of_rows(numbers, self.sequence_length) if self._mask else None
        if masked is None or not masked.any():
            return rows, None
        rows[masked & (rows != self._tokenizer.eos_token_id)] = self._tokenizer.pad_token_id
        return rows, masked
