"""Run as a child process: does durable work of every kind under a root, and records each call that names or flushes something (a line of JSON).

    python -m tests.recorded_calls ROOT RECORDING

The recorder stands between our code and the operating system: it wraps the functions of ``os`` that the standard library calls too. A flush is
recorded with what it flushed: the size of a file, the names in a folder. ``returned`` says which files a finished call promised to be durable.
"""

import json
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def record(recording: Path) -> Callable[..., None]:
    """Begin to record; returns a function that adds an event of our own."""
    file = recording.open("w", buffering=1)

    def tell(kind: str, **facts: object) -> None:
        file.write(json.dumps({"kind": kind, **facts}) + "\n")

    def wrap(name: str, describe: Callable[..., dict[str, object]]) -> None:
        real = getattr(os, name)

        def recorded(*arguments: Any, **options: Any) -> Any:
            result = real(*arguments, **options)
            tell(name, **describe(*arguments))
            return result

        setattr(os, name, recorded)

    for name in ("rename", "replace", "link"):
        wrap(name, lambda source, path, *_: {"source": _absolute(source), "path": _absolute(path)})
    wrap("mkdir", lambda path, *_: {"path": _absolute(path)})
    wrap("fsync", _flushed)
    return tell


def _flushed(descriptor: int) -> dict[str, object]:
    path = Path(f"/proc/self/fd/{descriptor}").readlink()
    facts: dict[str, object] = {"names": [entry.name for entry in path.iterdir()]} if path.is_dir() else {"size": os.fstat(descriptor).st_size}
    return {"path": str(path), **facts}


def _absolute(path: "str | os.PathLike[str]") -> str:
    return str(Path(path).absolute())


def main() -> None:
    """Do everything once."""
    root, recording = (Path(argument) for argument in sys.argv[1:])
    work(root, record(recording))


def work(root: Path, tell: Callable[..., None]) -> None:
    """Versions of a dataset with every kind of file, and what lies beside them."""
    from tests.factories import clock, commit_records, text_settings

    settings = text_settings(root, **{"dedup.boilerplate": True})
    text = "Document number {} tells of the mill in valley {}, of its wheel, and of the grain that was ground there in the year {}."
    for first in (0, 4):
        values = [(None, json.dumps({"id": f"d{n}", "text": text.format(n, n * 7, 1700 + n * 13)}).encode()) for n in range(first, first + 4)]
        manifest = commit_records(root, [*values, (b"d1", None)], settings)
        tell("returned", paths=[str(root / "log" / f"{manifest.version:08d}.json")])
    _compaction_and_checkpoint(root, settings, tell, clock())
    _merge(root, settings, tell, clock())
    _beside_the_versions(root, tell, clock())
    _model(root, tell)


def _compaction_and_checkpoint(root: Path, settings: Any, tell: Callable[..., None], now: datetime) -> None:
    from pipelines.dataset import checkpoints
    from pipelines.dataset.compaction import compact
    from pipelines.dataset.dataset import Dataset

    compact(Dataset(root), settings, now=now)
    checkpoints.GROWTH = 2
    Dataset(root).save_checkpoints()
    tell("returned", paths=[str(root / "log/00000003.json"), *map(str, sorted((root / "log/checkpoints").glob("*.arrow")))])


def _merge(root: Path, settings: Any, tell: Callable[..., None], now: datetime) -> None:
    from pipelines.dataset.dataset import Dataset
    from pipelines.dataset.merging import merge

    ingest, packing = settings.ingest.model_copy(update={"merge_shards": 2}), settings.packing.model_copy(update={"shard_rows": 10_000})
    manifest = merge(Dataset(root), settings.model_copy(update={"ingest": ingest, "packing": packing}), now=now)
    assert manifest is not None and manifest.merged
    tell("returned", paths=[str(root / "log" / f"{manifest.version:08d}.json"), *(str(root / entry.path) for entry in manifest.merged)])


def _beside_the_versions(root: Path, tell: Callable[..., None], now: datetime) -> None:
    import numpy as np
    import polars as pl

    from pipelines.drift.watch import release
    from pipelines.quality.models import write_model
    from pipelines.semantic.store import EmbeddingStore
    from pipelines.views.making import create_view
    from schemas.settings_dedup import DedupSettings
    from schemas.view import ViewSpec

    excluded = root.parent / "excluded.parquet"
    pl.DataFrame({"doc_id": ["d2"]}).write_parquet(excluded)
    create_view(root, "clean", ViewSpec(exclude=(str(excluded),)), [], DedupSettings(), now)
    release(root, 1, "as it was meant", now)
    model = root / "quality" / write_model(root, {})
    EmbeddingStore(root, "0" * 64, 3).add([b"0" * 16], np.ones((1, 3), np.float32))
    made = [root / "views/clean/00000001.json", root / "drift/00000001.json", *model.iterdir(), *(root / "semantic").rglob("*.arrow")]
    tell("returned", paths=[str(path) for path in made])


def _model(root: Path, tell: Callable[..., None]) -> None:
    import torch

    from pipelines.dataset.dataset import Dataset
    from ray_apps.models.registry import Registry
    from ray_apps.training.checkpoint import Binding, CheckpointStore
    from schemas.manifest import FileEntry, ModelManifest, TrainingSummary

    dataset, network = Dataset(root), torch.nn.Linear(2, 2)
    store = CheckpointStore(root / "training" / "run", Binding(dataset.sha256, 0, "0" * 64), keep=1)
    store.save(1, network, torch.optim.SGD(network.parameters(), momentum=0.9), torch.amp.GradScaler("cpu", enabled=False))
    tell("returned", paths=[str(path) for path in store.folder.rglob("*") if path.is_file()])

    def manifest_of(version: int, files: list[FileEntry]) -> ModelManifest:
        training = TrainingSummary(run_id="run", steps=1, tokens=1, first_loss=1, last_loss=1, duration_s=1, num_workers=1)
        common = {"architecture": "Linear", "num_parameters": 6, "code_version": "test", "settings_fingerprint": "0" * 64}
        now = datetime(2026, 1, 1, tzinfo=UTC)
        about = {"dataset": dataset.ref(), "tokenizer": dataset.tokenizer, "training": training, "evaluation": None}
        return ModelManifest.model_validate({"version": version, "created_at": now, "files": files, **about, **common})

    registry = Registry(root)
    staging = registry.new_staging("run")
    (staging / "onnx").mkdir()
    for name in ("model.safetensors", "onnx/model.onnx"):
        (staging / name).write_bytes(b"weights")
    registry.register(staging, manifest_of)
    tell("returned", paths=[str(root / "models/log/00000001.json")])


if __name__ == "__main__":
    main()
