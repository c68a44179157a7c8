"""Removing what crashed or fenced attempts left behind.

Invariant: a file is removed only if it carries a name of ours, no manifest lists it, and none ever can: its version number is already
committed by another attempt, so its own writer, should it still live, is fenced. Costs one listing of three folders.
"""

import time
from pathlib import Path

from pipelines.dataset.dataset import Dataset, latest_version
from pipelines.dataset.names import data_files, version_of


def orphans(root: Path) -> list[str]:
    """Paths, relative to the root, of files that no manifest lists, those of running attempts included."""
    listed: set[str] = set()
    if latest_version(root):
        for manifest in Dataset(root).manifests():
            listed.update(entry.path for entry in (*manifest.shards, *manifest.documents, *manifest.dedup_segments, *manifest.dedup_base, *manifest.masks))
    return [path for path in data_files(root) if path not in listed]


def collect_garbage(root: Path, *, grace_s: float) -> list[str]:
    """Remove the orphans of versions that are committed, once they are older than the grace period; returns their paths."""
    oldest = time.time() - grace_s
    newest = latest_version(root)  # before the orphans are listed: what is committed in between stays
    removed = [path for path in orphans(root) if version_of(path) <= newest and _modified_at(root / path) <= oldest]
    for path in removed:
        (root / path).unlink(missing_ok=True)
    return removed


def _modified_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # a temporary file that its writer has renamed meanwhile
        return float("inf")
