"""A Llama forward pass over a flat list of tokens from many sequences, with a preallocated key-value cache.

One step takes one new token of every decoding sequence and some prompt tokens of sequences that are being prefilled; all matrix
products run once over the T tokens of the step, and only attention looks at sequences one by one. Decoding sequences occupy
cache slots 0..n-1 without a hole, so their attention is one call on a view of the cache. Norms run in float32, as in transformers:
bfloat16 norms have been seen to flip greedy answers.

Shapes: T tokens of the step, N sequences, D model width, H query heads, K key-value heads, G = H / K, E head size, S slots,
L positions, V vocabulary. Costs 2 * parameters FLOPs per token; the cache takes 2 * layers * S * K * L * E numbers, and decoding reads
it up to the longest running sequence.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional

from ray_apps.serving.engine.llama_config import LlamaConfig, read_config, rotary_tables
from ray_apps.serving.engine.safetensors_files import read_tensors
from schemas.errors import RegistryError


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens of one sequence that this step computes."""

    slot: int
    start: int
    """Position of the first of them in the sequence."""
    token_ids: Sequence[int]

    @property
    def end(self) -> int:
        """Position after the last of them."""
        return self.start + len(self.token_ids)


class KeyValueCache:
    """Keys and values of S sequences, up to L positions each."""

    def __init__(self, shape: tuple[int, int, int, int, int], like: torch.Tensor) -> None:
        """``shape`` is (layers, S, K, L, E); type and device are those of ``like``."""
        self.keys = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.values = torch.zeros_like(self.keys)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` positions of a slot to another."""
        for cache in (self.keys, self.values):
            cache[:, target, :, :length] = cache[:, source, :, :length]


@dataclass(frozen=True, slots=True)
class _Layer:
    """Weights of one block; query, key and value share one matrix, and so do gate and up."""

    attention_norm: torch.Tensor
    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None
    out: torch.Tensor
    out_bias: torch.Tensor | None
    mlp_norm: torch.Tensor
    gate_up: torch.Tensor
    gate_up_bias: torch.Tensor | None
    down: torch.Tensor
    down_bias: torch.Tensor | None


def _fuse(tensors: Mapping[str, torch.Tensor], *names: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    weight = torch.cat([tensors[f"{name}.weight"] for name in names])
    return weight, torch.cat([tensors[f"{name}.bias"] for name in names]) if f"{names[0]}.bias" in tensors else None


def _layer(tensors: Mapping[str, torch.Tensor], number: int) -> _Layer:
    block = f"model.layers.{number}"
    attention, mlp = f"{block}.self_attn", f"{block}.mlp"
    qkv, qkv_bias = _fuse(tensors, f"{attention}.q_proj", f"{attention}.k_proj", f"{attention}.v_proj")
    gate_up, gate_up_bias = _fuse(tensors, f"{mlp}.gate_proj", f"{mlp}.up_proj")
    return _Layer(
        attention_norm=tensors[f"{block}.input_layernorm.weight"],
        qkv=qkv,
        qkv_bias=qkv_bias,
        out=tensors[f"{attention}.o_proj.weight"],
        out_bias=tensors.get(f"{attention}.o_proj.bias"),
        mlp_norm=tensors[f"{block}.post_attention_layernorm.weight"],
        gate_up=gate_up,
        gate_up_bias=gate_up_bias,
        down=tensors[f"{mlp}.down_proj.weight"],
        down_bias=tensors.get(f"{mlp}.down_proj.bias"),
    )


def _rms_norm(x_TD: torch.Tensor, weight_D: torch.Tensor, epsilon: float) -> torch.Tensor:
    x32_TD = x_TD.float()
    x32_TD = x32_TD * torch.rsqrt(x32_TD.pow(2).mean(-1, keepdim=True) + epsilon)
    return weight_D * x32_TD.to(x_TD.dtype)


def _rotate(x_THE: torch.Tensor, cos_TE: torch.Tensor, sin_TE: torch.Tensor) -> torch.Tensor:
    half = x_THE.shape[-1] // 2
    turned_THE = torch.cat((-x_THE[..., half:], x_THE[..., :half]), dim=-1)
    return x_THE * cos_TE.unsqueeze(1) + turned_THE * sin_TE.unsqueeze(1)


class _Step:
    """Index tensors of one step, shared by all layers."""

    def __init__(self, spans: Sequence[Span], num_decoding: int, device: torch.device) -> None:
        flat = [(span.slot, span.start + offset, token) for span in spans for offset, token in enumerate(span.token_ids)]
        self.slot_T, self.position_T, self.token_T = torch.tensor(flat, dtype=torch.long, device=device).unbind(1)
        self.prefill = spans[num_decoding:]
        self.num_decoding = num_decoding
        ends = [span.end for span in spans[:num_decoding]]
        self.longest = max(ends, default=0)
        position_L = torch.arange(self.longest, device=device)
        # (N, 1, 1, L): every sequence sees its own positions only
        self.decode_mask = (position_L < torch.tensor(ends, device=device).unsqueeze(1))[:, None, None, :]
        lengths = torch.tensor([len(span.token_ids) for span in spans], device=device)
        self.last_N = lengths.cumsum(0) - 1


class LlamaModel:
    """A Llama's weights and cache on one device."""

    def __init__(self, config: LlamaConfig, tensors: Mapping[str, torch.Tensor], *, num_slots: int, max_length: int) -> None:
        """``tensors`` by their Hugging Face names. Raises KeyError where one is missing."""
        self.vocab_size = config.vocab_size
        self._epsilon = config.rms_norm_eps
        self._num_heads = config.num_attention_heads
        self._num_kv_heads = config.num_key_value_heads
        self._embedding_VD = tensors["model.embed_tokens.weight"]
        self._norm_D = tensors["model.norm.weight"]
        self._head_VD = tensors.get("lm_head.weight", self._embedding_VD)
        self._layers = [_layer(tensors, number) for number in range(config.num_hidden_layers)]
        self._head_size = config.head_dim
        cos_LE, sin_LE = rotary_tables(config, max_length)
        self._cos_LE, self._sin_LE = cos_LE.to(self._embedding_VD), sin_LE.to(self._embedding_VD)
        shape = (len(self._layers), num_slots, self._num_kv_heads, max_length, self._head_size)
        self.cache = KeyValueCache(shape, like=self._embedding_VD)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._embedding_VD.device

    def step(self, spans: Sequence[Span], num_decoding: int) -> torch.Tensor:
        """Float32 logits (N, V) after the last token of every span; fills the cache.

        The first ``num_decoding`` spans have one token each and slots 0, 1, 2, …; the others are parts of prompts.
        """
        step = _Step(spans, num_decoding, self.device)
        x_TD = functional.embedding(step.token_T, self._embedding_VD)
        for number, layer in enumerate(self._layers):
            x_TD = x_TD + self._attend(number, layer, _rms_norm(x_TD, layer.attention_norm, self._epsilon), step)
            x_TD = x_TD + self._feed(layer, _rms_norm(x_TD, layer.mlp_norm, self._epsilon))
        last_ND = _rms_norm(x_TD[step.last_N], self._norm_D, self._epsilon)
        return functional.linear(last_ND, self._head_VD).float()

    def _feed(self, layer: _Layer, x_TD: torch.Tensor) -> torch.Tensor:
        gate, up = functional.linear(x_TD, layer.gate_up, layer.gate_up_bias).chunk(2, dim=-1)
        return functional.linear(functional.silu(gate) * up, layer.down, layer.down_bias)

    def _attend(self, number: int, layer: _Layer, x_TD: torch.Tensor, step: _Step) -> torch.Tensor:
        H, K, E = self._num_heads, self._num_kv_heads, self._head_size
        q_TD, k_TD, v_TD = torch.split(functional.linear(x_TD, layer.qkv, layer.qkv_bias), [H * E, K * E, K * E], dim=-1)
        cos_TE, sin_TE = self._cos_LE[step.position_T], self._sin_LE[step.position_T]
        q_THE = _rotate(q_TD.reshape(-1, H, E), cos_TE, sin_TE)
        keys_SKLE, values_SKLE = self.cache.keys[number], self.cache.values[number]
        keys_SKLE[step.slot_T, :, step.position_T] = _rotate(k_TD.reshape(-1, K, E), cos_TE, sin_TE)
        values_SKLE[step.slot_T, :, step.position_T] = v_TD.reshape(-1, K, E)
        parts = [self._decode(q_THE[: step.num_decoding], keys_SKLE, values_SKLE, step)] if step.num_decoding else []
        begin = step.num_decoding
        for span in step.prefill:
            parts.append(
                _prefill(q_THE[begin : begin + len(span.token_ids)], keys_SKLE[span.slot, :, : span.end], values_SKLE[span.slot, :, : span.end])
            )
            begin += len(span.token_ids)
        return functional.linear(torch.cat(parts), layer.out, layer.out_bias)

    def _decode(self, q_NHE: torch.Tensor, keys_SKLE: torch.Tensor, values_SKLE: torch.Tensor, step: _Step) -> torch.Tensor:
        """Attention of one query token per sequence; grouped queries take the place of query positions."""
        N, L = step.num_decoding, step.longest
        q_NKGE = q_NHE.reshape(N, self._num_kv_heads, -1, self._head_size)
        out_NKGE = functional.scaled_dot_product_attention(q_NKGE, keys_SKLE[:N, :, :L], values_SKLE[:N, :, :L], attn_mask=step.decode_mask)
        return out_NKGE.flatten(1)


def _prefill(q_THE: torch.Tensor, keys_KLE: torch.Tensor, values_KLE: torch.Tensor) -> torch.Tensor:
    """Causal attention of the last T positions of a sequence of L; returns (T, H * E)."""
    T, L = q_THE.shape[0], keys_KLE.shape[1]
    mask_TL = torch.ones(T, L, dtype=torch.bool, device=q_THE.device).tril(L - T)
    out_1HTE = functional.scaled_dot_product_attention(
        q_THE.transpose(0, 1).unsqueeze(0), keys_KLE.unsqueeze(0), values_KLE.unsqueeze(0), attn_mask=mask_TL, enable_gqa=True
    )
    return out_1HTE[0].transpose(0, 1).flatten(1)


def load_llama(folder: Path, *, num_slots: int, max_length: int, device: str = "cpu") -> LlamaModel:
    """The model of a folder in Hugging Face layout. ``max_length`` is lowered to the model's own context.

    Raises RegistryError for an architecture that this engine does not compute, and for a folder that is not whole.
    """
    config = read_config(folder)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    tensors = {name: tensor.to(device=device, dtype=dtype) for name, tensor in read_tensors(folder).items()}
    length = min(max_length, config.max_position_embeddings)
    try:
        return LlamaModel(config, tensors, num_slots=num_slots, max_length=length)
    except KeyError as error:
        raise RegistryError(f"the weights in {folder} lack {error}, which its config.json asks for; restore them from a copy") from error
