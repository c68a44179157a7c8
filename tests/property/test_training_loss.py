"""The chunked loss equals PyTorch's, and padding never counts, whatever the shapes."""

from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from ray_apps.training import cross_entropy as loss_module
from ray_apps.training.batches import make_batch
from ray_apps.training.cross_entropy import IGNORED, cross_entropy_sum
from schemas.manifest import TokenizerRef

ROW = 12
shapes = st.tuples(st.integers(1, 50), st.integers(2, 40), st.integers(1, 8))


def problem(seed: int, num_positions: int, vocab_size: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num_positions, width, generator=generator, requires_grad=True)
    weight = torch.randn(vocab_size, width, generator=generator, requires_grad=True)
    target = torch.randint(0, vocab_size, (num_positions,), generator=generator)
    ignored = torch.rand(num_positions, generator=generator) < 0.3
    return hidden, weight, target.masked_fill(ignored, IGNORED)


@settings(max_examples=40, deadline=None)
@given(shape=shapes, seed=st.integers(0, 2**31), scale=st.floats(0.1, 10))
def test_loss_and_both_gradients_equal_the_unchunked_ones(shape: tuple[int, int, int], seed: int, scale: float) -> None:
    results = []
    for chunked in (True, False):
        hidden, weight, target = problem(seed, *shape)
        with patch.object(loss_module, "CHUNK_ELEMENTS", 1):  # 16 positions per chunk
            value = (
                cross_entropy_sum(hidden, weight, target)
                if chunked
                else functional.cross_entropy(hidden @ weight.T, target, ignore_index=IGNORED, reduction="sum")
            )
        (value * scale).backward()  # type: ignore[no-untyped-call]
        results.append((value.detach(), hidden.grad, weight.grad))
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-4)


def test_without_gradients_only_the_loss_is_computed() -> None:
    hidden, weight, target = problem(0, 20, 30, 4)
    with torch.no_grad():
        value = cross_entropy_sum(hidden, weight, target)
    reference = functional.cross_entropy(hidden @ weight.T, target, ignore_index=IGNORED, reduction="sum")
    torch.testing.assert_close(value, reference.detach())


def test_under_bf16_autocast_loss_and_gradients_are_close_to_fp32() -> None:
    hidden, weight, target = problem(0, 40, 30, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = cross_entropy_sum(hidden, weight, target)
    value.backward()  # type: ignore[no-untyped-call]
    exact_hidden, exact_weight, _ = problem(0, 40, 30, 8)
    exact = functional.cross_entropy(exact_hidden @ exact_weight.T, target, ignore_index=IGNORED, reduction="sum")
    exact.backward()  # type: ignore[no-untyped-call]
    assert value.dtype == torch.float32
    assert weight.grad is not None
    assert exact_weight.grad is not None
    assert weight.grad.dtype == torch.float32
    assert abs(value.item() - exact.item()) < 0.02 * exact.item()
    assert float((weight.grad - exact_weight.grad).norm() / exact_weight.grad.norm()) < 0.02


@st.composite
def packed_row(draw: Any, pad: int) -> tuple[list[int], int]:
    """A row as the packer leaves it, and how many of its positions are no padding. Documents hold ids 2..9 and end with 0."""
    documents = draw(st.lists(st.lists(st.integers(2, 9), min_size=1, max_size=5), min_size=1, max_size=4))
    flat = [token for document in documents for token in [*document, 0]]
    row = flat[draw(st.integers(0, len(flat) - 1)) :][:ROW]  # it may begin in the middle of a document
    return row + [pad] * (ROW - len(row)), len(row)


@pytest.mark.parametrize("pad", [0, 1], ids=["pads-with-end-of-text", "own-padding-token"])
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_every_real_token_is_a_target_and_no_padding_is(pad: int, data: st.DataObject) -> None:
    rows = data.draw(st.lists(packed_row(pad), min_size=1, max_size=4))
    tokenizer = TokenizerRef(sha256="0" * 64, path="t", vocab_size=10, eos_token_id=0, pad_token_id=pad)
    batch = make_batch(np.array([row for row, _ in rows], dtype=np.int64), tokenizer)
    for (row, filled), inputs, targets in zip(rows, batch.input_BT.tolist(), batch.target_BT.tolist(), strict=True):
        assert inputs == row[:-1]
        assert targets == row[1:filled] + [IGNORED] * (ROW - filled)
    assert batch.num_targets == sum(filled - 1 for _, filled in rows)
