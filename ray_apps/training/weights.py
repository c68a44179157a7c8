"""The model of a run: random weights from the run's seed, or those of its parent."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from ray_apps.models.presets import llama_config
from ray_apps.models.registry import Registry
from ray_apps.training.checkpoint import load_model_tensors
from ray_apps.training.run import TrainingRun
from schemas.errors import CheckpointCorrupt, TrainingError

WEIGHTS_FILE = "model.safetensors"


def hide_progress_bars() -> None:
    """Keep transformers from drawing its own progress bars over ours."""
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def build_model(run: TrainingRun, root: Path) -> LlamaForCausalLM:
    """The model before its first step, fp32 on CPU, the same numbers in every process.

    Raises TrainingError if the parent model has another shape, ShardCorrupt if its files are not those that were registered.
    """
    torch.manual_seed(run.training.seed)
    model = LlamaForCausalLM(llama_config(run.model, run.tokenizer, run.sequence_length))
    if run.parent_model is not None:
        source = Registry(root).verified_folder(run.parent_model) / WEIGHTS_FILE
        try:
            load_model_tensors(model, load_file(source), source)
        except CheckpointCorrupt as error:
            raise TrainingError(
                f"model version {run.parent_model} cannot be the parent of a {run.model.preset!r} model: {error}; choose its preset, or no parent"
            ) from error
    return model
