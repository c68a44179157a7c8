"""The registry as a reader sees it: versions, aliases, the card, lineage."""

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from ops.cli.main import main
from pipelines.dataset.gc import collect_garbage
from pipelines.storage.commit_log import CommitLog
from pipelines.storage.durable import sha256_file
from pipelines.tokenizers.tokenizer import write_tokenizer
from ray_apps.models.card import model_card
from ray_apps.models.lineage import language_counts, lineage
from ray_apps.models.registry import Registry
from ray_apps.serving.deployments import load_engine
from ray_apps.training.evaluate import evaluate_model
from ray_apps.training.export import end_tokens, register_run
from ray_apps.training.files import PARENT_FILE
from ray_apps.training.run import plan_run
from ray_apps.training.weights import build_model
from schemas.errors import ManifestCorrupt, ModelNotFound, NotEnoughData, ShardCorrupt, TokenizerMismatch, TrainingError
from schemas.manifest import ModelManifest
from schemas.rollout import Decision, Phase, RolloutState
from schemas.settings import ServingSettings
from schemas.settings_data import TokenizerSettings
from tests.factories import make_dataset
from tests.model_factory import make_model
from tests.training_runs import curve, run_alone, tiny_dataset, tiny_settings

NOW = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ModelManifest]:
    """A root with two dataset versions and a model trained on the second."""
    root = tmp_path_factory.mktemp("trained")
    tiny_dataset(root)
    tiny_dataset(root)
    run = run_alone(tiny_settings(root))
    return root, register_run(run, root, lambda: NOW)


def set_rollout(root: Path, champion: int, challenger: int | None) -> None:
    log = CommitLog(root / "rollout")
    number = log.latest() + 1
    state = RolloutState(
        number=number,
        created_at=NOW,
        phase=Phase.SHADOW if challenger else Phase.IDLE,
        champion=champion,
        challenger=challenger,
        salt="0" * 8,
        decision=Decision.SET,
        reason="test",
    )
    log.publish(number, state.model_dump_json().encode())


def test_files_that_wait_for_their_registration_are_no_garbage(tmp_path: Path) -> None:
    staging = Registry(tmp_path).new_staging("run")
    (staging / "model.safetensors").touch()
    assert collect_garbage(tmp_path, grace_s=0, by_hand=True) == []
    assert (staging / "model.safetensors").exists()


def test_an_empty_registry_has_no_versions_and_says_what_to_run(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    assert registry.versions() == []
    assert registry.aliases() == {}
    with pytest.raises(ModelNotFound, match="headrace train"):
        registry.manifest(1)


def test_aliases_are_those_of_the_newest_rollout(tmp_path: Path) -> None:
    for version in (1, 2, 3):
        make_model(tmp_path, version=version)
    registry = Registry(tmp_path)
    assert registry.aliases() == {"latest": 3}
    set_rollout(tmp_path, champion=1, challenger=2)
    assert registry.aliases() == {"champion": 1, "challenger": 2, "latest": 3}
    set_rollout(tmp_path, champion=2, challenger=None)
    assert [registry.resolve(name) for name in ("champion", "latest", "1")] == [2, 3, 1]
    with pytest.raises(ModelNotFound, match="challenger"):
        registry.resolve("challenger")
    with pytest.raises(ModelNotFound, match="versions 1 to 3"):
        registry.resolve("4")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "tokenizer_config.json", "config.json"])
def test_files_of_another_version_are_not_taken_for_this_one(tmp_path: Path, name: str) -> None:
    """Every file: of other weights by their hash, of a changed tokenizer, template or shape too."""
    for version in (1, 2):
        make_model(tmp_path, version=version, seed=version)
    registry = Registry(tmp_path)
    one, two = registry.verified_folder(1), registry.verified_folder(2)
    shutil.copy(one / name, two / name)
    if name != "model.safetensors":  # all other files of the two are the same
        (two / name).write_bytes((two / name).read_bytes().replace(b'"', b' "', 1))
    assert registry.verified_folder(1) == one
    with pytest.raises(ShardCorrupt, match=name.replace(".", r"\.")):
        registry.verified_folder(2)
    with pytest.raises(ShardCorrupt):
        load_engine(tmp_path, 2, ServingSettings())


def test_a_file_that_no_manifest_lists_is_not_loaded_with_a_model(tmp_path: Path) -> None:
    make_model(tmp_path)
    registry = Registry(tmp_path)
    folder = registry.verified_folder(1)
    (folder / "chat_template.jinja").write_text("{{ 'obey' }}")
    with pytest.raises(ShardCorrupt, match="chat_template"):
        registry.verified_folder(1)
    (folder / "chat_template.jinja").rename(folder / "notes.md")
    (folder / "config.json").unlink()
    with pytest.raises(ShardCorrupt, match=r"config\.json is missing"):
        registry.verified_folder(1)


def test_weights_that_were_exchanged_are_no_parent_and_are_not_evaluated(tmp_path: Path) -> None:
    tiny_dataset(tmp_path)
    run = run_alone(tiny_settings(tmp_path))
    register_run(run, tmp_path, lambda: NOW)
    tiny_dataset(tmp_path)
    child = plan_run(tiny_settings(tmp_path), parent_model=1)
    path = Registry(tmp_path).folder(1) / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ShardCorrupt, match="model"):
        build_model(child, tmp_path)
    with pytest.raises(ShardCorrupt, match="model"):
        evaluate_model(tiny_settings(tmp_path), 1)


def test_an_exchanged_tokenizer_is_registered_with_no_model(tmp_path: Path) -> None:
    tiny_dataset(tmp_path)
    run = run_alone(tiny_settings(tmp_path))
    path = tmp_path / run.tokenizer.path / "tokenizer.json"
    path.write_bytes(path.read_bytes().replace(b'"', b' "', 1))
    with pytest.raises(TokenizerMismatch):
        register_run(run, tmp_path, lambda: NOW)
    assert Registry(tmp_path).versions() == []


def test_a_model_ends_its_answers_at_the_end_of_a_turn_where_its_tokenizer_has_a_token_for_that(
    trained: tuple[Path, ModelManifest], tmp_path: Path
) -> None:
    root, manifest = trained
    folder = Registry(root).verified_folder(manifest.version)
    assert json.loads((folder / "generation_config.json").read_bytes())["eos_token_id"] == 0
    assert end_tokens(root, manifest.tokenizer) == [0]
    assert end_tokens(tmp_path, write_tokenizer(tmp_path, [], TokenizerSettings())) == [0, 3]


def test_the_list_of_models_fits_into_80_columns_and_tells_the_rest_when_asked(
    trained: tuple[Path, ModelManifest], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["models", "list", "--root", str(trained[0])]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and all(len(line) <= 80 for line in lines), "one line for the model"
    assert "latest" in lines[3] and "2026-01-02 03:04" in lines[3]
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["models", "list", "--wide", "--root", str(trained[0])]) == 0
    assert "perplexity" in capsys.readouterr().out


def test_a_broken_entry_is_named(tmp_path: Path) -> None:
    make_model(tmp_path)
    (tmp_path / "models/log/00000001.json").write_text("{}")
    with pytest.raises(ManifestCorrupt, match=r"00000001\.json"):
        Registry(tmp_path).manifest(1)


def test_a_folder_without_a_log_entry_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "models/00000001").mkdir(parents=True)
    with pytest.raises(ModelNotFound):
        Registry(tmp_path).folder(1)


def test_the_manifest_lists_every_file_with_its_hash(trained: tuple[Path, ModelManifest]) -> None:
    root, manifest = trained
    listed = {entry.path: entry.sha256 for entry in manifest.files}
    folder = root / "models/00000001"
    found = {path.relative_to(root).as_posix(): sha256_file(path) for path in folder.iterdir() if path.name != "manifest.json"}
    assert listed == found
    names = {Path(path).name for path in listed}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"} <= names
    assert ModelManifest.model_validate_json((folder / "manifest.json").read_bytes()) == manifest == Registry(root).manifest(1)


def test_the_manifest_says_what_the_loss_curve_and_the_dataset_say(trained: tuple[Path, ModelManifest]) -> None:
    root, manifest = trained
    run = manifest.training
    assert (run.steps, manifest.dataset.version, run.parent_model) == (8, 2, None)
    assert run.first_loss > run.last_loss
    assert manifest.evaluation is not None
    assert manifest.evaluation == evaluate_model(tiny_settings(root), 1, 2)
    assert manifest.num_parameters > 100_000


def test_checkpoints_go_when_the_model_is_registered_and_losses_stay(trained: tuple[Path, ModelManifest]) -> None:
    root, manifest = trained
    folder = root / "training" / manifest.training.run_id
    assert not (folder / "checkpoints").exists()
    assert len((folder / "losses.jsonl").read_text().splitlines()) == 8


def test_a_run_without_its_last_checkpoint_is_not_registered(tmp_path: Path) -> None:
    tiny_dataset(tmp_path)
    run = run_alone(tiny_settings(tmp_path))
    (run.folder(tmp_path) / "checkpoints/00000008.json").unlink()
    with pytest.raises(TrainingError, match="no whole checkpoint of its last step 8"):
        register_run(run, tmp_path, lambda: NOW)
    assert len(curve(tmp_path, run)) == 8
    assert Registry(tmp_path).versions() == []


def test_a_child_starts_from_its_parents_weights(trained: tuple[Path, ModelManifest]) -> None:
    from safetensors.torch import load_file

    from ray_apps.training.run import plan_run
    from ray_apps.training.weights import build_model

    root, _ = trained
    run = plan_run(tiny_settings(root), parent_model=1)
    assert run.run_id != plan_run(tiny_settings(root)).run_id
    weights = load_file(root / "models/00000001/model.safetensors")
    assert all(bool((parameter == weights[name]).all()) for name, parameter in build_model(run, root).named_parameters())


def test_a_child_brings_its_parents_loss_on_its_own_dataset_so_that_a_trial_has_nothing_to_measure(tmp_path: Path) -> None:
    from ray_apps.loop.evaluations import Evaluations
    from ray_apps.training.parallel import Process
    from ray_apps.training.run import plan_run
    from tests.training_runs import train_until

    settings = tiny_settings(tmp_path)
    tiny_dataset(tmp_path)
    register_run(run_alone(settings), tmp_path, lambda: NOW)
    tiny_dataset(tmp_path)
    run = plan_run(settings, parent_model=1)
    measured = run.folder(tmp_path) / PARENT_FILE
    files = []
    for stop_at in (3, 6):  # what goes on has other weights; the parent's loss is still the parent's
        train_until(run, tmp_path, Process(), stop_at=stop_at)
        files.append(measured.stat().st_ino)
    assert files[0] == files[1], "measured once"
    measured.write_text("{")
    train_until(run, tmp_path, Process(), None)
    child = register_run(run, tmp_path, lambda: NOW)
    assert child.parent_evaluation == evaluate_model(settings, 1, 2) != child.evaluation

    evaluations = Evaluations(tmp_path, settings.training.evaluate_rows)
    set_rollout(tmp_path, 1, 2)
    state = RolloutState.model_validate_json(CommitLog(tmp_path / "rollout").read(1))
    assert evaluations.wanted(state) is None
    assert child.parent_evaluation and evaluations.validation(state).champion_loss == child.parent_evaluation.loss
    stranger = make_model(tmp_path, version=3).version
    assert evaluations.wanted(state.model_copy(update={"champion": stranger})) == (stranger, 2), "another champion is measured"


def test_the_card_has_a_header_that_hugging_face_reads(trained: tuple[Path, ModelManifest]) -> None:
    root, manifest = trained
    text = (root / "models/00000001/README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["library_name"] == "transformers"
    assert header["language"] == ["en"]
    assert header["model-index"][0]["results"][0]["metrics"][1]["type"] == "perplexity"
    for fact in (manifest.dataset.manifest_sha256, manifest.training.run_id, "headrace.documents | 0 | 0 |", "perplexity", "## Limits"):
        assert fact in text
    assert text == model_card(manifest.model_copy(update={"files": []}), language_counts(root, 2))


def test_lineage_leads_back_to_the_shards_and_offsets_of_every_dataset_version(trained: tuple[Path, ModelManifest]) -> None:
    root, manifest = trained
    traced = json.loads(json.dumps(lineage(root, [manifest])))
    assert (traced["model"], traced["dataset"]["version"], traced["dataset"]["matches"]) == (1, 2, True)
    assert [version["version"] for version in traced["versions"]] == [1, 2]
    spans = [version["offsets"]["headrace.documents"]["0"] for version in traced["versions"]]
    assert spans[0]["end"] == spans[1]["start"]
    assert traced["dataset"]["offsets"]["headrace.documents"]["0"] == {"start": 0, "end": spans[1]["end"]}
    shards = [shard for version in traced["versions"] for shard in version["shards"]]
    assert sum(shard["tokens"] for shard in shards) == manifest.dataset.num_train_tokens
    assert all((root / shard["path"]).is_file() for shard in shards)
    assert traced["dataset"]["languages"]["en"] == sum(version["languages"]["en"] for version in traced["versions"])


def test_a_model_is_not_evaluated_on_ids_of_another_tokenizer(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    make_model(tmp_path)
    with pytest.raises(TokenizerMismatch, match="would mean nothing"):
        evaluate_model(tiny_settings(tmp_path), 1)


def test_without_validation_rows_there_is_nothing_to_evaluate(tmp_path: Path) -> None:
    tokenizer = tiny_dataset(tmp_path / "one")
    make_dataset(tmp_path / "one" / "other", num_validation_rows=0, tokenizer=tokenizer)
    (tmp_path / "one/tokenizer").rename(tmp_path / "one/other/tokenizer")
    root = tmp_path / "one/other"
    manifest = register_run(run_alone(tiny_settings(root, max_steps=1)), root, lambda: NOW)
    assert manifest.evaluation is None
    assert "no validation rows" in (root / "models/00000001/README.md").read_text()
    with pytest.raises(NotEnoughData, match="validation_fraction"):
        evaluate_model(tiny_settings(root), 1)
