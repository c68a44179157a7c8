"""Rotary angles and shapes, read from config.json by ourselves, against transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from ray_apps.serving.engine.llama_config import read_config, rotary_tables
from schemas.errors import RegistryError

ROPES: list[dict[str, Any]] = [
    {"rope_type": "default", "rope_theta": 10_000.0},
    {"rope_type": "default", "rope_theta": 500_000.0},
    {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
    {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 64},
    {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 64, "truncate": False, "attention_factor": 0.7},
    {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 64, "mscale": 0.7, "mscale_all_dim": 1.0},
]


@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: str(rope["rope_type"]))
def test_angles_equal_those_of_transformers(tmp_path: Path, rope: dict[str, Any]) -> None:
    config = LlamaConfig(hidden_size=128, num_attention_heads=2, max_position_embeddings=256, rope_parameters=dict(rope))
    config.save_pretrained(tmp_path)
    ours = rotary_tables(read_config(tmp_path), 256)
    theirs = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(256).unsqueeze(0))
    for mine, table in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, table[0], atol=2e-5, rtol=0)


def test_a_configuration_of_transformers_4_is_understood(tmp_path: Path) -> None:
    old = {"model_type": "llama", "vocab_size": 9, "num_hidden_layers": 1, "num_attention_heads": 4, "hidden_size": 32, "rope_theta": 7.0}
    (tmp_path / "config.json").write_text(str(old | {"eos_token_id": [1, 2]}).replace("'", '"'))
    config = read_config(tmp_path)
    assert (config.rope, config.head_dim, config.num_key_value_heads) == ({"rope_type": "default", "rope_theta": 7.0}, 8, 4)
    assert config.eos_token_ids == {1, 2}


def test_a_rotary_kind_that_depends_on_the_length_at_hand_is_named(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}
    LlamaConfig(hidden_size=128, num_attention_heads=2, rope_parameters=rope).save_pretrained(tmp_path)
    with pytest.raises(RegistryError, match="dynamic"):
        read_config(tmp_path)


def test_a_folder_without_a_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"config\.json"):
        read_config(tmp_path)
