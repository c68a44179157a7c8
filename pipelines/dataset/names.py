"""File names of a dataset. The attempt suffix keeps two writers of one version, or two attempts of one writer, from touching each other's files."""

import re
from pathlib import Path

from pipelines.storage.holds import TEMPORARY_PREFIX
from pipelines.storage.store import file_names
from schemas.arrow import Split

SHARDS, DOCUMENTS, DEDUP, MASKS, BOILERPLATE = "shards", "documents", "dedup", "masks", "boilerplate"
_ATTEMPT = "[0-9a-f]{12}"
_PATTERNS = {
    SHARDS: rf"v\d{{8}}-(?:{'|'.join(Split)})-(?:\d{{4,}}|merged)-{_ATTEMPT}\.arrow",
    DOCUMENTS: rf"v\d{{8}}-(?:\d{{4,}}-)?{_ATTEMPT}\.parquet",
    DEDUP: rf"v\d{{8}}-(?:{_ATTEMPT}\.arrow|base-{_ATTEMPT}\.index)",
    MASKS: rf"v\d{{8}}-{_ATTEMPT}\.arrow",
    BOILERPLATE: rf"v\d{{8}}-{_ATTEMPT}\.arrow",
}
VERSIONED = tuple(_PATTERNS)
"""Folders of the files of versions."""


def shard_path(version: int, split: Split, number: int, attempt: str) -> str:
    """Path of a shard, relative to the root."""
    return f"{SHARDS}/v{version:08d}-{split}-{number:04d}-{attempt}.arrow"


def merged_path(version: int, split: Split, attempt: str) -> str:
    """Path of a file of merged shards, relative to the root."""
    return f"{SHARDS}/v{version:08d}-{split}-merged-{attempt}.arrow"


def documents_path(version: int, attempt: str, number: int = 0) -> str:
    """Path of a file of the audit trail, relative to the root. Most versions have one; those after it carry their ``number``."""
    return f"{DOCUMENTS}/v{version:08d}-{f'{number:04d}-' if number else ''}{attempt}.parquet"


def segment_path(version: int, attempt: str) -> str:
    """Path of the fingerprints of the kept documents, relative to the root."""
    return f"{DEDUP}/v{version:08d}-{attempt}.arrow"


def base_path(version: int, attempt: str) -> str:
    """Path of the compacted duplicate index, relative to the root."""
    return f"{DEDUP}/v{version:08d}-base-{attempt}.index"


def masks_path(version: int, attempt: str) -> str:
    """Path of the spans that a version's retractions took out, relative to the root."""
    return f"{MASKS}/v{version:08d}-{attempt}.arrow"


def boilerplate_path(version: int, attempt: str) -> str:
    """Path of the counts of lines across documents, relative to the root."""
    return f"{BOILERPLATE}/v{version:08d}-{attempt}.arrow"


def data_files(root: Path) -> list[str]:
    """Paths, relative to the root, of all files that carry a name of ours, committed or not; sorted."""
    found = []
    for folder, pattern in _PATTERNS.items():
        ours = re.compile(rf"(?:{re.escape(TEMPORARY_PREFIX)}{pattern}-{_ATTEMPT}|{pattern})")
        found += [f"{folder}/{name}" for name in file_names(root / folder, ours)]
    return sorted(found)


def is_base(path: str) -> bool:
    """Whether one of the ``data_files`` is a compacted index. Its version is the first that can list it; a later one may."""
    return path.endswith(".index")


def is_merged(path: str) -> bool:
    """Whether one of the ``data_files`` is a file of merged shards. The version in its name, or a later one, may list it.

    One that is being written has a temporary name, and is none yet.
    """
    return path.startswith(f"{SHARDS}/v") and "-merged-" in path


def split_of(path: str) -> Split:
    """Split of the shard, from its path."""
    return Split(Path(path).name.split("-")[1])


def attempt_of(path: str) -> int | None:
    """Attempt, as a number, in the name of one of the ``data_files``; none if the name is a temporary one."""
    found = re.search(rf"/v.*-({_ATTEMPT})\.\w+$", path)
    return int(found[1], 16) if found else None


def version_of(path: str) -> int:
    """Version in the name of one of the ``data_files``."""
    found = re.search(r"v(\d{8})-", Path(path).name)
    assert found is not None
    return int(found[1])
