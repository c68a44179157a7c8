"""Next-token cross-entropy without the big logits tensor.

B batch, T positions, D hidden size, N = B x T positions, C positions of one chunk, V vocabulary.

At a vocabulary of 8k the logits of 2,048 positions are 64 MiB, their gradient as much again, and they dominate the step. Here the
loss and both gradients are computed chunk by chunk in the forward pass, so that only (C, V) logits ever exist; the price is one
(V, D) buffer for the weight's gradient. The idea is Liger Kernel's fused linear cross-entropy (Hsu et al., 2024).
The loss is a sum, not a mean: whoever calls divides by the number of target tokens of the global batch.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

IGNORED = -100
"""Target of a position that is not predicted: padding."""
CHUNK_ELEMENTS = 4 * 2**20
"""Most logits that exist at once: 16 MiB of fp32."""


def chunk_positions(vocab_size: int) -> int:
    """Positions per chunk, C."""
    return max(16, CHUNK_ELEMENTS // vocab_size)


def cross_entropy_sum(hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> Tensor:
    """Sum of -log softmax(hidden @ weight.T)[target] over positions whose target is not IGNORED; fp32 scalar, differentiable."""
    device = hidden_ND.device.type
    if torch.is_autocast_enabled(device):
        hidden_ND = hidden_ND.to(torch.get_autocast_dtype(device))
    with torch.autocast(device, enabled=False):  # in-place and out= kernels ignore autocast, so the casts are ours
        loss: Tensor = _ChunkedCrossEntropy.apply(hidden_ND, weight_VD, target_N)  # type: ignore[no-untyped-call]
    return loss


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> Tensor:
        wanted = any(ctx.needs_input_grad[:2])
        weight = weight_VD.to(hidden_ND.dtype)
        total = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
        hidden_grad_ND = torch.empty_like(hidden_ND) if wanted else None
        weight_grad_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if wanted else None
        size = chunk_positions(len(weight_VD))
        for start in range(0, len(hidden_ND), size):
            chunk = slice(start, start + size)
            loss, logits_grad_CV = _chunk_loss(hidden_ND[chunk] @ weight.T, target_N[chunk], wanted)
            total += loss
            if hidden_grad_ND is not None and weight_grad_VD is not None:
                logits_grad_CV = logits_grad_CV.to(hidden_ND.dtype)
                torch.mm(logits_grad_CV, weight, out=hidden_grad_ND[chunk])
                _accumulate(weight_grad_VD, logits_grad_CV, hidden_ND[chunk])
        if wanted:
            ctx.save_for_backward(hidden_grad_ND, weight_grad_VD)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden_grad_ND, weight_grad_VD = ctx.saved_tensors
        scale = grad_outputs[0]
        return hidden_grad_ND * scale, weight_grad_VD * scale, None


def _chunk_loss(logits_CV: Tensor, target_C: Tensor, with_grad: bool) -> tuple[Tensor, Tensor]:
    """Sum of the losses of one chunk, and the gradient of that sum by the logits."""
    log_probability_CV = torch.log_softmax(logits_CV.float(), dim=-1)
    loss = functional.nll_loss(log_probability_CV, target_C, ignore_index=IGNORED, reduction="sum")
    if not with_grad:
        return loss, log_probability_CV
    kept_C = target_C != IGNORED
    grad_CV = log_probability_CV.exp_()
    grad_CV[torch.arange(len(target_C), device=target_C.device), target_C.clamp_min(0)] -= 1.0
    return loss, grad_CV.mul_(kept_C.unsqueeze(1))


def _accumulate(total_VD: Tensor, logits_grad_CV: Tensor, hidden_CD: Tensor) -> None:
    if hidden_CD.dtype == torch.float32:
        total_VD.addmm_(logits_grad_CV.T, hidden_CD)
    else:
        total_VD += logits_grad_CV.T @ hidden_CD
