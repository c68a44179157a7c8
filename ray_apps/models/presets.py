"""Shapes of the Llama-style models that Headrace trains.

The vocabulary and the special tokens come from the dataset's tokenizer; input and output embeddings are tied, because at an 8k
vocabulary they are half of a nano model. Parameters at a vocabulary of 8,192: nano 1.8 M, small 24 M, base 120 M.
"""

from dataclasses import dataclass

from transformers import LlamaConfig

from schemas.manifest import TokenizerRef
from schemas.settings import ModelSettings


@dataclass(frozen=True)
class Shape:
    """What a preset fixes."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    context_length: int
    """Positions that serving may use; at least the sequence length of training."""


PRESETS = {
    "nano": Shape(hidden_size=128, intermediate_size=352, num_layers=4, num_heads=4, num_key_value_heads=2, context_length=1_024),
    "small": Shape(hidden_size=384, intermediate_size=1_024, num_layers=12, num_heads=6, num_key_value_heads=6, context_length=2_048),
    "base": Shape(hidden_size=768, intermediate_size=2_048, num_layers=16, num_heads=12, num_key_value_heads=12, context_length=4_096),
}


def llama_config(settings: ModelSettings, tokenizer: TokenizerRef, sequence_length: int) -> LlamaConfig:
    """The transformers config of a preset.

    Where padding and end of text are the same id, ``pad_token_id`` stays unset: transformers would freeze that row of the embedding.
    """
    shape = PRESETS[settings.preset]
    is_own_pad = tokenizer.pad_token_id != tokenizer.eos_token_id
    return LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_key_value_heads,
        max_position_embeddings=max(shape.context_length, sequence_length),
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id if is_own_pad else None,
        use_cache=True,
    )
