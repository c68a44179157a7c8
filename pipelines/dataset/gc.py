"""Removing what crashed or fenced attempts left behind.

Invariant: a file is removed only if it carries a name of ours, nobody holds it (storage/holds.py), no manifest lists it, and none ever can:
- a file of a version that is committed: its own writer, should it still live, is fenced;
- a base of the duplicate index, which a later version than its name says may list, once a base that is listed holds as much, because then
  nobody publishes it any more (dataset/compaction.py). So a base that a crash left behind waits for the next compaction. A file of merged shards
  waits in the same way for a merge of its split that was begun no earlier (dataset/merging.py);
- a shard, or a file of merged shards, that a version lists but whose rows are in another file that a later version lists: every reader finds them
  there. It is removed once that file is older than the grace period, if that file has the SHA-256 of its manifest;
- a temporary file or folder anywhere else under the root, and tokenizers that no dataset version and no model names and no person made: only
  when a person asks for it.
Costs one listing of a few folders and the history (dataset/history.py), by hand one of all; what the history calls garbage is compared with
the manifests themselves before it goes.
"""

import os
import re
import time
from contextlib import suppress
from pathlib import Path

from pipelines.dataset.compaction import covered_version
from pipelines.dataset.dataset import FOLDER, Dataset, latest_version, read_manifest
from pipelines.dataset.history import Holds
from pipelines.dataset.merging import newest_merged
from pipelines.dataset.names import VERSIONED, attempt_of, data_files, is_base, is_merged, split_of, version_of
from pipelines.storage.commit_log import CommitLog
from pipelines.storage.holds import TEMPORARY_PREFIX
from pipelines.storage.model_log import MODEL_LOG, read_model_manifest
from pipelines.storage.pinned import verify_once
from pipelines.storage.store import file_names, is_held, is_local, is_there, modified_at, names, remove_unheld
from pipelines.tokenizers.folders import CARD_FILE
from schemas.errors import ShardCorrupt
from schemas.manifest import ShardEntry

TOKENIZER_FOLDER = "tokenizer"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_UNPUBLISHED = re.compile(rf"{re.escape(TEMPORARY_PREFIX)}(\d{{8}})\.json-[0-9a-f]{{12}}")


def orphans(root: Path) -> list[str]:
    """Paths, relative to the root, of files that no manifest lists, those of running attempts included."""
    if not latest_version(root):
        return data_files(root)
    dataset = Dataset(root)
    attempts: list[int] = dataset.history["attempt"].tolist()
    later = {attempts[version - 1] for version in dataset.versions_with(Holds.BASE | Holds.MERGED)}
    return [path for path in data_files(root) if attempt_of(path) not in (later if _may_come_later(path) else attempts[version_of(path) - 1 :][:1])]


def _may_come_later(path: str) -> bool:
    """Whether a later version than its name says may list the file."""
    return is_base(path) or is_merged(path)


def _unlisted(root: Path, paths: list[str], newest: int) -> list[str]:
    """Those of the files of versions up to the newest that no manifest lists."""
    may_list = {number for path in paths for number in range(version_of(path), (newest if _may_come_later(path) else version_of(path)) + 1)}
    listed = {entry.path for number in may_list for entry in read_manifest(root, number).files}
    return [path for path in paths if path not in listed]


def collect_garbage(root: Path, *, grace_s: float, merged_grace_s: float | None = None, by_hand: bool = False, dry_run: bool = False) -> list[str]:
    """Remove the orphans that no manifest can list any more, and shards that were merged into another file, once they are older than the grace
    period; returns their paths. ``merged_grace_s``: a grace period of its own for the shards, counted from the merge.

    ``by_hand``: also tokenizers that nothing names, and temporary files beside the versions, which only a person can tell from those that are
    to be used next. ``dry_run`` only lists. What is being written stays, whatever the grace period.
    """
    oldest = time.time() - grace_s
    newest = latest_version(root)  # before the orphans are listed: what is committed in between stays
    candidates = [path for path in _collectable(root, newest) if modified_at(root / path) <= oldest]
    others = _log_leftovers(root, newest) + (_leftovers(root) + _orphan_tokenizers(root) if by_hand else [])
    found = _unlisted(root, candidates, newest) + _merged_away(root, newest, oldest if merged_grace_s is None else time.time() - merged_grace_s)
    found += [path for path in others if modified_at(root / path) <= oldest]
    return [path for path in found if (not is_held(root / path) if dry_run else _remove(root, path))]


def _collectable(root: Path, newest: int) -> list[str]:
    """Orphans that no writer, running or not, can publish."""
    paths = orphans(root)
    if not newest:
        return []
    dataset = Dataset(root, newest)
    covered = covered_version(dataset) if any(map(is_base, paths)) else 0
    merged = newest_merged(dataset) if any(map(is_merged, paths)) else {}
    return [path for path in paths if version_of(path) <= (covered + 1 if is_base(path) else merged[split_of(path)] if is_merged(path) else newest)]


def _merged_away(root: Path, newest: int, oldest: float) -> list[str]:
    """Files of shards whose rows have been in another file for longer than the grace period; none if that file is damaged."""
    if not newest:
        return []
    placement = Dataset(root, newest).placement
    replaced = placement.replaced()
    there = {path: replaced[path] for path in data_files(root) if path in replaced}
    listed_by = dict(zip(placement.merged["path"].to_pylist(), placement.merged["version"].to_pylist(), strict=True))
    entries = {file: placement.entry(file) for file in set(there.values())}
    sound = {file for file, entry in entries.items() if _stands(root, entry, listed_by[entry.path], oldest)}
    return [path for path, file in there.items() if file in sound]


def _stands(root: Path, entry: ShardEntry, listed_by: int, oldest: float) -> bool:
    """Whether a file of merged shards was published long enough ago and equals its manifest."""
    try:
        return read_manifest(root, listed_by).created_at.timestamp() <= oldest and modified_at(verify_once(root, entry)) <= oldest
    except ShardCorrupt:  # `headrace datasets verify` reports it
        return False


def _remove(root: Path, path: str) -> bool:
    is_gone = remove_unheld(root / path)
    if is_gone and path.startswith(TOKENIZER_FOLDER):
        with suppress(OSError):  # a folder that holds something else stays
            (root / path).parent.rmdir()
    return is_gone


def _log_leftovers(root: Path, newest: int) -> list[str]:
    """Manifests that were written but not published, of versions that are committed."""
    found = [(name, _UNPUBLISHED.fullmatch(name)) for name in sorted(names(root / FOLDER))] if is_local(root) else []
    return [f"{FOLDER}/{name}" for name, match in found if match and int(match[1]) <= newest]


def _leftovers(root: Path) -> list[str]:
    """Temporary files and folders where files are of no version: a crash left them, or a writer is at work."""
    found: list[Path] = []
    for parent, folders, files_here in os.walk(root) if is_local(root) else ():  # an object store has none
        if Path(parent) == root:
            folders[:] = [name for name in folders if name not in VERSIONED]
        files = files_here if Path(parent) != root / FOLDER else []  # of manifests that were not published the version counts
        found += [Path(parent, name) for name in (*folders, *files) if name.startswith(TEMPORARY_PREFIX)]
        folders[:] = [name for name in folders if not name.startswith(TEMPORARY_PREFIX)]
    return sorted(path.relative_to(root).as_posix() for path in found)


def _orphan_tokenizers(root: Path) -> list[str]:
    """Files in the folders of tokenizers that neither a dataset version nor a model names; none as long as there is no dataset.

    One that a person fitted or imported stays: it may be waiting for `headrace tokenizer switch`.
    """
    if not latest_version(root):
        return []
    named = {Dataset(root).tokenizer.sha256}
    models = CommitLog(root / MODEL_LOG)
    named |= {read_model_manifest(models, number).tokenizer.sha256 for number in range(1, models.latest() + 1)}
    others = [name for name in sorted(names(root / TOKENIZER_FOLDER)) if _SHA256.fullmatch(name) and name not in named]
    others = [name for name in others if not is_there(root / TOKENIZER_FOLDER / name / CARD_FILE)]
    return [f"{TOKENIZER_FOLDER}/{other}/{name}" for other in others for name in sorted(file_names(root / TOKENIZER_FOLDER / other))]
