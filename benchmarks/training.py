"""Tokens per second of the training step beside the plain loop that people write: the same model, data order and AdamW.

    python -m benchmarks.training [--preset nano] [--steps 12] [--threads 2] [--precision fp32]

"plain" is `model(input_ids, labels).loss.backward()` with the full logits tensor, as in Hugging Face's examples; "headrace" is
ray_apps/training/step.py with the chunked loss. Both run in this process, in alternating rounds, so that both meet the same noise.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import transformers
from torch import nn
from transformers import LlamaForCausalLM

from ray_apps.models.presets import PRESETS, llama_config
from ray_apps.training.batches import Batch, make_batch
from ray_apps.training.optimizer import build_optimizer
from ray_apps.training.parallel import CPU, Process
from ray_apps.training.precision import resolve_precision
from ray_apps.training.step import Stepper, SummedLoss, train_step
from schemas.manifest import TokenizerRef
from schemas.settings import ModelSettings, TrainingSettings

ROWS, SEQUENCE_LENGTH, VOCAB_SIZE, ROUNDS = 16, 256, 8192, 3
TOKENIZER = TokenizerRef(sha256="0" * 64, path="none", vocab_size=VOCAB_SIZE, eos_token_id=0, pad_token_id=1)
Step = Callable[[Batch], float]


def build_model(preset: str) -> LlamaForCausalLM:
    """The same weights each time."""
    torch.manual_seed(0)
    return LlamaForCausalLM(llama_config(ModelSettings.model_validate({"preset": preset}), TOKENIZER, SEQUENCE_LENGTH))


def plain_step(preset: str, settings: TrainingSettings) -> Step:
    """The loop of the examples."""
    model = build_model(preset).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.1)
    precision = resolve_precision(settings, CPU)

    def step(batch: Batch) -> float:
        labels = torch.cat([batch.input_BT[:, :1], batch.target_BT], dim=1)  # transformers shifts by itself
        ids = labels.clamp_min(0)
        with precision.autocast():
            loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def headrace_step(preset: str, settings: TrainingSettings) -> Step:
    """Ours."""
    model = build_model(preset).train()
    precision = resolve_precision(settings, CPU)
    optimizer = build_optimizer(model, settings, CPU)
    stepper = Stepper(SummedLoss(model), optimizer, precision.scaler(), precision, Process(), settings.accumulation_steps, settings.clip_norm)
    return lambda batch: train_step(stepper, batch, settings.learning_rate).loss


def measure(step: Step, batches: list[Batch]) -> tuple[list[float], float]:
    """Seconds of each step, and the last loss."""
    durations, loss = [], 0.0
    for batch in batches:
        started = time.perf_counter()
        loss = step(batch)
        durations.append(time.perf_counter() - started)
    return durations, loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="nano")
    parser.add_argument("--steps", type=int, default=12, help="steps per round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    settings = TrainingSettings(precision=args.precision)
    rng = np.random.default_rng(0)
    batches = [make_batch(rng.integers(2, VOCAB_SIZE, (ROWS, SEQUENCE_LENGTH)), TOKENIZER) for _ in range(args.steps)]
    steps = {"plain": plain_step(args.preset, settings), "headrace": headrace_step(args.preset, settings)}
    durations: dict[str, list[float]] = {name: [] for name in steps}
    losses: dict[str, float] = {}
    for number in range(ROUNDS + 1):
        for name, step in steps.items():
            measured, losses[name] = measure(step, batches)
            durations[name] += measured if number else []  # the first round warms up
    print(f"{platform.processor() or platform.machine()}, {args.threads} threads, torch {torch.__version__}, transformers {transformers.__version__}")
    print(f"preset {args.preset}, {ROWS} x {SEQUENCE_LENGTH} tokens per step, {VOCAB_SIZE} ids, {args.precision}, median of {ROUNDS * args.steps}")
    for name, seconds in durations.items():
        rate = ROWS * (SEQUENCE_LENGTH - 1) / statistics.median(seconds)
        print(f"{name:>9}: {rate:>9,.0f} tok/s   {statistics.median(seconds) * 1e3:>8.1f} ms per step   last loss {losses[name]:.4f}")


if __name__ == "__main__":
    main()
