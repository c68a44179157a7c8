"""Choosing the next token, each row by itself: batch mates, order and batch size do not matter.

Randomness is a pure function of (seed, choice, position), so there is no generator state to carry along, and a request can be
replayed alone. A token is drawn by inverting the cumulative distribution at that one uniform number. The order is that of
transformers' warpers: penalties, temperature, top_k, then top_p of the mass that top_k has left.

Shapes: N rows to sample, V vocabulary. Costs one softmax and one cumulative sum per sampled row; a sort only for top_p and top_k.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import xxhash

from ray_apps.serving.engine.interface import Sampling

GREEDY_BELOW = 1e-4
"""Temperatures below this take the likeliest token: dividing float32 logits by less can overflow."""


@dataclass(slots=True)
class Draw:
    """What the sampler must know of one row."""

    sampling: Sampling
    choice: int
    """Number of the sequence within its request: the choices of one request differ."""
    generated: list[int] = field(default_factory=list)
    """Token ids so far, prompt excluded; its length is the position."""


def uniform(seed: int, choice: int, position: int) -> float:
    """A number in [0, 1), the same on every machine."""
    packed = struct.pack("<QqQ", seed % 2**64, choice, position)
    return (xxhash.xxh3_64_intdigest(packed) >> 11) * 2.0**-53


def _penalize(logits_V: torch.Tensor, draw: Draw) -> None:
    sampling = draw.sampling
    if not draw.generated or not (sampling.presence_penalty or sampling.frequency_penalty):
        return
    ids, counts = torch.unique(torch.tensor(draw.generated, device=logits_V.device), return_counts=True)
    logits_V[ids] -= sampling.frequency_penalty * counts + sampling.presence_penalty


def _restricted(probs_V: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Probabilities that may be drawn, likeliest first, with their token ids; all of them, in id order, when nothing is cut off."""
    if sampling.top_p >= 1.0 and not sampling.top_k:
        return probs_V, None
    sorted_V, ids_V = torch.sort(probs_V, descending=True, stable=True)
    if sampling.top_k:
        sorted_V, ids_V = sorted_V[: sampling.top_k], ids_V[: sampling.top_k]
    if sampling.top_p >= 1.0:
        return sorted_V, ids_V
    # Keep a token while the mass before it is below top_p of what top_k has left: the smallest set that reaches it, and never an empty one.
    mass_V = sorted_V.double().cumsum(0)
    keep = int((mass_V - sorted_V < sampling.top_p * mass_V[-1]).sum()) or 1
    return sorted_V[:keep], ids_V[:keep]


def _draw(logits_V: torch.Tensor, draw: Draw) -> int:
    sampling = draw.sampling
    probs_V = torch.softmax(logits_V / sampling.temperature, dim=-1)
    kept, ids = _restricted(probs_V, sampling)
    cumulative = kept.double().cumsum(0)
    point = uniform(sampling.seed, draw.choice, len(draw.generated)) * float(cumulative[-1])
    position = int(torch.searchsorted(cumulative, point, right=True))
    position = min(position, len(cumulative) - 1)
    return position if ids is None else int(ids[position])


def choose(logits_NV: torch.Tensor, draws: Sequence[Draw]) -> list[int]:
    """The next token id of each row; float32 logits, changed in place."""
    for logits_V, draw in zip(logits_NV, draws, strict=True):
        _penalize(logits_V, draw)
    greedy: list[int] = logits_NV.argmax(dim=-1).tolist()
    return [
        greedy[row] if draw.sampling.temperature < GREEDY_BELOW else _draw(logits_V, draw)
        for row, (logits_V, draw) in enumerate(zip(logits_NV, draws, strict=True))
    ]
