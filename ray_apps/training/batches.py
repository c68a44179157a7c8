"""Batches of a step: rows of the dataset as inputs and targets.

B rows, S tokens per row, T = S - 1 predicted positions. What a step reads is a pure function of (dataset version, view, seed, step),
so there is nothing to save. Padding stands only at the end of a shard's last row; where the tokenizer pads with its end-of-text
token, the first of that trailing run is the last document's real end and stays a target. Retracted documents are padding too, in the
middle of rows: which positions they are is told apart from the ids, since padding may be the end-of-text token.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pipelines.dataset.loader import Ids, TokenRows, row_ids_for_step
from pipelines.dataset.retractions.masks import Mask
from ray_apps.training.cross_entropy import IGNORED
from schemas.arrow import Split
from schemas.errors import CheckpointCorrupt
from schemas.manifest import DatasetRef, TokenizerRef
from schemas.settings import TrainingSettings

if TYPE_CHECKING:
    from pipelines.views.rows import ViewRows


@dataclass(frozen=True)
class Batch:
    """Inputs and targets of some rows."""

    input_BT: Tensor  # noqa: N815 - shape suffix
    """Token ids, int64."""
    target_BT: Tensor  # noqa: N815
    """The token after each input; IGNORED where that is padding or was retracted."""

    @property
    def num_targets(self) -> int:
        """Positions that are predicted."""
        return int((self.target_BT != IGNORED).sum())

    def split(self, parts: int) -> list["Batch"]:
        """Micro-batches of as equal a number of rows as possible, none empty."""
        parts = min(parts, len(self.input_BT))
        pairs = zip(self.input_BT.tensor_split(parts), self.target_BT.tensor_split(parts), strict=True)
        return [Batch(input_BT, target_BT) for input_BT, target_BT in pairs]

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        return Batch(self.input_BT.to(device), self.target_BT.to(device))


def make_batch(rows_BS: Ids, tokenizer: TokenizerRef, retracted_BS: Mask | None = None) -> Batch:
    """Shift the rows by one and ignore targets in the trailing padding and those that were retracted."""
    num_padding_B = np.cumprod(rows_BS[:, ::-1] == tokenizer.pad_token_id, axis=1).sum(axis=1)
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        num_padding_B = np.maximum(num_padding_B - 1, 0)
    first_padding_B1 = (rows_BS.shape[1] - num_padding_B)[:, None]
    targets_BT = np.where(np.arange(1, rows_BS.shape[1]) < first_padding_B1, rows_BS[:, 1:], IGNORED)
    if retracted_BS is not None:
        targets_BT[retracted_BS[:, 1:]] = IGNORED
    return Batch(torch.from_numpy(rows_BS[:, :-1].copy()), torch.from_numpy(targets_BT))


def train_rows(root: Path, dataset: DatasetRef) -> "TokenRows | ViewRows":
    """The rows that a run reads. Raises CheckpointCorrupt if the dataset version or the view is not what the run was planned with."""
    if dataset.view is None:
        return TokenRows(root, dataset.version, Split.TRAIN)
    from pipelines.views.rows import ViewRows  # a second to load, which a run without a view does not need
    from pipelines.views.selection import open_view

    rows = ViewRows(open_view(root, f"{dataset.view.name}@{dataset.view.version}", dataset.version))
    if rows.dataset_sha256 != dataset.data_sha256:
        raise CheckpointCorrupt(
            f"view {dataset.view.name}@{dataset.view.version} of dataset version {dataset.version} is not the one that the run was planned with; "
            f"restore its file, or start a new run"
        )
    return rows


class StepBatches:
    """The part of each step's global batch that one rank reads."""

    def __init__(self, root: Path, dataset: DatasetRef, tokenizer: TokenizerRef, settings: TrainingSettings, *, rank: int, world_size: int) -> None:
        self.rows = train_rows(root, dataset)
        self.tokenizer = tokenizer
        self.settings = settings
        self.rank = rank
        self.world_size = world_size

    def __getitem__(self, step: int) -> Batch:
        rows_BS, retracted_BS = self.rows.gather_masked(self._row_ids(step))
        return make_batch(rows_BS, self.tokenizer, retracted_BS)

    def _row_ids(self, step: int) -> Ids:
        """A view mixes its groups; a dataset version is one group."""
        seed, batch_rows, rank, world_size = self.settings.seed, self.settings.global_batch_rows, self.rank, self.world_size
        if isinstance(self.rows, TokenRows):
            return row_ids_for_step(self.rows.num_rows, seed=seed, step=step, global_batch_rows=batch_rows, rank=rank, world_size=world_size)
        return self.rows.mixture.rows_for_step(seed=seed, step=step, global_batch_rows=batch_rows, rank=rank, world_size=world_size)
