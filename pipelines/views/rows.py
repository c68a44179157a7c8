"""The rows of a view, made where they are read: the chosen documents' tokens, one after the other, out of the memory-mapped shards.

The documents of a group, in commit order, each with its end-of-text token, are one endless-looking run of tokens that nobody writes down; row
i of the group is its tokens [i * S, (i + 1) * S), the last one padded. Groups follow each other, so a row id says which group it is of.
Documents that stand side by side in a shard are one piece: a view without filters has as many pieces as shards, merged or not. Memory is 32 bytes per
piece. Reading a row costs a binary search and one copy per piece in it: 300 million tokens per second and core.
"""

from dataclasses import dataclass
from functools import cached_property

import numba
import numpy as np
import polars as pl

from pipelines.dataset.loader import Ids
from pipelines.dataset.placement import Placement
from pipelines.dataset.retractions.masks import Mask
from pipelines.dataset.shard_maps import ShardMaps
from pipelines.views.mixture import Mixture
from pipelines.views.selection import OpenView
from schemas.arrow import Split


@dataclass(frozen=True)
class Pieces:
    """Runs of chosen tokens: where they stand in the virtual run (ascending), and in which file at which position."""

    starts: Ids
    ends: Ids
    files: Ids
    sources: Ids


class ViewRows:
    """Rows of one split of a view, as ``TokenRows`` of dataset/loader.py has those of a whole version."""

    def __init__(self, opened: OpenView, split: str = Split.TRAIN) -> None:
        """Raises SettingsError if the view has no such split, ShardCorrupt if a shard is missing."""
        manifest = opened.dataset.manifest
        self.sequence_length = manifest.sequence_length
        self.pad_token_id = manifest.tokenizer.pad_token_id
        self.dataset_sha256 = opened.dataset.ref().model_copy(update={"view": opened.ref() if opened.sha256 else None}).data_sha256
        documents = opened.chosen(split)
        self.num_documents, self.num_tokens = len(documents), int(documents["length"].sum())
        is_train = split == Split.TRAIN
        names, shares = (opened.view.group_names, opened.view.shares) if is_train else ((split,), (1.0,))
        groups = [documents.filter(pl.col("group") == number) for number in range(len(names))] if is_train else [documents]
        self.group_tokens = tuple(int(group["length"].sum()) for group in groups)
        self.mixture = Mixture(tuple(names), tuple(-(-tokens // self.sequence_length) for tokens in self.group_tokens), tuple(shares))
        self._maps = ShardMaps(opened.dataset)
        self._pieces = self._all_pieces(groups)
        self._maps.check_present(np.unique(self._pieces.files))

    @cached_property
    def num_rows(self) -> int:
        """Rows of all groups."""
        return sum(self.mixture.num_rows)

    def gather(self, row_ids: Ids) -> Ids:
        """Copy the rows (n,) -> (n, S) int64, in the order asked for. Raises IndexError for a row that does not exist."""
        if len(row_ids) and not 0 <= int(row_ids.min()) <= int(row_ids.max()) < self.num_rows:
            raise IndexError(f"row ids {row_ids.min()}..{row_ids.max()} are not all within [0, {self.num_rows})")
        length, pieces = self.sequence_length, self._pieces
        rows = np.full((len(row_ids), length), self.pad_token_id, dtype=np.int64)
        first = row_ids * length
        low = np.searchsorted(pieces.ends, first, side="right")
        counts = np.searchsorted(pieces.starts, first + length, side="left") - low
        row = np.repeat(np.arange(len(row_ids)), counts)
        piece = np.arange(counts.sum()) + np.repeat(low - (np.cumsum(counts) - counts), counts)
        begin = np.maximum(pieces.starts[piece], first[row])
        size = np.minimum(pieces.ends[piece], first[row] + length) - begin
        sources, targets = pieces.sources[piece] + begin - pieces.starts[piece], row * length + begin - first[row]
        for number in np.unique(pieces.files[piece]).tolist():
            chosen = pieces.files[piece] == number
            _copy(self._maps[number].reshape(-1), sources[chosen], targets[chosen], size[chosen], rows.reshape(-1))
        return rows

    def gather_masked(self, row_ids: Ids) -> tuple[Ids, Mask | None]:
        """The rows; nothing in them is masked, since retracted documents are not among them."""
        return self.gather(row_ids), None

    def _all_pieces(self, groups: list[pl.DataFrame]) -> Pieces:
        parts = []
        for group, first_row in zip(groups, self.mixture.first_rows.tolist(), strict=True):
            parts.append(_pieces(group, self._maps.placement, self.sequence_length, first_row * self.sequence_length))
        return Pieces(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("starts", "ends", "files", "sources")))


def _pieces(documents: pl.DataFrame, placement: Placement, sequence_length: int, first: int) -> Pieces:
    """The documents' spans, those that touch each other as one, from position ``first`` of the virtual run on."""
    paths = documents["shard"].cast(pl.String).unique().to_list()
    shard = documents["shard"].cast(pl.Enum(paths)).to_physical().to_numpy()
    row = placement.first_rows_of(paths)[shard] + documents["row"].to_numpy()
    file = placement.files_of(row)
    source = (row - placement.first_rows[file]) * sequence_length + documents["start"].to_numpy().astype(np.int64)
    length = documents["length"].to_numpy().astype(np.int64)
    ends = first + np.cumsum(length)
    begins = np.ones(len(documents), dtype=np.bool_)
    begins[1:] = (file[1:] != file[:-1]) | (source[1:] != source[:-1] + length[:-1])
    heads = np.flatnonzero(begins)
    tails = np.append(heads[1:], len(documents))[: len(heads)] - 1
    return Pieces((ends - length)[heads], ends[tails], file[heads], source[heads])


@numba.njit(cache=True, nogil=True)
def _copy(tokens, sources, targets, sizes, out):  # type: ignore[no-untyped-def]
    for index in range(len(sources)):
        source, target = sources[index], targets[index]
        for offset in range(sizes[index]):
            out[target + offset] = tokens[source + offset]
