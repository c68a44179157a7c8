"""What a power cut would leave follows from the order of writes and flushes: it is recorded (tests/recorded_calls.py), and judged.

At every moment at which something becomes real (a name appears in a log, or a call returns that promises durability) the judge asks what is on
disk if the power goes now: the bytes of a file that was flushed when it had all of them, a name that was in its folder when that was flushed.
"""

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from schemas.manifest import DatasetManifest, ModelManifest
from schemas.view import View

Event = dict[str, Any]


class Disk:
    """What a power cut leaves at a moment of the recording, under a root that is made in the course of it."""

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._flushed: dict[str, int] = {}
        """Bytes of each file that are on disk."""
        self._names: set[str] = set()
        """Paths whose name is on disk in their folder."""

    def take(self, event: Event) -> None:
        """What a call changes."""
        path = event["path"]
        if event["kind"] == "fsync" and "size" in event:
            self._flushed[path] = event["size"]
        elif event["kind"] == "fsync":
            self._names |= {f"{path}/{name}" for name in event["names"]}
        else:
            self._names.discard(path)
        if "source" in event:
            self._moved(event["source"], path)

    def _moved(self, source: str, path: str) -> None:
        """The new name is not on disk yet; the bytes, and what lies in a folder, are as they were."""
        self._flushed |= {path + known[len(source) :]: size for known, size in self._flushed.items() if f"{known}/".startswith(f"{source}/")}
        self._names |= {path + known[len(source) :] for known in self._names if known.startswith(f"{source}/")}

    def lost_bytes(self, path: str, called: str | None = None) -> Iterator[str]:
        """Whether bytes of the file are not on disk; ``called``: its name at this moment, if it has another one at the end."""
        if self._flushed.get(called or path) != Path(path).stat().st_size:
            yield f"bytes of {path}"

    def lost(self, path: str) -> Iterator[str]:
        """Bytes of the file and names on the way to it that are not on disk."""
        yield from self.lost_bytes(path)
        while path.startswith(self._root):
            if path not in self._names:
                yield f"name {path}"
            path = str(Path(path).parent)


def promised_by(path: str) -> list[str]:
    """Files that a manifest makes real, by its path."""
    root, data = path.partition("/data/")[0] + "/data", Path(path).read_bytes()
    if "/models/log/" in path:
        model = ModelManifest.model_validate_json(data)
        listed = [entry.path for entry in model.files] + [f"models/{model.version:08d}/manifest.json"]
    elif "/views/" in path:
        listed = [entry.path for entry in View.model_validate_json(data).files]
    elif "/training/" in path:
        manifest = json.loads(data)
        listed = [f"training/run/checkpoints/{manifest['folder']}/{name}" for name in manifest["files"]]
    else:
        dataset = DatasetManifest.model_validate_json(data)
        tokenizer = [f"{dataset.tokenizer.path}/{file.name}" for file in Path(root, dataset.tokenizer.path).iterdir()]
        listed = [entry.path for entry in dataset.files] + tokenizer
    return [f"{root}/{name}" for name in listed]


def is_manifest(path: str) -> bool:
    """Whether the file makes others real."""
    return path.endswith(".json") and any(part in path for part in ("/log/", "/views/", "/checkpoints/"))


def lost_in(events: Iterable[Event], root: Path) -> list[str]:
    """What a power cut at the worst moment would take of what was promised."""
    disk, lost = Disk(root), []
    for event in events:
        if event["kind"] == "returned":
            lost += [what for path in event["paths"] for what in disk.lost(path)]
            continue
        if event["kind"] != "fsync" and is_manifest(event["path"]):
            lost += disk.lost_bytes(event["path"], event["source"])
            lost += [what for promised in promised_by(event["path"]) for what in disk.lost(promised)]
        disk.take(event)
    return lost


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Event]]:
    """A root, and the calls that made it."""
    folder = tmp_path_factory.mktemp("recorded").resolve()
    command = [sys.executable, "-m", "tests.recorded_calls", str(folder / "data"), str(folder / "calls")]
    subprocess.run(command, cwd=Path(__file__).parents[2], check=True, timeout=240)
    return folder / "data", [json.loads(line) for line in (folder / "calls").read_text().splitlines()]


def test_nothing_that_was_promised_is_lost_in_a_power_cut(recorded: tuple[Path, list[Event]]) -> None:
    root, events = recorded
    kinds = {Path(event["path"]).relative_to(root).parts[0] for event in events if event.get("path", "").startswith(f"{root}/")}
    assert kinds >= {"log", "shards", "documents", "dedup", "boilerplate", "masks", "tokenizer", "views", "drift", "quality", "semantic"}
    assert kinds >= {"training", "models"}
    assert lost_in(events, root) == []


def test_nothing_has_its_name_before_all_that_is_in_it_is_on_disk(recorded: tuple[Path, list[Event]]) -> None:
    """Also where no manifest names it: a state that is replaced, a folder that whoever finds it takes for whole."""
    root, events = recorded
    disk, torn = Disk(root), []
    for event in events:
        if "source" in event and Path(event["path"]).exists():
            source, path = event["source"], Path(event["path"])
            inside = [found for found in path.rglob("*") if found.is_file()] if path.is_dir() else [path]
            torn += [what for found in inside for what in disk.lost_bytes(str(found), source + str(found)[len(str(path)) :])]
        if event["kind"] != "returned":
            disk.take(event)
    assert torn == []


def test_every_flush_of_a_file_or_a_folder_is_needed(recorded: tuple[Path, list[Event]]) -> None:
    root, events = recorded
    flushed = {event["path"] for event in events if event["kind"] == "fsync"}
    assert len(flushed) > 40
    without = {path: [event for event in events if (event["kind"], event.get("path")) != ("fsync", path)] for path in flushed}
    assert [path for path in flushed if not lost_in(without[path], root)] == []
