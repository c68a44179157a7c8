"""Every epoch reads every row once, whoever reads and wherever it was interrupted."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.dataset.dataset import Dataset
from pipelines.dataset.loader import LoaderState, TokenRows, permute, row_ids_for_step
from pipelines.dataset.shards import open_shard
from schemas.arrow import Split
from schemas.errors import CheckpointCorrupt, NotEnoughData
from tests.factories import make_dataset

GOLDEN = [485, 333, 779, 176, 601, 118, 479, 320]
seeds = st.integers(0, 2**63)


@settings(deadline=None)
@given(num_rows=st.integers(1, 3000), seed=seeds, epoch=st.integers(0, 10**6))
def test_each_epoch_is_a_permutation(num_rows: int, seed: int, epoch: int) -> None:
    rows = permute(np.arange(num_rows), np.full(num_rows, epoch), num_rows=num_rows, seed=seed)
    assert np.array_equal(np.sort(rows), np.arange(num_rows))


@settings(max_examples=50, deadline=None)
@given(num_rows=st.integers(1, 200), seed=seeds, batch=st.integers(1, 40), epochs=st.integers(1, 4))
def test_steps_read_every_row_once_per_epoch_also_when_an_epoch_ends_inside_a_batch(num_rows: int, seed: int, batch: int, epochs: int) -> None:
    steps = -(-num_rows * epochs // batch)
    read = np.concatenate([row_ids_for_step(num_rows, seed=seed, step=step, global_batch_rows=batch) for step in range(steps)])
    for epoch in range(epochs):
        assert np.array_equal(np.sort(read[epoch * num_rows : (epoch + 1) * num_rows]), np.arange(num_rows))


@settings(max_examples=50, deadline=None)
@given(num_rows=st.integers(1, 500), seed=seeds, step=st.integers(0, 10**9), world_size=st.sampled_from([2, 3, 4, 6, 12]))
def test_the_global_batch_is_the_same_for_every_number_of_workers(num_rows: int, seed: int, step: int, world_size: int) -> None:
    alone = row_ids_for_step(num_rows, seed=seed, step=step, global_batch_rows=12)
    parts = [row_ids_for_step(num_rows, seed=seed, step=step, global_batch_rows=12, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert np.array_equal(np.concatenate(parts), alone)


def test_order_differs_between_epochs_and_seeds_and_looks_uniform() -> None:
    def order(seed: int, epoch: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return permute(np.arange(1000), np.full(1000, epoch), num_rows=1000, seed=seed)

    assert not np.array_equal(order(0, 0), order(0, 1))
    assert not np.array_equal(order(0, 0), order(1, 0))
    places = np.stack([order(seed, 0)[:10] for seed in range(2000)])  # standard error of the mean of 2,000 uniform places: 6.5
    assert np.abs(places.mean(axis=0) - 499.5).max() < 5 * 6.5
    assert abs(np.corrcoef(np.arange(1000), order(3, 3))[0, 1]) < 0.15


def test_the_order_of_rows_never_changes_between_releases() -> None:
    """Golden: a resumed run must read what the interrupted one would have read, also after an upgrade."""
    assert row_ids_for_step(1000, seed=42, step=7, global_batch_rows=8).tolist() == GOLDEN


def test_gather_returns_the_rows_of_all_versions_in_the_order_asked_for(tmp_path: Path) -> None:
    for rows in (20, 7, 13):
        make_dataset(tmp_path, num_rows=rows, sequence_length=16)
    dataset = Dataset(tmp_path)
    everything = np.concatenate([open_shard(tmp_path / entry.path) for entry in dataset.shards(Split.TRAIN)])
    loader = TokenRows(tmp_path, None, Split.TRAIN)
    ids = np.random.default_rng(0).integers(0, 40, size=100)
    assert loader.num_rows == 40
    assert np.array_equal(loader.gather(ids), everything[ids])
    assert loader.gather(ids).dtype == np.int64
    with pytest.raises(IndexError, match="40"):
        loader.gather(np.array([40]))


def test_row_ids_of_an_older_version_stay_valid(tmp_path: Path) -> None:
    make_dataset(tmp_path, num_rows=20)
    before = TokenRows(tmp_path, 1, Split.TRAIN).gather(np.arange(20))
    make_dataset(tmp_path, num_rows=9)
    assert np.array_equal(TokenRows(tmp_path, 1, Split.TRAIN).gather(np.arange(20)), before)
    assert np.array_equal(TokenRows(tmp_path, 2, Split.TRAIN).gather(np.arange(20)), before)


def test_loader_state_refuses_another_dataset_or_seed() -> None:
    state = LoaderState(dataset_sha256="a" * 64, seed=1, step=10)
    state.check(dataset_sha256="a" * 64, seed=1)
    for other in ({"dataset_sha256": "b" * 64, "seed": 1}, {"dataset_sha256": "a" * 64, "seed": 2}):
        with pytest.raises(CheckpointCorrupt, match="seed"):
            state.check(**other)  # type: ignore[arg-type]


def test_no_rows_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(NotEnoughData, match="ingest more documents"):
        row_ids_for_step(0, seed=0, step=0, global_batch_rows=1)
