"""Training on a view: what a run is bound to, that it resumes bit for bit, and which models a document is traced to."""

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from ops.cli.main import main
from pipelines.dataset.dataset import Dataset
from pipelines.lineage.lineage import trace
from pipelines.storage.commit_log import CommitLog
from pipelines.storage.model_log import MODEL_LOG
from pipelines.views.making import create_view
from pipelines.views.rows import ViewRows
from pipelines.views.selection import open_view
from ray_apps.models.card import model_card
from ray_apps.training.batches import StepBatches, make_batch
from ray_apps.training.evaluate import evaluate_model
from ray_apps.training.export import register_run
from ray_apps.training.parallel import Process
from ray_apps.training.run import TrainingRun, plan_run
from schemas.errors import CheckpointCorrupt, NotEnoughData
from schemas.settings_dedup import DedupSettings
from schemas.view import Group, View, ViewSpec
from tests.factories import clock
from tests.training_runs import curve, final_files, tiny_dataset, tiny_settings, train_until

SPLIT_AT = 80


def make_view(root: Path, name: str = "mix", **fields: object) -> View:
    spec = ViewSpec.model_validate(fields)
    return create_view(root, name, spec, [], DedupSettings(), clock())[0]


def mixed(root: Path) -> View:
    """Short documents in a share of 40 %, long ones in 60 %."""
    return make_view(root, group=(Group(name="short", weight=0.4, max_num_tokens=SPLIT_AT), Group(name="long", weight=0.6)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainingRun]:
    """A registered model that was trained on a view."""
    root = tmp_path_factory.mktemp("trained")
    tiny_dataset(root, num_rows=80)
    make_view(root, "long", filter={"min_num_tokens": SPLIT_AT})
    run = plan_run(tiny_settings(root), view="long")
    train_until(run, root, Process(), None)
    register_run(run, root, clock, None)
    return root, run


def test_a_run_is_bound_to_the_versions_that_the_view_meant_when_it_was_planned(tmp_path: Path) -> None:
    tiny_dataset(tmp_path)
    mixed(tmp_path)
    run = plan_run(tiny_settings(tmp_path), view="mix")
    assert run.dataset.version == 1 and run.dataset.view is not None
    assert (run.dataset.view.name, run.dataset.view.version, run.dataset.view.groups) == ("mix", 1, {"short": 0.4, "long": 0.6})
    assert run.dataset.view.num_train_tokens == run.dataset.num_train_tokens == ViewRows(open_view(tmp_path, "mix")).num_tokens
    others = {plan_run(tiny_settings(tmp_path)).run_id}
    make_view(tmp_path, group=(Group(name="short", weight=0.5, max_num_tokens=SPLIT_AT), Group(name="long", weight=0.5)))
    others.add(plan_run(tiny_settings(tmp_path), view="mix").run_id)
    tiny_dataset(tmp_path)
    others |= {plan_run(tiny_settings(tmp_path), view="mix").run_id, plan_run(tiny_settings(tmp_path), view="mix@1").run_id}
    assert len(others | {run.run_id}) == 5
    assert plan_run(tiny_settings(tmp_path), 1, view="mix@1").run_id == run.run_id


def test_a_run_on_a_view_resumes_bit_for_bit(tmp_path: Path) -> None:
    runs = {}
    for name, stops in (("straight", [None]), ("broken", [2, 5, None])):
        root = tmp_path / name
        tiny_dataset(root)
        mixed(root)
        runs[name] = run = plan_run(tiny_settings(root), view="mix")
        for stop in stops:
            train_until(run, root, Process(), stop)
    assert curve(tmp_path / "broken", runs["broken"]) == curve(tmp_path / "straight", runs["straight"])
    assert final_files(tmp_path / "broken", runs["broken"]) == final_files(tmp_path / "straight", runs["straight"])


def test_the_processes_of_a_step_read_the_rows_of_the_view_whatever_their_number(tmp_path: Path) -> None:
    tiny_dataset(tmp_path)
    mixed(tmp_path)
    run = plan_run(tiny_settings(tmp_path), view="mix")
    rows = ViewRows(open_view(tmp_path, "mix"))
    for world_size in (1, 2, 3):
        parts = [StepBatches(tmp_path, run.dataset, run.tokenizer, run.training, rank=rank, world_size=world_size)[5] for rank in range(world_size)]
        expected = make_batch(rows.gather(rows.mixture.rows_at(5 * 12 + np.arange(12), run.training.seed)), run.tokenizer)
        assert torch.equal(torch.cat([part.input_BT for part in parts]), expected.input_BT)
        assert torch.equal(torch.cat([part.target_BT for part in parts]), expected.target_BT)


def test_a_view_with_too_little_data_is_refused_with_numbers(tmp_path: Path) -> None:
    tiny_dataset(tmp_path)
    make_view(tmp_path, "few", filter={"max_num_tokens": 8})
    with pytest.raises(NotEnoughData, match=r"view few@1 of dataset version 1 \(\d+ documents, \d+ tokens\) has \d training rows, one step takes 12"):
        plan_run(tiny_settings(tmp_path), view="few")
    make_view(tmp_path, "hollow", group=(Group(name="tech", weight=1, domain=("tech",)), Group(name="rest", weight=1)))
    with pytest.raises(NotEnoughData, match=r"group 'tech' \(rows: tech 0, rest \d+\)"):
        plan_run(tiny_settings(tmp_path), view="hollow")


def test_a_view_file_that_was_changed_stops_the_run(tmp_path: Path) -> None:
    tiny_dataset(tmp_path)
    view = mixed(tmp_path)
    run = plan_run(tiny_settings(tmp_path), view="mix")
    path = CommitLog(tmp_path / "views" / "mix").path(1)
    path.write_text(view.model_copy(update={"groups": ()}).model_dump_json(exclude_none=True))
    with pytest.raises(CheckpointCorrupt, match="not the one that the run was planned with"):
        StepBatches(tmp_path, run.dataset, run.tokenizer, run.training, rank=0, world_size=1)


def test_a_model_has_seen_a_document_iff_its_view_held_it(trained: tuple[Path, TrainingRun]) -> None:
    root, _ = trained
    assert CommitLog(root / MODEL_LOG).latest() == 1
    documents = pl.read_parquet(root / Dataset(root).manifest.documents[0].path)
    for row in documents.group_by((pl.col("num_tokens") >= SPLIT_AT).alias("is_long"), "shard", maintain_order=True).first().to_dicts():
        seen = row["num_tokens"] >= SPLIT_AT and "-train-" in row["shard"]
        assert trace(root, row["doc_id"], deadletter_topic="dead")[0].models == ([1] if seen else [])


def test_a_model_whose_view_is_gone_counts_as_having_seen_all_of_its_dataset_version(trained: tuple[Path, TrainingRun], tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(trained[0], root)
    shutil.rmtree(root / "views")
    documents = pl.read_parquet(root / Dataset(root).manifest.documents[0].path)
    for row in documents.to_dicts():
        assert trace(root, row["doc_id"], deadletter_topic="dead")[0].models == ([1] if "-train-" in row["shard"] else [])


def test_a_model_is_evaluated_on_a_holdout_of_a_view(trained: tuple[Path, TrainingRun], capsys: pytest.CaptureFixture[str]) -> None:
    root, _ = trained
    make_view(root, "apart", holdout=[{"name": "tiny", "max_num_tokens": 60}])
    result = evaluate_model(tiny_settings(root), 1, view="apart", split="tiny")
    rows = ViewRows(open_view(root, "apart"), "tiny")
    assert rows.num_rows and result.view == "apart@1/tiny" and 0 < result.num_tokens <= 8 * 15
    assert evaluate_model(tiny_settings(root), 1).view is None
    make_view(root, "none", holdout=[{"name": "nothing", "domain": ["none"]}])
    with pytest.raises(NotEnoughData, match="split nothing of view none@1 of dataset version 1 has no rows"):
        evaluate_model(tiny_settings(root), 1, view="none", split="nothing")
    assert main(["models", "evaluate", "1", "--view", "apart", "--split", "tiny", "--root", str(root)]) == 0
    assert "model version 1 on apart@1/tiny of dataset version 1" in capsys.readouterr().out


def test_manifest_lineage_and_card_of_a_model_name_the_view(trained: tuple[Path, TrainingRun], capsys: pytest.CaptureFixture[str]) -> None:
    root, run = trained
    assert main(["models", "lineage", "1", "--root", str(root)]) == 0
    assert "<- view long@1 <- dataset 1" in capsys.readouterr().out
    from ray_apps.models.registry import Registry

    manifest = Registry(root).manifest(1)
    assert manifest.dataset == run.dataset and manifest.dataset.view is not None
    assert "view `long@1`" in model_card(manifest, {})
