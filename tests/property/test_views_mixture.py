"""Every block holds each group's quota, and every group goes through its rows once per epoch, whoever reads."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.views.mixture import Mixture, quotas
from schemas.errors import NotEnoughData
from schemas.view import BLOCK_ROWS

GOLDEN = [11, 19, 12, 14, 18, 24, 16, 1]
seeds = st.integers(0, 2**63)


@st.composite
def mixtures(draw: st.DrawFn) -> Mixture:
    number = draw(st.integers(1, 5))
    weights = draw(st.lists(st.floats(0.01, 1.0), min_size=number, max_size=number))
    rows = draw(st.lists(st.integers(1, 700), min_size=number, max_size=number))
    return Mixture(tuple(f"g{index}" for index in range(number)), tuple(rows), tuple(weight / sum(weights) for weight in weights))


@settings(deadline=None)
@given(mixture=mixtures(), seed=seeds, block=st.integers(0, 10**9))
def test_quotas_are_exact_in_every_block_and_within_a_row_of_the_shares(mixture: Mixture, seed: int, block: int) -> None:
    assert mixture.quotas.sum() == BLOCK_ROWS
    assert all(abs(quota - share * BLOCK_ROWS) < 1 + 1e-6 for quota, share in zip(mixture.quotas, mixture.shares, strict=True))
    rows = mixture.rows_at(block * BLOCK_ROWS + np.arange(BLOCK_ROWS), seed)
    groups = np.searchsorted(mixture.first_rows, rows, side="right") - 1
    assert np.array_equal(np.bincount(groups, minlength=len(mixture.names)), mixture.quotas)


@settings(max_examples=30, deadline=None)
@given(mixture=mixtures(), seed=seeds)
def test_every_row_of_a_group_is_read_once_per_epoch_of_the_group(mixture: Mixture, seed: int) -> None:
    rows = mixture.rows_at(np.arange(3 * BLOCK_ROWS), seed)
    groups = np.searchsorted(mixture.first_rows, rows, side="right") - 1
    for group, num_rows in enumerate(mixture.num_rows):
        read = rows[groups == group] - mixture.first_rows[group]
        for start in range(0, len(read) - num_rows + 1, num_rows):
            assert np.array_equal(np.sort(read[start : start + num_rows]), np.arange(num_rows))
        rest = read[len(read) // num_rows * num_rows :].tolist()
        assert len(set(rest)) == len(rest)
        assert mixture.epochs(3 * BLOCK_ROWS)[group] == pytest.approx(len(read) / num_rows)


@settings(max_examples=40, deadline=None)
@given(mixture=mixtures(), seed=seeds, step=st.integers(0, 10**6), world_size=st.sampled_from([1, 2, 3, 4, 6, 12]))
def test_the_union_over_ranks_is_the_same_for_every_number_of_workers(mixture: Mixture, seed: int, step: int, world_size: int) -> None:
    parts = [mixture.rows_for_step(seed=seed, step=step, global_batch_rows=12, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert np.array_equal(np.concatenate(parts), mixture.rows_at(12 * step + np.arange(12), seed))


@given(mixture=mixtures(), seed=seeds, positions=st.lists(st.integers(0, 10**7), max_size=20))
@settings(max_examples=40, deadline=None)
def test_a_position_is_read_alone_as_it_is_read_among_others(mixture: Mixture, seed: int, positions: list[int]) -> None:
    together = mixture.rows_at(np.array(positions, np.int64), seed)
    assert together.tolist() == [int(mixture.rows_at(np.array([position]), seed)[0]) for position in positions]


def test_the_order_of_a_mixture_never_changes_between_releases() -> None:
    """Golden: a resumed run must read what the interrupted one would have read, also after an upgrade."""
    mixture = Mixture(("tech", "rest"), (10, 15), (0.3, 0.7))
    assert mixture.rows_for_step(seed=42, step=7, global_batch_rows=8).tolist() == GOLDEN


def test_largest_remainders_get_the_rows_that_are_left() -> None:
    assert quotas((1 / 3, 1 / 3, 1 / 3)).tolist() == [334, 333, 333]
    assert quotas((0.3, 0.25, 0.45)).tolist() == [300, 250, 450]
    assert quotas((0.0014, 0.9986)).tolist() == [1, 999]


def test_a_group_without_rows_is_named_with_the_rows_of_all() -> None:
    with pytest.raises(NotEnoughData, match=r"group 'tech' \(rows: tech 0, rest 5\)"):
        Mixture(("tech", "rest"), (0, 5), (0.3, 0.7)).rows_for_step(seed=0, step=0, global_batch_rows=4)


def test_a_batch_that_workers_cannot_share_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be shared"):
        Mixture(("all",), (5,), (1.0,)).rows_for_step(seed=0, step=0, global_batch_rows=4, world_size=3)
