"""A step is a function of the global batch: micro-batches and processes change only the rounding."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from pipelines.dataset.dataset import Dataset
from ray_apps.models.presets import llama_config
from ray_apps.training.batches import Batch, StepBatches, make_batch
from ray_apps.training.optimizer import build_optimizer
from ray_apps.training.parallel import CPU, Process
from ray_apps.training.precision import resolve_precision
from ray_apps.training.run import is_complete, plan_run
from ray_apps.training.step import Stepper, StepResult, SummedLoss, accumulate, seed_step, train_step
from ray_apps.training.weights import build_model
from schemas.errors import SettingsError, TrainingDiverged
from schemas.settings import ModelSettings, TrainingSettings
from tests.factories import make_dataset, tokenizer_ref
from tests.training_runs import curve, final_files, records, run_alone, run_together, tiny_dataset, tiny_settings

TOKENIZER = tokenizer_ref(60)


def make_stepper(accumulation_steps: int = 1, clip_norm: float = 1.0) -> Stepper:
    torch.manual_seed(0)
    model = LlamaForCausalLM(llama_config(ModelSettings(), TOKENIZER, 16))
    chosen = TrainingSettings(accumulation_steps=accumulation_steps)
    precision = resolve_precision(chosen, CPU)
    optimizer = build_optimizer(model, chosen, CPU)
    return Stepper(SummedLoss(model), optimizer, precision.scaler(), precision, Process(), accumulation_steps, clip_norm)


def ragged_batch(seed: int, num_rows: int) -> Batch:
    """Rows of which some end in padding, so that micro-batches hold different numbers of targets."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(2, 60, (num_rows, 16))
    for row in rows:
        row[rng.integers(2, 17) :] = TOKENIZER.pad_token_id
    return make_batch(rows, TOKENIZER)


def gradients(stepper: Stepper, batch: Batch) -> list[torch.Tensor]:
    accumulate(stepper, batch, batch.num_targets)
    return [parameter.grad for parameter in stepper.module.parameters() if parameter.grad is not None]


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), num_rows=st.integers(1, 7), parts=st.integers(2, 5))
def test_accumulated_micro_batches_give_the_gradient_of_the_whole_batch(seed: int, num_rows: int, parts: int) -> None:
    batch = ragged_batch(seed, num_rows)
    whole, pieces = gradients(make_stepper(), batch), gradients(make_stepper(parts), batch)
    for expected, actual in zip(whole, pieces, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-5)


def test_the_loss_is_that_of_transformers() -> None:
    stepper, batch = make_stepper(), ragged_batch(0, 4)
    model = stepper.module.model
    assert isinstance(model, LlamaForCausalLM)
    logits = model(input_ids=batch.input_BT).logits
    reference = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.target_BT.flatten())
    assert train_step(stepper, batch, 1e-3).loss == pytest.approx(reference.item(), rel=1e-5)


def test_gradients_are_scaled_down_to_the_clip_norm_but_the_norm_before_is_reported() -> None:
    """What the optimizer got: after one step its first moment is (1 - beta1) times the gradient."""
    free, clipped = make_stepper(clip_norm=1e9), make_stepper(clip_norm=1e-3)
    batch = ragged_batch(0, 4)
    results: list[StepResult] = [train_step(stepper, batch, 1e-3) for stepper in (free, clipped)]
    assert results[0].grad_norm == results[1].grad_norm > 1e-2
    assert used_norm(free) == pytest.approx(results[0].grad_norm, rel=1e-4)
    assert used_norm(clipped) == pytest.approx(1e-3, rel=1e-3)


def used_norm(stepper: Stepper) -> float:
    moments = [state["exp_avg"].norm() for state in stepper.optimizer.state.values()]
    return float(torch.stack(moments).norm()) / (1 - TrainingSettings().beta1)


def test_random_numbers_of_a_step_are_a_function_of_seed_step_and_rank() -> None:
    drawn: dict[tuple[int, int, int], float] = {}
    for key in [(0, 0, 0), (0, 1, 0), (1, 0, 0), (0, 0, 1), (0, 0, 0)]:
        seed_step(*key)
        value = float(torch.rand(()))
        assert drawn.setdefault(key, value) == value
    assert len(set(drawn.values())) == 4


def test_every_seed_that_the_settings_take_is_one_that_torch_takes(tmp_path: Path) -> None:
    tiny_dataset(tmp_path)
    for seed in (280_000_000, 2**63 - 1):
        chosen = plan_run(tiny_settings(tmp_path, seed=seed))
        build_model(chosen, tmp_path)
        seed_step(chosen.training.seed, 10**9, 4095)
    with pytest.raises(SettingsError, match="seed"):
        tiny_settings(tmp_path, seed=2**63)


@settings(max_examples=10, deadline=None)
@given(step=st.integers(0, 10**6), world_size=st.sampled_from([1, 2, 4, 8]))
def test_the_processes_of_a_step_read_the_same_global_batch_whatever_their_number(
    tmp_path_factory: pytest.TempPathFactory, step: int, world_size: int
) -> None:
    root = tmp_path_factory.getbasetemp() / "shared-dataset"
    if not root.exists():
        make_dataset(root, num_rows=13, sequence_length=8)
    chosen, dataset = TrainingSettings(global_batch_rows=8), Dataset(root, 1).ref()
    parts = [StepBatches(root, dataset, TOKENIZER, chosen, rank=rank, world_size=world_size)[step].input_BT for rank in range(world_size)]
    alone = StepBatches(root, dataset, TOKENIZER, chosen, rank=0, world_size=1)[step].input_BT
    assert torch.equal(torch.cat(parts), alone)


def test_a_loss_that_is_no_number_stops_the_run_with_advice(tmp_path: Path) -> None:
    tiny_dataset(tmp_path)
    with pytest.raises(TrainingDiverged, match=r"the loss of step \d+ .* lower training\.learning_rate"):
        run_alone(tiny_settings(tmp_path, learning_rate=1e30, warmup_steps=0, clip_norm=1e30))


def test_weights_that_the_last_step_has_spoilt_are_no_result(tmp_path: Path) -> None:
    """Each step's loss is from before its update: of one step that diverges it tells nothing."""
    tiny_dataset(tmp_path)
    chosen = tiny_settings(tmp_path, learning_rate=1e38, weight_decay=1e38, warmup_steps=0, max_steps=1)
    with pytest.raises(TrainingDiverged, match="after the last step"):
        run_alone(chosen)
    assert not is_complete(plan_run(chosen), tmp_path)


def test_one_and_three_processes_train_alike_and_three_resume_bit_for_bit(tmp_path: Path) -> None:
    """49 rows: batches cross epochs. With three, the layout of DDP's buckets decides the order of additions."""
    roots = [tmp_path / name for name in ("alone", "straight", "interrupted")]
    for root in roots:
        tiny_dataset(root, num_rows=49)
    alone, straight, interrupted = roots
    run = run_alone(tiny_settings(alone))
    run_together([straight, interrupted, interrupted], [None, 4, None], num_processes=3)
    ours, theirs = records(alone, run), records(straight, run)
    assert [record.num_tokens for record in ours] == [record.num_tokens for record in theirs]
    assert [record.loss for record in ours] == pytest.approx([record.loss for record in theirs], rel=1e-4)
    assert curve(interrupted, run) == curve(straight, run)
    assert final_files(interrupted, run) == final_files(straight, run)
