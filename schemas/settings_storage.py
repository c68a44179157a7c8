"""Settings of a root on an object store, and what its URL may be."""

from urllib.parse import quote, urlsplit

from pydantic import Field

from schemas.section import Section

SCHEMES = ("s3", "gs", "az")
MAX_NAME_BYTES = 255
"""Longest name of a folder: the root's URL is the name of one."""


class StorageSettings(Section):
    """A root on an object store; these settings have no effect if the root is a folder."""

    cache: str = ""
    """Folder for copies of the root's files, the same on every host; empty: ``headrace`` in the user's cache folder. Only its owner may read it."""
    cache_bytes: int = Field(20 * 2**30, ge=2**20)
    """Size beyond which the least recently used copies are removed. Files that do not fit are fetched again each time they are read."""


def check_url(root: str) -> None:
    """Raise ValueError for what cannot be a root on an object store; a message never repeats what may be a secret."""
    parts = urlsplit(root)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("root holds a user, a query or a fragment: name only the bucket and the prefix; secrets come from the environment (AWS_* …)")
    if parts.scheme not in SCHEMES:
        raise ValueError(f"root is {root!r}; it must be a folder, or s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX")
    segments = parts.path.strip("/").split("/") if parts.path.strip("/") else []
    if not parts.netloc or any(segment in ("", ".", "..") for segment in segments) or quote(root, safe=":/") != root:
        raise ValueError(f"root is {root!r}; write s3://BUCKET/PREFIX in letters, digits, '-', '_' and '.', without '..'")
    if len(quote(root, safe="")) > MAX_NAME_BYTES:
        raise ValueError(f"root is {root!r}; the URL is too long, use a shorter prefix")
