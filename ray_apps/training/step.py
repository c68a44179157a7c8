"""One optimizer step: forward, backward, clip, update. Plain PyTorch; B rows, T positions.

Invariant: the gradient is the mean over the target tokens of the *global* batch, whatever the number of processes and of
micro-batches; both change only the order in which floating-point numbers are added.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ray_apps.training.batches import Batch
from ray_apps.training.cross_entropy import cross_entropy_sum
from ray_apps.training.optimizer import set_learning_rate
from ray_apps.training.parallel import Process, without_sync
from ray_apps.training.precision import Precision


class SummedLoss(nn.Module):
    """A causal language model whose forward pass is the summed next-token loss, never the logits."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_BT: Tensor, target_BT: Tensor) -> Tensor:
        """Sum of the losses over the targets that are not ignored; fp32 scalar."""
        hidden_BTD = self.model.base_model(input_ids=input_BT, use_cache=False).last_hidden_state
        weight_VD = self.model.get_output_embeddings().weight  # type: ignore[no-untyped-call]
        return cross_entropy_sum(hidden_BTD.flatten(0, 1), weight_VD, target_BT.flatten())


@dataclass(frozen=True)
class Stepper:
    """What a step works on."""

    module: nn.Module
    """SummedLoss, wrapped by DDP where there are several processes."""
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    precision: Precision
    process: Process
    accumulation_steps: int
    clip_norm: float


@dataclass(frozen=True)
class StepResult:
    """What a step saw, over all processes."""

    loss: float
    """Mean cross-entropy before the update, nats per token."""
    grad_norm: float
    """Global norm before clipping; infinite where fp16 overflowed and the update was skipped."""
    num_targets: int
    """Tokens that were predicted."""


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make random numbers a pure function of (seed, step, rank): a checkpoint then needs no generator state. Torch takes 64 bits."""
    torch.manual_seed(((seed * 1_000_003 + step) * 65_537 + rank) % 2**64)


def accumulate(stepper: Stepper, batch: Batch, num_targets: int) -> float:
    """Add the gradients of this process's micro-batches, synchronizing at the last one; returns the summed loss."""
    micro_batches = batch.split(stepper.accumulation_steps)
    scale = stepper.process.world_size / num_targets
    total = torch.zeros((), device=stepper.process.device)
    for micro_batch in micro_batches[:-1]:
        with without_sync(stepper.module):
            total += _backward(stepper, micro_batch, scale)
    total += _backward(stepper, micro_batches[-1], scale)
    return float(total.item())


def _backward(stepper: Stepper, batch: Batch, scale: float) -> Tensor:
    with stepper.precision.autocast():
        loss: Tensor = stepper.module(batch.input_BT, batch.target_BT)
    stepper.scaler.scale(loss * scale).backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def train_step(stepper: Stepper, batch: Batch, rate: float) -> StepResult:
    """Update the weights once with learning rate ``rate``. Every process calls it with its own part of the global batch."""
    num_targets = max(1, int(stepper.process.sum(batch.num_targets)))
    local_loss = accumulate(stepper, batch.to(stepper.process.device), num_targets)
    stepper.scaler.unscale_(stepper.optimizer)
    grad_norm = nn.utils.clip_grad_norm_(stepper.module.parameters(), stepper.clip_norm)
    set_learning_rate(stepper.optimizer, rate)
    stepper.scaler.step(stepper.optimizer)
    stepper.scaler.update()
    stepper.optimizer.zero_grad(set_to_none=True)
    return StepResult(stepper.process.sum(local_loss) / num_targets, float(grad_norm.item()), num_targets)
