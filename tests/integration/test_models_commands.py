"""What a registered model looks like to others: transformers loads it and gives the same numbers; `headrace models` tells about it."""

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from ops.cli import main, models
from ray_apps.training.export import register_run, trained_model
from schemas.errors import ModelNotFound
from tests.training_runs import run_alone, tiny_dataset, tiny_settings


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LlamaForCausalLM]:
    """A root with one model version, and the trained model itself, from its last checkpoint."""
    root = tmp_path_factory.mktemp("registered")
    tiny_dataset(root)
    run = run_alone(tiny_settings(root))
    model = trained_model(run, root)
    register_run(run, root, lambda: datetime(2026, 1, 2, tzinfo=UTC))
    return root, model


def run_command(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    models.add_parser(parser.add_subparsers(dest="command"), main.common_flags())
    args = parser.parse_args(["models", *arguments])
    return int(args.run(args, main.settings_from(args)))


def json_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert run_command(*arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_transformers_loads_the_version_and_gives_the_same_logits(registered: tuple[Path, LlamaForCausalLM]) -> None:
    root, model = registered
    folder = root / "models/00000001"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("水渠把水引到磨坊。 A headrace carries water.", return_tensors="pt").input_ids
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert tokenizer.decode(ids[0]) == "水渠把水引到磨坊。 A headrace carries water."
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1)
    assert (loaded.generation_config.eos_token_id, loaded.generation_config.pad_token_id) == (0, 1)


def test_transformers_generates_with_the_version(registered: tuple[Path, LlamaForCausalLM]) -> None:
    folder = registered[0] / "models/00000001"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    inputs = tokenizer("The mill", return_tensors="pt")
    output = model.generate(  # type: ignore[misc]
        inputs.input_ids, attention_mask=inputs.attention_mask, max_new_tokens=5, do_sample=False
    )
    assert isinstance(output, torch.Tensor)
    assert len(inputs.input_ids[0]) < output.shape[1] <= len(inputs.input_ids[0]) + 5


def test_models_list_show_lineage_and_evaluate_print_one_json_document(
    registered: tuple[Path, LlamaForCausalLM], capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(registered[0])
    listed = json_of(capsys, "list", "--root", root)
    assert listed["aliases"] == {"latest": 1}
    shown = json_of(capsys, "show", "1", "--root", root)
    assert listed["models"] == [shown]
    assert json_of(capsys, "show", "latest", "--root", root) == shown
    traced = json_of(capsys, "lineage", "1", "--root", root)
    assert traced["dataset"]["offsets"] == shown["dataset"]["offsets"]
    evaluated = json_of(capsys, "evaluate", "1", "--root", root, "--set", "training.evaluate_rows=8")
    assert evaluated == {"model": 1, **shown["evaluation"]}


@pytest.mark.parametrize("action", ["list", "show", "lineage", "evaluate"])
def test_every_action_prints_something_for_people(registered: tuple[Path, LlamaForCausalLM], capsys: pytest.CaptureFixture[str], action: str) -> None:
    assert run_command(action, "--root", str(registered[0])) == 0
    assert len(capsys.readouterr().out) > 40


def test_a_version_that_does_not_exist_is_an_error(registered: tuple[Path, LlamaForCausalLM]) -> None:
    with pytest.raises(ModelNotFound, match="version 7"):
        run_command("show", "7", "--root", str(registered[0]))
