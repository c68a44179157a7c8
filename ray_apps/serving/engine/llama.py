"""A Llama forward pass over a flat list of tokens from many sequences, with a preallocated key-value cache.

One step takes one new token of every decoding sequence and some prompt tokens of sequences that are being prefilled; all matrix
products run once over the T tokens of the step, and only attention looks at sequences one by one. Decoding sequences occupy
cache slots 0..n-1 without a hole, so their attention is one call on a view of the cache. Norms run in float32, as in transformers:
bfloat16 norms have been seen to flip greedy answers.

Shapes: T tokens of the step, N sequences, D model width, H query heads, K key-value heads, G = H / K, E head size, S slots,
L positions, V vocabulary. Costs 2 * parameters FLOPs per token; the cache takes 2 * layers * S * K * L * E numbers, and decoding reads
it up to the longest running sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from schemas.errors import RegistryError

FIXED_ROPE = ("default", "linear", "llama3", "yarn")
"""Rotary variants whose angles do not depend on the length of the sequence at hand."""


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


def _fuse(*linears: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    weight = torch.cat([linear.weight for linear in linears])
    return weight, None if linears[0].bias is None else torch.cat([linear.bias for linear in linears])


def _layer(block: Any) -> _Layer:
    attention, mlp = block.self_attn, block.mlp
    qkv, qkv_bias = _fuse(attention.q_proj, attention.k_proj, attention.v_proj)
    gate_up, gate_up_bias = _fuse(mlp.gate_proj, mlp.up_proj)
    return _Layer(
        attention_norm=block.input_layernorm.weight,
        qkv=qkv,
        qkv_bias=qkv_bias,
        out=attention.o_proj.weight,
        out_bias=attention.o_proj.bias,
        mlp_norm=block.post_attention_layernorm.weight,
        gate_up=gate_up,
        gate_up_bias=gate_up_bias,
        down=mlp.down_proj.weight,
        down_bias=mlp.down_proj.bias,
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

    def __init__(self, model: Any, *, num_slots: int, max_length: int) -> None:
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        config, inner = model.config, model.model
        self.vocab_size: int = config.vocab_size
        self._epsilon: float = config.rms_norm_eps
        self._num_heads: int = config.num_attention_heads
        self._num_kv_heads: int = config.num_key_value_heads
        self._head_size: int = config.head_dim
        self._embedding_VD: torch.Tensor = inner.embed_tokens.weight
        self._norm_D: torch.Tensor = inner.norm.weight
        self._head_VD: torch.Tensor = model.lm_head.weight
        self._layers = [_layer(block) for block in inner.layers]
        positions = torch.arange(max_length, device=self.device).unsqueeze(0)
        cos, sin = LlamaRotaryEmbedding(config).to(self.device)(self._embedding_VD, positions)
        self._cos_LE, self._sin_LE = cos[0], sin[0]
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


def load_llama(folder: Path, *, num_slots: int, max_length: int, device: str = "cpu") -> tuple[LlamaModel, Any]:
    """A model folder in Hugging Face layout -> (model, tokenizer). ``max_length`` is lowered to the model's own context.

    Raises RegistryError for an architecture that this engine does not compute.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]  # it would be drawn into the log of every replica
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    rope = (config.rope_parameters or {}).get("rope_type", "default") if config.model_type == "llama" else None
    if rope not in FIXED_ROPE or config.hidden_act != "silu":
        raise RegistryError(
            f"{folder} holds a {config.model_type} model (rotary {rope}); the built-in engine computes Llama models with SiLU and rotary {FIXED_ROPE}"
        )
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    model: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=dtype)
    model = model.to(device).eval().requires_grad_(False)
    length = min(max_length, int(config.max_position_embeddings))
    return LlamaModel(model, num_slots=num_slots, max_length=length), AutoTokenizer.from_pretrained(folder, local_files_only=True)
