"""Continuous batching under any schedule of arrivals and cancellations: every sequence gets what it would get alone."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_apps.serving.engine import batch as batching
from ray_apps.serving.engine.batch import Batch, Running
from ray_apps.serving.engine.interface import Chunk, Failure, FinishReason, Sampling
from ray_apps.serving.engine.llama import LlamaModel, load_llama
from ray_apps.serving.engine.sampling import Draw
from ray_apps.serving.engine.text import TextStream
from tests.model_factory import make_model

NUM_SLOTS = 3
MAX_STEPS = 2000


@dataclass
class Plan:
    """A sequence, when it arrives, and after how many of its tokens it is cancelled."""

    prompt: list[int]
    max_tokens: int
    arrival: int
    cancel_after: int | None
    temperature: float
    out: list[int] = field(default_factory=list)
    end: FinishReason | None = None

    def running(self, index: int) -> Running:
        def emit(chunk: Chunk | Failure) -> None:
            assert isinstance(chunk, Chunk) and self.end is None
            self.out += chunk.token_ids
            self.end = chunk.finish_reason

        sampling = Sampling(max_tokens=self.max_tokens, temperature=self.temperature, seed=sum(self.prompt))
        return Running(
            request_id=str(index), index=0, prompt=self.prompt, max_tokens=self.max_tokens, draw=Draw(sampling, 0), text=TextStream([]), emit=emit
        )


PLANS = st.lists(
    st.builds(
        Plan,
        prompt=st.lists(st.integers(2, 400), min_size=1, max_size=30),
        max_tokens=st.integers(1, 12),
        arrival=st.integers(0, 15),
        cancel_after=st.none() | st.integers(0, 8),
        temperature=st.sampled_from([0.0, 1.0]),
    ),
    min_size=1,
    max_size=8,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaModel]:
    root = tmp_path_factory.mktemp("batch")
    make_model(root)
    patch = pytest.MonkeyPatch()
    patch.setattr(batching, "PREFILL_TOKENS", 16)  # so that prompts are cut in pieces
    yield load_llama(root / "models" / "00000001", num_slots=NUM_SLOTS, max_length=64)
    patch.undo()


def run(model: LlamaModel, plans: list[Plan], *, cancel: bool) -> None:
    batch = Batch(model, NUM_SLOTS, eos_token_ids={0})
    sequences = [plan.running(index) for index, plan in enumerate(plans)]
    for step in range(MAX_STEPS):
        batch.waiting.extend(sequence for sequence, plan in zip(sequences, plans, strict=True) if plan.arrival == step)
        for sequence, plan in zip(sequences, plans, strict=True):
            sequence.cancelled = cancel and plan.cancel_after is not None and plan.arrival <= step and len(plan.out) >= plan.cancel_after
        batch.step()
        assert len(batch.running) <= NUM_SLOTS
        assert all(sequence.is_decoding for sequence in batch.running[:-1])
        if all(plan.end for plan in plans):
            assert len(batch) == 0
            return
    raise AssertionError("the batch did not come to an end")


@settings(max_examples=15, deadline=None)
@given(PLANS)
def test_every_sequence_gets_what_it_would_get_alone(model: LlamaModel, plans: list[Plan]) -> None:
    """Near-ties aside: a wide random model has none that a change of batch could flip."""
    with torch.inference_mode():
        run(model, plans, cancel=True)
        for plan in plans:
            alone = Plan(plan.prompt, plan.max_tokens, 0, None, plan.temperature)
            run(model, [alone], cancel=False)
            if plan.end is FinishReason.CANCELLED:
                assert plan.out == alone.out[: len(plan.out)]
            else:
                assert (plan.out, plan.end) == (alone.out, alone.end)
