"""Removing what crashed or fenced attempts left behind.

Invariant: a file is removed only if it carries a name of ours, no manifest lists it, and none ever can: its version number is already
committed by another attempt, so its own writer, should it still live, is fenced. Tokenizers that no dataset version and no model names and
no person made, and temporary files of what is made beside the versions, go only when a person asks for it. Costs one listing of a few
folders and the history (dataset/history.py); what that calls garbage is compared with the manifests themselves before it goes.
"""

import re
import time
from contextlib import suppress
from pathlib import Path

from pipelines.dataset.dataset import FOLDER, Dataset, latest_version, read_manifest
from pipelines.dataset.history import Holds
from pipelines.dataset.names import attempt_of, data_files, is_base, version_of
from pipelines.storage.commit_log import CommitLog
from pipelines.storage.durable import TEMPORARY_PREFIX
from pipelines.storage.model_log import MODEL_LOG, read_model_manifest
from pipelines.tokenizers.folders import CARD_FILE

TOKENIZER_FOLDER = "tokenizer"
UNNUMBERED = ("drift", "log/checkpoints", "quality", "views")
"""Folders of files that are made beside the versions: of their temporary files nothing but the age says that nobody writes them any more."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_UNPUBLISHED = re.compile(rf"{re.escape(TEMPORARY_PREFIX)}(\d{{8}})\.json-[0-9a-f]{{12}}")


def orphans(root: Path) -> list[str]:
    """Paths, relative to the root, of files that no manifest lists, those of running attempts included."""
    if not latest_version(root):
        return data_files(root)
    dataset = Dataset(root)
    attempts: list[int] = dataset.history["attempt"].tolist()
    bases = {attempts[version - 1] for version in dataset.versions_with(Holds.BASE)}
    return [path for path in data_files(root) if attempt_of(path) not in (bases if is_base(path) else attempts[version_of(path) - 1 :][:1])]


def _unlisted(root: Path, paths: list[str], newest: int) -> list[str]:
    """Those of the files of versions up to the newest that no manifest lists."""
    may_list = {number for path in paths for number in range(version_of(path), (newest if is_base(path) else version_of(path)) + 1)}
    listed = {entry.path for number in may_list for entry in read_manifest(root, number).files}
    return [path for path in paths if path not in listed]


def collect_garbage(root: Path, *, grace_s: float, by_hand: bool = False, dry_run: bool = False) -> list[str]:
    """Remove the orphans of versions that are committed, once they are older than the grace period; returns their paths.

    ``by_hand``: also tokenizers that nothing names, and temporary files beside the versions, which only a person can tell from those that are
    to be used next. ``dry_run`` only tells.
    """
    oldest = time.time() - grace_s
    newest = latest_version(root)  # before the orphans are listed: what is committed in between stays
    candidates = [path for path in orphans(root) if version_of(path) <= newest and _modified_at(root / path) <= oldest]
    others = _log_leftovers(root, newest) + (_leftovers(root) + _orphan_tokenizers(root) if by_hand else [])
    removed = _unlisted(root, candidates, newest) + [path for path in others if _modified_at(root / path) <= oldest]
    for path in removed if not dry_run else ():
        (root / path).unlink(missing_ok=True)
        with suppress(OSError):  # a folder that holds something else stays
            if path.startswith(TOKENIZER_FOLDER) or Path(path).parent.name.startswith(TEMPORARY_PREFIX):
                (root / path).parent.rmdir()
    return removed


def _log_leftovers(root: Path, newest: int) -> list[str]:
    """Manifests that were written but not published, of versions that are committed."""
    found = [(path, _UNPUBLISHED.fullmatch(path.name)) for path in sorted((root / FOLDER).glob(f"{TEMPORARY_PREFIX}*"))]
    return [f"{FOLDER}/{path.name}" for path, match in found if match and int(match[1]) <= newest]


def _leftovers(root: Path) -> list[str]:
    """Temporary files, and those in temporary folders, where files are of no version: a crash left them, or a writer is at work."""
    found = [path for folder in UNNUMBERED for path in (root / folder).rglob(f"{TEMPORARY_PREFIX}*")]
    files = [path for entry in found for path in (entry.rglob("*") if entry.is_dir() else (entry,)) if path.is_file()]
    return sorted({path.relative_to(root).as_posix() for path in files})


def _orphan_tokenizers(root: Path) -> list[str]:
    """Files in the folders of tokenizers that neither a dataset version nor a model names; none as long as there is no dataset.

    One that a person fitted or imported stays: it may be waiting for `headrace tokenizer switch`.
    """
    if not latest_version(root):
        return []
    named = {Dataset(root).tokenizer.sha256}
    models = CommitLog(root / MODEL_LOG)
    named |= {read_model_manifest(models, number).tokenizer.sha256 for number in range(1, models.latest() + 1)}
    folders = [path for path in sorted((root / TOKENIZER_FOLDER).glob("*")) if _SHA256.fullmatch(path.name) and path.name not in named]
    folders = [folder for folder in folders if not (folder / CARD_FILE).exists()]
    return [path.relative_to(root).as_posix() for folder in folders for path in sorted(folder.iterdir()) if path.is_file()]


def _modified_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # a temporary file that its writer has renamed meanwhile
        return float("inf")
