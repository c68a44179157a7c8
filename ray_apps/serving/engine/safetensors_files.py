"""Weights on disk: ``model.safetensors``, or the files that ``model.safetensors.index.json`` names."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from schemas.errors import RegistryError

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors by name. Raises RegistryError if a file is missing or not whole."""
    try:
        names = [WEIGHTS_FILE]
        if not (folder / WEIGHTS_FILE).is_file() and (folder / INDEX_FILE).is_file():
            names = sorted(set(json.loads((folder / INDEX_FILE).read_bytes())["weight_map"].values()))
        return {name: tensor for file in names for name, tensor in load_file(folder / file).items()}
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise RegistryError(f"the weights in {folder} cannot be read ({error}); restore them from a copy") from error
