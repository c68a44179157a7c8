"""Which parameters decay, and which arithmetic a device gets."""

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from ray_apps.models.presets import PRESETS, llama_config
from ray_apps.training.optimizer import build_optimizer, decay_groups, set_learning_rate
from ray_apps.training.precision import resolve_precision
from schemas.errors import SettingsError
from schemas.manifest import TokenizerRef
from schemas.settings import ModelSettings, TrainingSettings
from tests.factories import tokenizer_ref

CPU = torch.device("cpu")


def meta_model(preset: str, tokenizer: TokenizerRef) -> LlamaForCausalLM:
    with torch.device("meta"):
        return LlamaForCausalLM(llama_config(ModelSettings.model_validate({"preset": preset}), tokenizer, 256))


def test_matrices_decay_and_vectors_do_not() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    decaying, others = decay_groups(model, 0.1)
    assert [decaying["weight_decay"], others["weight_decay"]] == [0.1, 0.0]
    assert decaying["params"] == [model[0].weight]
    assert len(list(others["params"])) == 3  # type: ignore[call-overload]


def test_a_tied_embedding_is_optimized_once() -> None:
    model = meta_model("nano", tokenizer_ref(300))
    listed = [parameter for group in decay_groups(model, 0.1) for parameter in group["params"]]  # type: ignore[attr-defined]
    assert len(listed) == len({id(parameter) for parameter in listed}) == len(list(model.parameters()))


def test_zero_gradients_shrink_matrices_only() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    optimizer = build_optimizer(model, TrainingSettings(weight_decay=0.5), CPU)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    set_learning_rate(optimizer, 0.1)
    optimizer.step()
    for name, parameter in model.named_parameters():
        expected = before[name] * 0.95 if parameter.ndim == 2 else before[name]
        torch.testing.assert_close(parameter.detach(), expected)


@pytest.mark.parametrize(("preset", "low", "high"), [("nano", 1e6, 3e6), ("small", 20e6, 30e6), ("base", 110e6, 135e6)])
def test_presets_have_the_size_that_they_promise(preset: str, low: float, high: float) -> None:
    assert low <= sum(parameter.numel() for parameter in meta_model(preset, tokenizer_ref(8192)).parameters()) <= high


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_head_has_the_same_width(preset: str) -> None:
    shape = PRESETS[preset]
    assert shape.hidden_size % shape.num_heads == 0 == shape.num_heads % shape.num_key_value_heads


def test_an_end_of_text_token_that_is_also_padding_still_learns() -> None:
    shared = TokenizerRef(sha256="0" * 64, path="tokenizer/x", vocab_size=300, eos_token_id=0, pad_token_id=0)
    assert meta_model("nano", shared).get_input_embeddings().padding_idx is None


def test_auto_precision_on_cpu_is_fp32_without_loss_scaling() -> None:
    precision = resolve_precision(TrainingSettings(precision="auto"), CPU)
    assert precision.name == "fp32"
    assert precision.scaler().state_dict() == {}


def test_fp16_on_cpu_is_refused_with_a_way_out() -> None:
    with pytest.raises(SettingsError, match="bf16"):
        resolve_precision(TrainingSettings(precision="fp16"), CPU)


def test_bf16_runs_the_forward_pass_in_bf16() -> None:
    with resolve_precision(TrainingSettings(precision="bf16"), CPU).autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
