"""Lineage of a model version: which dataset versions, offsets and shards its weights saw, and the models that it grew out of.

A dataset version is the union of manifests 1..N, so the answer is read from manifests alone; no shard is opened.
"""

from pathlib import Path
from typing import Any

from pipelines.dataset.columns import documents_by_language
from pipelines.dataset.dataset import Dataset
from pipelines.dataset.placement import Placement
from schemas.arrow import Split
from schemas.errors import DatasetNotFound
from schemas.manifest import DatasetManifest, ModelManifest


def language_counts(root: Path, dataset_version: int) -> dict[str, int]:
    """Kept documents by language in dataset versions 1..N, most first; empty where the dataset is not under this root any more."""
    try:
        counts = documents_by_language(Dataset(root, dataset_version).columns)
    except DatasetNotFound:
        return {}
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def lineage(root: Path, ancestors: list[ModelManifest]) -> dict[str, Any]:
    """The way from a model (the first of ``ancestors``, followed by its parents) back to Kafka, as plain JSON values.

    Raises DatasetNotFound if the dataset version is not under this root.
    """
    model = ancestors[0]
    dataset = Dataset(root, model.dataset.version)
    placement = dataset.newest_placement()
    return {
        "model": model.version,
        "run_id": model.training.run_id,
        "parents": [{"model": parent.version, "dataset_version": parent.dataset.version} for parent in ancestors[1:]],
        "dataset": {
            "version": dataset.version,
            "manifest_sha256": model.dataset.manifest_sha256,
            "matches": dataset.sha256 == model.dataset.manifest_sha256,
            "num_train_tokens": model.dataset.num_train_tokens,
            "view": model.dataset.view.model_dump(mode="json") if model.dataset.view else None,
            "offsets": _plain_offsets(model.dataset.offsets),
            "languages": language_counts(root, dataset.version),
        },
        "versions": [_version(manifest, placement) for manifest in dataset.manifests()],
    }


def _version(manifest: DatasetManifest, placement: Placement) -> dict[str, Any]:
    """The version's entry: each shard with the file in which its rows lie now, and the row at which they begin there."""
    shards = [(entry, *placement.place_of(entry.path)) for entry in manifest.shards if entry.split is Split.TRAIN]
    return {
        "version": manifest.version,
        "offsets": _plain_offsets(manifest.offsets),
        "shards": [
            {"path": entry.path, "rows": entry.rows, "tokens": entry.tokens, "sha256": entry.sha256, "file": file, "file_row": row}
            for entry, file, row in shards
        ],
        "languages": manifest.languages,
    }


def _plain_offsets(offsets: dict[str, Any]) -> dict[str, dict[str, dict[str, int]]]:
    return {
        topic: {str(partition): {"start": span.start, "end": span.end} for partition, span in partitions.items()}
        for topic, partitions in offsets.items()
    }
