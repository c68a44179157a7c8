"""Views in a new lineage: after a switch of the tokenizer, the newest version of each view is version 1 of the same view under the new root.

A view is rules over documents, and those are the same there. What it rests on goes along: lists of documents as they are, and the fingerprints
of its evaluation sets; their passages, which are token ids, are decoded and encoded anew, and compared with the hashes of the texts; how many
tokens in a row make one stays as it was asked for.
A view that is bound to a dataset version is carried over if that version was switched. A view is carried over completely or
not at all. A view that exists under the new root is never changed, so calling this again completes the work after a crash.
"""

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from pipelines.dataset.dataset import Dataset
from pipelines.dedup.fingerprint import content_hashes
from pipelines.storage.durable import create_durably
from pipelines.tokenizers.tokenizer import load_tokenizer
from pipelines.views.decontamination import read_table, stored_table
from pipelines.views.store import checked_file, publish_view, read_view, view_names
from schemas.errors import CommitConflict, ManifestCorrupt
from schemas.manifest import FileEntry
from schemas.view import Decontamination, View


class Carried(NamedTuple):
    """What became of a view."""

    view: str
    """``NAME@N`` under the old root."""
    label: str | None
    """``NAME@1`` under the new one; none if it was left behind."""
    why: str | None
    """Why it was."""


class _LeftBehindError(Exception):
    """Says why a view cannot go along."""


def carry_views(source: Dataset, target: Dataset) -> list[Carried]:
    """Publish the newest version of each of the source's views under the new root; by name."""
    return [_carry(source, target, read_view(source.root, name)[0]) for name in view_names(source.root)]


def _carry(source: Dataset, target: Dataset, view: View) -> Carried:
    try:
        made = _translated(source, target, view)
        with suppress(CommitConflict):
            publish_view(target.root, made)
        if read_view(target.root, view.name, 1)[0] != made:
            raise _LeftBehindError("there is another view of that name already")
    except (_LeftBehindError, ManifestCorrupt) as error:
        return Carried(view.label, None, str(error))
    return Carried(view.label, made.label, None)


def _translated(source: Dataset, target: Dataset, view: View) -> View:
    """The view as its version 1 under the new root, where the files are that it rests on."""
    if view.dataset_version not in (None, source.version):
        raise _LeftBehindError(f"it is bound to dataset version {view.dataset_version}, and version {source.version} is what was switched")
    for entry in view.exclusions:
        _copy(source.root, target.root, entry)
    parts = view.decontamination
    changed = {
        "version": 1,
        "dataset_version": None if view.dataset_version is None else target.version,
        "decontamination": _encoded_anew(source, target, view.name, parts) if parts else None,
    }
    return view.model_copy(update=changed)


def _encoded_anew(source: Dataset, target: Dataset, name: str, parts: Decontamination) -> Decontamination:
    _copy(source.root, target.root, parts.file)
    if parts.passages is None:
        return parts
    if parts.tokenizer_sha256 != source.tokenizer.sha256:
        raise _LeftBehindError("its evaluation sets are in the tokens of a third tokenizer")
    old, new = (load_tokenizer(dataset.root, dataset.tokenizer) for dataset in (source, target))
    tokens = read_table(source.root, parts.passages)["tokens"].to_pylist()
    texts = pa.array([old.decode(ids) for ids in tokens], pa.large_string())
    if not content_hashes(texts).equals(read_table(source.root, parts.file)["content_hash"].combine_chunks()):
        raise _LeftBehindError("its evaluation sets cannot be read back from their tokens")
    passages = stored_table(target.root, name, "passages", pa.table({"tokens": new.encode(texts)}))
    return parts.model_copy(update={"passages": passages, "tokenizer_sha256": target.tokenizer.sha256})


def _copy(root: Path, new_root: Path, entry: FileEntry) -> None:
    """The name is a hash of the contents: a file of that name is the same file."""
    with suppress(FileExistsError):
        create_durably(new_root / entry.path, checked_file(root, entry))
