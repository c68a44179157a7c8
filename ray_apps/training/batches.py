"""Batches of a step: rows of the dataset as inputs and targets.

B rows, S tokens per row, T = S - 1 predicted positions. What a step reads is a pure function of (dataset version, seed, step), so
there is nothing to save. Padding stands only at the end of a shard's last row; where the tokenizer pads with its end-of-text
token, the first of that trailing run is the last document's real end and stays a target. Retracted documents are padding too, in the
middle of rows: which positions they are is told apart from the ids, since padding may be the end-of-text token.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipelines.dataset.loader import Ids, TokenRows, row_ids_for_step
from pipelines.dataset.masks import Mask
from ray_apps.training.loss import IGNORED
from schemas.arrow import Split
from schemas.manifest import TokenizerRef
from schemas.settings import TrainingSettings


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


class StepBatches:
    """The part of each step's global batch that one rank reads."""

    def __init__(self, root: Path, dataset_version: int, tokenizer: TokenizerRef, settings: TrainingSettings, *, rank: int, world_size: int) -> None:
        self.rows = TokenRows(root, dataset_version, Split.TRAIN)
        self.tokenizer = tokenizer
        self.settings = settings
        self.rank = rank
        self.world_size = world_size

    def __getitem__(self, step: int) -> Batch:
        ids = row_ids_for_step(
            self.rows.num_rows,
            seed=self.settings.seed,
            step=step,
            global_batch_rows=self.settings.global_batch_rows,
            rank=self.rank,
            world_size=self.world_size,
        )
        rows_BS, retracted_BS = self.rows.gather_masked(ids)
        return make_batch(rows_BS, self.tokenizer, retracted_BS)
