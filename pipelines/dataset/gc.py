"""Removing what crashed or fenced attempts left behind.

Invariant: a file is removed only if it carries a name of ours, no manifest lists it, and none ever can: its version number is already
committed by another attempt, so its own writer, should it still live, is fenced. Tokenizers that no dataset version and no model names go
only when a person asks for it. Costs one listing of a few folders, and reads manifests.
"""

import re
import time
from contextlib import suppress
from pathlib import Path

from pipelines.dataset.dataset import FOLDER, Dataset, latest_version
from pipelines.dataset.durable import TEMPORARY_PREFIX
from pipelines.dataset.lineage import MODEL_LOG, read_model
from pipelines.dataset.log import CommitLog
from pipelines.dataset.names import data_files, version_of

TOKENIZER_FOLDER = "tokenizer"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_UNPUBLISHED = re.compile(rf"{re.escape(TEMPORARY_PREFIX)}(\d{{8}})\.json-[0-9a-f]{{12}}")


def orphans(root: Path) -> list[str]:
    """Paths, relative to the root, of files that no manifest lists, those of running attempts included."""
    listed: set[str] = set()
    if latest_version(root):
        for manifest in Dataset(root).manifests():
            listed.update(entry.path for entry in manifest.files)
    return [path for path in data_files(root) if path not in listed]


def collect_garbage(root: Path, *, grace_s: float, tokenizers: bool = False, dry_run: bool = False) -> list[str]:
    """Remove the orphans of versions that are committed, once they are older than the grace period; returns their paths.

    ``tokenizers``: also those that nothing names, which only a person can tell from those that are to be used next. ``dry_run`` only tells.
    """
    oldest = time.time() - grace_s
    newest = latest_version(root)  # before the orphans are listed: what is committed in between stays
    candidates = [path for path in orphans(root) if version_of(path) <= newest] + _log_leftovers(root, newest)
    candidates += _orphan_tokenizers(root) if tokenizers else []
    removed = [path for path in candidates if _modified_at(root / path) <= oldest]
    for path in removed if not dry_run else ():
        (root / path).unlink(missing_ok=True)
        with suppress(OSError):  # a folder that holds something else stays
            if path.startswith(TOKENIZER_FOLDER):
                (root / path).parent.rmdir()
    return removed


def _log_leftovers(root: Path, newest: int) -> list[str]:
    """Manifests that were written but not published, of versions that are committed."""
    found = [(path, _UNPUBLISHED.fullmatch(path.name)) for path in sorted((root / FOLDER).glob(f"{TEMPORARY_PREFIX}*"))]
    return [f"{FOLDER}/{path.name}" for path, match in found if match and int(match[1]) <= newest]


def _orphan_tokenizers(root: Path) -> list[str]:
    """Files in the folders of tokenizers that neither a dataset version nor a model names; none as long as there is no dataset."""
    if not latest_version(root):
        return []
    named = {manifest.tokenizer.sha256 for manifest in Dataset(root).manifests()}
    models = CommitLog(root / MODEL_LOG)
    named |= {read_model(models, number).tokenizer.sha256 for number in range(1, models.latest() + 1)}
    folders = [path for path in sorted((root / TOKENIZER_FOLDER).glob("*")) if _SHA256.fullmatch(path.name) and path.name not in named]
    return [path.relative_to(root).as_posix() for folder in folders for path in sorted(folder.iterdir()) if path.is_file()]


def _modified_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # a temporary file that its writer has renamed meanwhile
        return float("inf")
