"""Who may import whom (DESIGN §2), read from the source: schemas <- pipelines <- ray_apps <- ops, and numeric code stays alone.

Imports inside functions count too; imports for type checking only do not.
"""

from functools import cache
from pathlib import Path

import pytest

from tests.source_imports import imported_modules

REPOSITORY = Path(__file__).parents[2]
ROOMS = ("schemas", "pipelines", "ray_apps", "ops")
"""Each may import itself and those before it."""
OUTSIDE_WORLD = {"ray", "kafka", "confluent_kafka", "requests", "httpx", "aiohttp", "urllib3", "socket", "http", "fastapi", "uvicorn", "starlette"}
NUMERIC = (
    "schemas",
    "pipelines/steps",
    "pipelines/dedup",
    "pipelines/dataset",
    "pipelines/quality",
    "pipelines/views",
    "pipelines/tokenizers/tokenizer.py",
    "ray_apps/training/step.py",
    "ray_apps/training/loop.py",
    "ray_apps/serving/engine",
    "ray_apps/rollout/policy.py",
    "ray_apps/rollout/statistics.py",
)
"""Tested in milliseconds, runs on any machine: no Ray, no Kafka, no network (DESIGN §2)."""
ON_RAY = {"pipelines/dedup/actors.py"}
"""Files of the numeric folders that put what lies there onto Ray; nothing in these folders imports them."""
KAFKA_ROOMS = ("pipelines/kafka", "ops")
"""The only places that know the Kafka client."""


def modules(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


@cache
def imports(path: Path) -> tuple[str, ...]:
    """Every module name that the file imports at run time, dotted."""
    return tuple(imported_modules(path, in_functions=True))


def offences(places: tuple[str, ...], forbidden: set[str]) -> list[str]:
    found = []
    for place in places:
        for path in modules(REPOSITORY / place):
            if str(path.relative_to(REPOSITORY)) in ON_RAY and forbidden is OUTSIDE_WORLD:
                continue
            found += [f"{path.relative_to(REPOSITORY)} imports {name}" for name in imports(path) if name.split(".")[0] in forbidden]
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_one_way(room: str) -> None:
    later = set(ROOMS[ROOMS.index(room) + 1 :]) | {"tests", "benchmarks"}
    assert offences((room,), later) == []


def folder_imports(room: str) -> dict[str, set[str]]:
    """For each folder of a floor, the folders of the same floor that it imports; a file beside the folders counts as one."""
    found: dict[str, set[str]] = {}
    for path in modules(REPOSITORY / room):
        here = _folder(path.relative_to(REPOSITORY).with_suffix("").parts)
        there = {_folder(tuple(name.split("."))) for name in imports(path) if name.startswith(f"{room}.")}
        found.setdefault(here, set()).update(there - {here})
    return found


def _folder(parts: tuple[str, ...]) -> str:
    return "/".join(parts[:2])


def circles(edges: dict[str, set[str]]) -> list[str]:
    """Folders that import each other, over however many others."""
    reached = {start: _reached(edges, start) for start in edges}
    return sorted(f"{one} <-> {other}" for one in edges for other in reached[one] if one < other and one in reached.get(other, set()))


def _reached(edges: dict[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    todo = [start]
    while todo:
        for folder in edges.get(todo.pop(), set()) - seen:
            seen.add(folder)
            todo.append(folder)
    return seen


@pytest.mark.parametrize("room", ROOMS)
def test_folders_of_a_floor_import_each_other_in_one_direction(room: str) -> None:
    assert circles(folder_imports(room)) == []


def test_a_circle_over_three_folders_is_seen() -> None:
    assert circles({"a/x": {"a/y"}, "a/y": {"a/z"}, "a/z": {"a/x"}}) == ["a/x <-> a/y", "a/x <-> a/z", "a/y <-> a/z"]


@pytest.mark.parametrize("room", ["pipelines", "ray_apps", "ops"])
def test_every_module_has_a_room(room: str) -> None:
    assert [path.name for path in sorted((REPOSITORY / room).glob("*.py"))] == ["__init__.py"]


def test_numeric_code_imports_neither_ray_nor_kafka_nor_the_network() -> None:
    assert offences(NUMERIC, OUTSIDE_WORLD) == []


def test_numeric_code_does_not_import_rooms_that_do() -> None:
    reaching = {
        "pipelines.kafka",
        "pipelines.ingest.stream",
        "pipelines.ingest.job",
        "pipelines.runtime.cluster",
        "pipelines.runtime.tracing",
        "ray_apps.serving.gateway",
        "ray_apps.serving.app",
    }
    for place in NUMERIC:
        for path in modules(REPOSITORY / place):
            assert not [name for name in imports(path) if any(name == room or name.startswith(f"{room}.") for room in reaching)], path


def test_only_the_kafka_rooms_import_a_kafka_client() -> None:
    allowed = [REPOSITORY / place for place in KAFKA_ROOMS]
    strangers = tuple(
        str(path.relative_to(REPOSITORY))
        for room in ROOMS
        for path in modules(REPOSITORY / room)
        if not any(path.is_relative_to(place) for place in allowed)
    )
    assert offences(strangers, {"kafka", "confluent_kafka"}) == []


def test_only_the_tracing_module_knows_opentelemetry() -> None:
    others = tuple(str(path.relative_to(REPOSITORY)) for room in ROOMS for path in modules(REPOSITORY / room))
    assert offences(tuple(path for path in others if path != "pipelines/runtime/tracing.py"), {"opentelemetry"}) == []


def test_only_the_datasource_of_the_kafka_room_imports_ray() -> None:
    others = tuple(f"pipelines/kafka/{path.name}" for path in modules(REPOSITORY / "pipelines/kafka") if path.name != "datasource.py")
    assert offences(others, {"ray"}) == []
