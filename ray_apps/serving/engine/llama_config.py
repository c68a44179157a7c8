"""The shape of a Llama model (config.json in Hugging Face layout), and the rotary angles that it asks for.

Read here and not by transformers: importing its Llama takes 130 MB of memory and six seconds, of which an engine uses nothing else.
Sources: Su et al. 2021 (rotary embeddings); Peng et al. 2023 (YaRN); the configuration classes of transformers 5.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from schemas.errors import RegistryError

FIXED_ROPE = ("default", "linear", "llama3", "yarn")
"""Rotary variants whose angles do not depend on the length of the sequence at hand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaConfig:
    """What the engine must know of config.json."""

    vocab_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    eos_token_ids: frozenset[int]
    rope: dict[str, Any]
    """Kind (``rope_type``), base (``rope_theta``) and what the kind needs."""


def read_config(folder: Path) -> LlamaConfig:
    """Read config.json. Raises RegistryError for what this engine does not compute, and for a file that is missing or not whole."""
    path = folder / "config.json"
    try:
        value: dict[str, Any] = json.loads(path.read_bytes())
        kind = value["model_type"]
        rope = _rope(value)
        if kind != "llama" or rope["rope_type"] not in FIXED_ROPE or value.get("hidden_act", "silu") != "silu":
            computed = f"the built-in engine computes Llama models with SiLU and rotary {FIXED_ROPE}"
            raise RegistryError(f"{folder} holds a {kind} model (rotary {rope['rope_type']}, {value.get('hidden_act', 'silu')}); {computed}")
        return _config(value, rope)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RegistryError(f"{path} is not the configuration of a model ({type(error).__name__}: {error}); restore it from a copy") from error


def _config(value: dict[str, Any], rope: dict[str, Any]) -> LlamaConfig:
    num_heads = int(value["num_attention_heads"])
    return LlamaConfig(
        vocab_size=int(value["vocab_size"]),
        num_hidden_layers=int(value["num_hidden_layers"]),
        num_attention_heads=num_heads,
        num_key_value_heads=int(value.get("num_key_value_heads") or num_heads),
        head_dim=int(value.get("head_dim") or int(value["hidden_size"]) // num_heads),
        rms_norm_eps=float(value.get("rms_norm_eps", 1e-6)),
        max_position_embeddings=int(value.get("max_position_embeddings", 2048)),
        eos_token_ids=token_ids(value.get("eos_token_id")),
        rope=rope,
    )


def _rope(value: dict[str, Any]) -> dict[str, Any]:
    """transformers 5 keeps all of it in ``rope_parameters``; before, the base stood beside ``rope_scaling``."""
    found = dict(value.get("rope_parameters") or value.get("rope_scaling") or {})
    found.setdefault("rope_type", found.get("type", "default"))
    found.setdefault("rope_theta", value.get("rope_theta") or 10_000.0)
    return found


def token_ids(value: Any) -> frozenset[int]:
    """Hugging Face writes one id, a list of them, or null."""
    return frozenset(value if isinstance(value, list) else () if value is None else (value,))


def rotary_tables(config: LlamaConfig, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of positions 0..L-1, float32 (L, E); the two halves of E turn by the same angles."""
    frequency_E, scale = _frequencies(config)
    angle_LE = torch.arange(length, dtype=torch.float32).unsqueeze(1) * frequency_E.repeat(2)
    return angle_LE.cos() * scale, angle_LE.sin() * scale


def _frequencies(config: LlamaConfig) -> tuple[torch.Tensor, float]:
    """Radians per position of each pair of numbers (E / 2), and the factor of the result."""
    rope, kind = config.rope, config.rope["rope_type"]
    plain = 1.0 / float(rope["rope_theta"]) ** (torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim)
    if kind == "default":
        return plain, 1.0
    if kind == "linear":
        return plain / float(rope["factor"]), 1.0
    return (_llama3(plain, rope), 1.0) if kind == "llama3" else _yarn(plain, config)


def _llama3(plain: torch.Tensor, rope: dict[str, Any]) -> torch.Tensor:
    """Slow pairs are slowed down by ``factor``, fast ones stay, those between are blended."""
    turns = float(rope["original_max_position_embeddings"]) * plain / (2 * math.pi)
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    share = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - share) * plain / float(rope["factor"]) + share * plain


def _yarn(plain: torch.Tensor, config: LlamaConfig) -> tuple[torch.Tensor, float]:
    """As ``_llama3``, blended over the number of the pair, and attention is sharpened by a factor on cosine and sine."""
    rope, size = config.rope, config.head_dim
    original = float(rope.get("original_max_position_embeddings") or config.max_position_embeddings)
    factor = float(rope.get("factor") or config.max_position_embeddings / original)

    def pair_of(turns: float) -> float:
        return size * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(float(rope["rope_theta"])))

    first, last = pair_of(float(rope.get("beta_fast") or 32)), pair_of(float(rope.get("beta_slow") or 1))
    if rope.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, size - 1)
    slowed = ((torch.arange(size // 2, dtype=torch.float32) - first) / max(last - first, 0.001)).clamp(0, 1)
    return slowed * plain / factor + (1 - slowed) * plain, _yarn_scale(rope, factor)


def _yarn_scale(rope: dict[str, Any], factor: float) -> float:
    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return scale(float(rope["mscale"])) / scale(float(rope["mscale_all_dim"]))
    return scale(1.0)
