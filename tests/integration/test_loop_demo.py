"""The demo, and the promises it makes before it starts."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ops.cli import demo
from ops.demo.documents import garbage, retraction
from ops.demo.settings import demo_settings
from ops.demo.summary import lines
from ops.demo.watching import StageFailed
from ops.supervisor.root_lock import root_lock
from schemas.errors import ServiceFailed, SettingsError
from schemas.settings import Settings
from schemas.settings_sources import load_settings


def test_the_demos_values_hold_only_where_a_person_said_nothing(tmp_path: Path) -> None:
    settings = demo_settings(load_settings("", {}, {"root": str(tmp_path), "training.max_steps": 7}))
    assert settings.training.max_steps == 7
    assert settings.tokenizer.vocab_size < Settings().tokenizer.vocab_size
    assert settings.root == str(tmp_path / "demo")
    assert settings.kafka.bootstrap_servers == "" and settings.kafka.topic_prefix == "headrace"


def test_on_a_given_kafka_the_demo_keeps_to_topics_of_its_own() -> None:
    settings = demo_settings(load_settings("", {}, {"kafka.bootstrap_servers": "kafka:9092"}))
    assert settings.kafka.bootstrap_servers == "kafka:9092"
    assert settings.kafka.topic_prefix.startswith("headrace-demo-")


def test_the_demo_wipes_only_what_a_demo_made_and_nothing_that_runs(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    demo._wipe(root)
    (root / "models").mkdir()
    demo._wipe(root)
    assert not (root / "models").exists()
    with root_lock(root), pytest.raises(ServiceFailed, match="runs `headrace up`"):
        demo._wipe(root)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "precious.txt").touch()
    with pytest.raises(SettingsError, match="was not made by a demo"):
        demo._wipe(foreign)
    assert (foreign / "precious.txt").exists()


def test_a_port_that_is_taken_after_it_was_chosen_is_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen: list[int] = []

    def go(settings: Settings) -> None:
        chosen.append(settings.serving.port)
        if len(chosen) == 1:
            taker.bind(("127.0.0.1", settings.serving.port))
            taker.listen()
            raise StageFailed("the start: `headrace up` ended with exit code 2")

    with socket.socket() as taker:
        demo.with_free_ports(load_settings("", {}, {"root": str(tmp_path)}), go)
    assert len(set(chosen)) == 2
    assert f"in use by another program now: port {chosen[0]}" in capsys.readouterr().err


def test_a_demo_that_fails_for_another_reason_is_not_begun_again(tmp_path: Path) -> None:
    def go(settings: Settings) -> None:
        raise StageFailed(settings.root)

    with pytest.raises(StageFailed, match="demo"):
        demo.with_free_ports(load_settings("", {}, {"root": str(tmp_path)}), go)


def test_planted_records_have_keys_that_name_what_is_wrong_with_them() -> None:
    planted = [*garbage(), *retraction()]
    named = [record.key for record in planted if record.key]
    assert len(named) == len(planted) - 1, "one record has no key, and that is what is wrong with it"
    assert planted[-1].value is None, "the last one takes a document back"


def test_the_summary_says_honestly_that_a_model_was_withdrawn() -> None:
    model = {"version": 1, "dataset": 1, "parent": None, "first_loss": 8.0, "last_loss": 6.0, "validation_loss": None, "perplexity": None}
    summary = {
        "documents": {"kept": 3, "dead": 1, "control": 0},
        "records": 4,
        "duplicates": {},
        "tokens": 100,
        "models": [model, model | {"version": 2, "parent": 1}],
        "rollout": [{"number": 3, "decision": "abort", "reason": "model 2 is worse"}],
        "promoted": False,
        "champion": 1,
        "requests": {"champion": 5, "challenger": 0, "shadow": 5, "errors": 0},
        "completion": {"prompt": "p", "text": " a\n  b "},
        "urls": {"api": "a", "ray_dashboard": "r", "kafka": "k"},
        "root": "/r",
        "duration_s": 1.0,
    }
    shown = dict(lines(summary))
    assert shown["its trial"] == "was withdrawn: model 2 is worse"
    assert shown["model 1, the champion"] == "“p” → “a b”"
    assert shown["records from Kafka"] == "4: 3 kept, 1 dead"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_tells_the_whole_story_and_its_numbers_add_up(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "ops.cli.main", "demo", "--exit", "--json", "--root", str(tmp_path)]
    result = subprocess.run(words, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr.decode()[-3000:]
    summary = json.loads(result.stdout)
    assert sum(summary["documents"].values()) == summary["records"] == 3_000 + summary["planted"]
    assert summary["documents"]["dead"] >= 9 and summary["documents"]["retracted"] == 1 and summary["duplicates"]["exact"] >= 15
    first, second = summary["models"]
    assert second["parent"] == first["version"] and first["last_loss"] < first["first_loss"]
    assert summary["promoted"] == (summary["champion"] == second["version"])
    assert summary["requests"]["shadow"] >= 20
    assert summary["completion"]["text"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_stage_that_fails_is_named_with_the_end_of_its_log(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "ops.cli.main", "demo", "--exit", "--root", str(tmp_path), "--set", "training.global_batch_rows=15"]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "Model 1" in result.stderr and "training.global_batch_rows (15) cannot be shared evenly" in result.stderr
