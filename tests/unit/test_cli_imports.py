"""What a process loads when it starts, read from the source: torch and transformers are seconds between a person and an answer, in each process.

Counted are the imports that are done on import, through all of Headrace's own modules; those inside functions wait until they are needed.
"""

from functools import cache
from itertools import chain
from pathlib import Path

import pytest

from ops.cli.main import GROUPS, main
from tests.source_imports import imported_modules

COMMANDS = tuple(chain.from_iterable(GROUPS.values()))
REPOSITORY = Path(__file__).parents[2]
LIBRARIES = {"ray", "torch", "transformers", "tokenizers", "numba", "polars", "kafka"}
TORCH = {"torch", "transformers", "tokenizers"}


def file_of(name: str) -> Path | None:
    path = REPOSITORY / name.replace(".", "/")
    return next((found for found in (path.with_suffix(".py"), path / "__init__.py") if found.is_file()), None)


@cache
def loaded_by(start: str) -> frozenset[str]:
    """Which of LIBRARIES are loaded together with a module."""
    names, seen = [start], set[str]()
    while names:
        name = names.pop()
        if name in seen:
            continue
        seen.add(name)
        if path := file_of(name):
            names += imported_modules(path, in_functions=False)
    return frozenset({name.partition(".")[0] for name in seen} & LIBRARIES)


@pytest.mark.parametrize("module", ["ops.cli.main", "ops.cli.kafka_of_root", "ray_apps.training.worker", *(f"ops.cli.{name}" for name in COMMANDS)])
def test_a_command_loads_nothing_big_before_it_runs_and_neither_does_what_ray_only_hands_on(module: str) -> None:
    assert loaded_by(module) == frozenset()


@pytest.mark.parametrize("module", ["ops.supervisor.up", "ops.demo.story", "ops.broker.app", "ray_apps.rollout.log", "ray_apps.models.registry"])
def test_what_only_watches_and_orders_loads_neither_ray_nor_torch(module: str) -> None:
    assert not loaded_by(module) & ({"ray"} | TORCH)


def test_ingest_loads_no_torch_and_what_starts_a_training_no_transformers() -> None:
    assert not loaded_by("pipelines.ingest.following") & {"ray", "torch", "transformers"}
    assert not loaded_by("ray_apps.training.app") & {"ray", "transformers"}
    assert "transformers" in loaded_by("ray_apps.training.export"), "this test sees what is loaded"


def test_ctrl_c_while_a_command_is_still_being_imported_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ours = {name for name in imported_modules(REPOSITORY / "ops/cli/main.py", in_functions=False) if file_of(name)}
    assert not ours, "what is imported before main runs, Ctrl-C ends with a traceback"

    def interrupted(_name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("importlib.import_module", interrupted)
    assert main(["datasets", "list"]) == 130
    assert capsys.readouterr().err == "headrace datasets: interrupted\n"
