"""What decides a run's name, and what is refused before anything starts."""

import os
import shutil
from pathlib import Path

import pytest

from ray_apps.models.registry import Registry
from ray_apps.training.app import train
from ray_apps.training.identity import BASELINE, OPERATIONAL, former_fingerprint, model_fingerprint, run_name
from ray_apps.training.parallel import Process
from ray_apps.training.run import is_complete, plan_run, run_lock
from schemas.errors import CheckpointCorrupt, DatasetNotFound, ModelNotFound, NotEnoughData, SettingsError, TokenizerMismatch, TrainingError
from schemas.settings_sources import load_settings
from tests.factories import make_dataset
from tests.model_factory import make_model
from tests.training_runs import run_alone, tiny_dataset, tiny_settings, train_until


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


def test_a_setting_at_its_baseline_is_no_part_of_the_fingerprint_and_every_other_value_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a new setting renames no run; without its baseline it could."""
    settings = tiny_settings(tmp_path)
    fields = {"model": set(type(settings.model).model_fields), "training": set(type(settings.training).model_fields) - OPERATIONAL}
    assert {section: set(names) for section, names in BASELINE.items()} == fields
    before, other = model_fingerprint(settings), model_fingerprint(tiny_settings(tmp_path, clip_norm=2.0))
    assert before != other
    without = {name: value for name, value in BASELINE["training"].items() if name != "clip_norm"}
    monkeypatch.setattr("ray_apps.training.identity.BASELINE", {**BASELINE, "training": {**without, "clip_norm": 2.0}})
    assert model_fingerprint(tiny_settings(tmp_path, clip_norm=2.0)) != other
    assert model_fingerprint(tiny_settings(tmp_path, clip_norm=1.0)) != before


FORMER_DEFAULTS = "5b0055742bd4fc53190f759d82a5b1f04bd784b004bff4ee2b274bfcc72488ad"


def test_runs_and_models_of_versions_that_hashed_every_setting_are_recognized(tmp_path: Path) -> None:
    """The former name is written down: it was computed by the version that made such runs."""
    settings = load_settings("", {}, {"root": str(tmp_path)})
    assert former_fingerprint(settings) == FORMER_DEFAULTS
    tiny_dataset(tmp_path)
    settings = tiny_settings(tmp_path)
    new, former = plan_run(settings), former_fingerprint(settings)
    assert former is not None
    known_as = run_name(1, new.dataset.data_sha256, None, former)
    (tmp_path / "training" / known_as).mkdir(parents=True)
    begun = run_alone(settings)
    assert (begun.run_id, begun.settings_fingerprint) == (known_as, former)
    assert new.run_id != known_as
    manifest = train(settings)
    shutil.rmtree(tmp_path / "training")
    assert train(settings) == manifest
    assert Registry(tmp_path).versions() == [1]


def test_a_run_goes_on_in_the_arithmetic_that_it_began_in_and_its_model_says_which(tmp_path: Path) -> None:
    tiny_dataset(tmp_path)
    settings = tiny_settings(tmp_path)
    run = plan_run(settings)
    bf16 = run.model_copy(update={"training": run.training.model_copy(update={"precision": "bf16"})})
    train_until(bf16, tmp_path, Process(), 5)
    assert run_alone(settings).run_id == bf16.run_id  # this device's "auto" is fp32
    assert is_complete(run, tmp_path)
    store = run.checkpoints(tmp_path)
    assert {store.manifest(step).precision for step in store.steps()} == {"bf16"}
    assert train(settings).training.precision == "bf16"


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
