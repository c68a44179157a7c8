"""What decides a run's name, and what is refused before anything starts."""

import os
from pathlib import Path

import pytest

from ray_apps.training.run import model_fingerprint, plan_run, run_lock
from schemas.errors import CheckpointCorrupt, DatasetNotFound, ModelNotFound, NotEnoughData, SettingsError, TokenizerMismatch, TrainingError
from tests.factories import make_dataset
from tests.model_factory import make_model
from tests.training_runs import run_alone, tiny_dataset, tiny_settings


def test_the_same_data_settings_and_parent_give_the_same_run(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    assert plan_run(tiny_settings(tmp_path)).run_id == plan_run(tiny_settings(tmp_path)).run_id


def test_another_dataset_version_or_seed_or_length_is_another_run(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    first = plan_run(tiny_settings(tmp_path)).run_id
    changed = [plan_run(tiny_settings(tmp_path, seed=1)).run_id, plan_run(tiny_settings(tmp_path, max_steps=9)).run_id]
    make_dataset(tmp_path)
    changed.append(plan_run(tiny_settings(tmp_path)).run_id)
    assert len({first, *changed}) == 4
    assert plan_run(tiny_settings(tmp_path), 1).run_id == first


@pytest.mark.parametrize(
    "name", ["num_workers", "threads_per_worker", "checkpoint_every_steps", "keep_checkpoints", "max_failures", "accumulation_steps"]
)
def test_settings_that_only_say_how_a_run_is_done_do_not_make_another_run(tmp_path: Path, name: str) -> None:
    assert model_fingerprint(tiny_settings(tmp_path, **{name: 4})) == model_fingerprint(tiny_settings(tmp_path))


def test_a_dataset_smaller_than_one_global_batch_is_refused(tmp_path: Path) -> None:
    make_dataset(tmp_path, num_rows=11)
    with pytest.raises(NotEnoughData, match="11 training rows, one step takes 12"):
        plan_run(tiny_settings(tmp_path))


def test_no_dataset_is_an_error_that_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFound, match="headrace ingest"):
        plan_run(tiny_settings(tmp_path))


def test_a_batch_that_workers_cannot_share_is_a_settings_error(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    with pytest.raises(SettingsError, match="num_workers"):
        plan_run(tiny_settings(tmp_path, num_workers=5))


def test_a_missing_parent_is_refused(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    with pytest.raises(ModelNotFound):
        plan_run(tiny_settings(tmp_path), parent_model=1)


def test_a_parent_with_another_tokenizer_is_refused(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    make_model(tmp_path)
    with pytest.raises(TokenizerMismatch, match="without a parent"):
        plan_run(tiny_settings(tmp_path), parent_model=1)


def test_a_parent_of_another_shape_is_refused(tmp_path: Path) -> None:
    tiny_dataset(tmp_path)
    make_model(tmp_path)
    run = plan_run(tiny_settings(tmp_path), parent_model=1)
    from ray_apps.training.weights import build_model

    with pytest.raises(TrainingError, match="cannot be the parent"):
        build_model(run, tmp_path)


def test_a_run_is_trained_by_one_process_at_a_time(tmp_path: Path) -> None:
    with run_lock(tmp_path / "run"), pytest.raises(TrainingError, match=f"process {os.getpid()} is training"), run_lock(tmp_path / "run"):
        pass
    with run_lock(tmp_path / "run"):
        pass


def test_a_checkpoint_of_another_dataset_is_refused(tmp_path: Path) -> None:
    """Applied to another dataset, loader state would skip rows silently."""
    tiny_dataset(tmp_path)
    run = run_alone(tiny_settings(tmp_path, max_steps=1))
    other = run.model_copy(update={"dataset": run.dataset.model_copy(update={"manifest_sha256": "f" * 64})})
    with pytest.raises(CheckpointCorrupt, match="start a new run"):
        other.checkpoints(tmp_path).newest()


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    tiny_dataset(tmp_path)
    run = run_alone(tiny_settings(tmp_path, max_steps=1))
    other = run.model_copy(update={"settings_fingerprint": "f" * 64})
    with pytest.raises(CheckpointCorrupt, match="was made with settings"):
        other.checkpoints(tmp_path).newest()
