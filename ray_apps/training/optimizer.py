"""AdamW (Loshchilov and Hutter, 2019) with decay on matrices only: norms and biases are scales and offsets, pulling them to zero hurts."""

import torch
from torch import nn

from schemas.settings import TrainingSettings


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Two parameter groups: tensors of two and more dimensions decay, the others do not. A tied tensor is listed once."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in parameters if parameter.ndim >= 2]
    vectors = [parameter for parameter in parameters if parameter.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def build_optimizer(model: nn.Module, settings: TrainingSettings, device: torch.device) -> torch.optim.AdamW:
    """AdamW over the model's parameters; one fused kernel per step on GPUs."""
    groups = decay_groups(model, settings.weight_decay)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(settings.beta1, settings.beta2), fused=device.type == "cuda")


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Use ``rate`` from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = rate
