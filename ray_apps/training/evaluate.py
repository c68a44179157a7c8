"""Validation loss and perplexity of a model on the validation rows of a dataset version, or on a split of a view.

Which rows is a function of the dataset version and the number of rows asked for: models that are compared on the same version see the
same tokens. A run evaluates on the dataset version's rows whatever view it was trained on, so that its model can be compared with others.
Losses are summed in float64. Rows are shared by the processes of a run; alone, one process reads them all.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from pipelines.dataset.dataset import Dataset
from pipelines.dataset.loader import Ids, TokenRows
from ray_apps.models.registry import Registry
from ray_apps.training.batches import make_batch
from ray_apps.training.parallel import Process
from ray_apps.training.precision import Precision, resolve_precision
from ray_apps.training.step import SummedLoss
from ray_apps.training.weights import hide_progress_bars
from schemas.arrow import Split
from schemas.errors import NotEnoughData, TokenizerMismatch
from schemas.manifest import Evaluation
from schemas.settings import Settings

if TYPE_CHECKING:
    from pipelines.views.rows import ViewRows
    from pipelines.views.selection import OpenView

ROWS_PER_BATCH = 8


@dataclass(frozen=True)
class ValidationRows:
    """The rows to evaluate on."""

    dataset: Dataset
    max_rows: int
    opened: "OpenView | None" = None
    """A view of the dataset version …"""
    split: str = Split.VALIDATION
    """… and which of its splits."""

    def rows(self) -> "TokenRows | ViewRows":
        """All rows that there are."""
        if self.opened is None:
            return TokenRows(self.dataset.root, self.dataset.version, Split.VALIDATION)
        from pipelines.views.rows import ViewRows

        return ViewRows(self.opened, self.split)

    def row_ids(self, num_rows: int) -> Ids:
        """At most ``max_rows`` ids, spread evenly over all validation rows."""
        count = min(num_rows, self.max_rows)
        ids: Ids = np.linspace(0, num_rows - 1, count).round().astype(np.int64) if count else np.empty(0, dtype=np.int64)
        return ids


def evaluate(module: SummedLoss, validation: ValidationRows, precision: Precision, process: Process) -> Evaluation | None:
    """Mean loss over the validation rows; None if there are none. Every process of the run calls it."""
    dataset = validation.dataset
    rows = validation.rows()
    ids = validation.row_ids(rows.num_rows)[process.rank :: process.world_size]
    loss, num_tokens = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(ids), ROWS_PER_BATCH):
            rows_BS, retracted_BS = rows.gather_masked(ids[start : start + ROWS_PER_BATCH])
            batch = make_batch(rows_BS, dataset.tokenizer, retracted_BS)
            with precision.autocast():
                on_device = batch.to(process.device)
                loss += float(module(on_device.input_BT, on_device.target_BT).item())
            num_tokens += batch.num_targets
    total_tokens = int(process.sum(num_tokens))
    mean = process.sum(loss) / max(1, total_tokens)
    if total_tokens == 0:
        return None
    view = f"{validation.opened.view.label}/{validation.split}" if validation.opened else None
    return Evaluation(dataset_version=dataset.version, loss=mean, perplexity=math.exp(min(mean, 700.0)), num_tokens=total_tokens, view=view)


def evaluate_model(
    settings: Settings, model_version: int, dataset_version: int | None = None, *, view: str | None = None, split: str = Split.VALIDATION
) -> Evaluation:
    """Evaluate a registered model in this process, on a GPU if the settings say so and there is one; the newest dataset by default.

    ``view`` and ``split``: on this split of the view ``NAME[@N]``, a holdout for example. Raises ModelNotFound, DatasetNotFound,
    ViewNotFound, TokenizerMismatch, ShardCorrupt, SettingsError if the view has no such split, or NotEnoughData if there are no rows.
    """
    hide_progress_bars()
    root = Path(settings.root)
    registry = Registry(root)
    opened = _open_view(root, view, dataset_version) if view else None
    dataset = opened.dataset if opened else Dataset(root, dataset_version)
    spoken = registry.manifest(model_version).tokenizer.sha256
    if spoken != dataset.tokenizer.sha256:
        raise TokenizerMismatch(
            f"model version {model_version} uses tokenizer {spoken[:12]}, dataset version {dataset.version} uses {dataset.tokenizer.sha256[:12]}; "
            f"its loss there would mean nothing"
        )
    device = torch.device("cuda" if settings.training.use_gpu and torch.cuda.is_available() else "cpu")
    model = AutoModelForCausalLM.from_pretrained(registry.verified_folder(model_version), dtype=torch.float32)
    validation = ValidationRows(dataset, settings.training.evaluate_rows, opened, split)
    result = evaluate(SummedLoss(model).to(device), validation, resolve_precision(settings.training, device), Process(device=device))
    if result is None and opened is not None:
        raise NotEnoughData(f"split {split} of {opened.label} has no rows; choose another of its splits ({', '.join(opened.view.splits)})")
    if result is None:
        raise NotEnoughData(f"dataset version {dataset.version} has no validation rows; raise ingest.validation_fraction or ingest more documents")
    return result


def _open_view(root: Path, view: str, dataset_version: int | None) -> "OpenView":
    """Loads what views need only where there is one."""
    from pipelines.views.selection import open_view

    return open_view(root, view, dataset_version)
