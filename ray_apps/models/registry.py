"""The model registry: immutable, numbered model versions under ``<root>/models``.

    models/00000003/          config.json, model.safetensors, tokenizer files, README.md (the card), manifest.json (a copy, for people)
    models/log/00000003.json  the ModelManifest: a version exists when this does

Registration is serialized by a lock that the kernel drops with the process: (1) the files wait, flushed, in a staging folder, (2) the
next free number is taken under the lock, a folder of that number without a log entry is a crash's leftover and goes, (3) the card is
written and every file hashed, (4) the folder is renamed to its number, (5) the log entry is published. A crash before (5) leaves
nothing that a reader sees. A run registers once: its id is in its manifest, and ``find_run`` looks for it.

On an object store the files of a version lie in ``models/RUN-<12 hex digits>/``, a folder that one attempt alone writes to, and there is no lock: the
conditional request of (5) lets one writer have a number. Before it takes the next one it has read all versions before, so a run cannot register
twice from two hosts. What other attempts of the run have left goes when the run is registered, because then none of them can be published.

The aliases champion and challenger are those of the newest rollout state; ``latest`` is the newest version.
"""

import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.runtime.crash import crash_point
from pipelines.storage.commit_log import CommitLog
from pipelines.storage.durable import create_durably, file_entry, held_folder, make_folder, send, sync_folder, sync_tree
from pipelines.storage.entries import parse_entry
from pipelines.storage.holds import TEMPORARY_PREFIX
from pipelines.storage.model_log import read_model_manifest
from pipelines.storage.pinned import check_present, verify_pinned
from pipelines.storage.store import is_local, is_there, names, remove_folder
from ray_apps.models.card import CARD_FILE, model_card
from ray_apps.models.lineage import language_counts
from schemas.errors import CommitConflict, DatasetNotFound, ManifestCorrupt, ModelNotFound, ShardCorrupt
from schemas.manifest import FileEntry, ModelManifest
from schemas.rollout import RolloutState

FOLDER = "models"
MANIFEST_FILE = "manifest.json"
REGISTRATION_CRASH_POINTS = ("model_staged", "model_described", "model_renamed", "model_published")
"""Every step of a registration, in its order; the recovery tests kill the process there (pipelines/runtime/crash.py)."""
_LOADED_SUFFIXES = frozenset({".json", ".safetensors", ".bin", ".pt", ".jinja", ".model", ".py"})
"""Of files that a loader of Hugging Face folders may read."""
_VERSION_FOLDER = re.compile(r"^[0-9]{8}\Z")

BuildManifest = Callable[[int, list[FileEntry]], ModelManifest]
"""Makes the manifest of a version out of its number and its files."""


class Registry:
    """The model versions under a root; the folder need not exist yet."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.models = root / FOLDER
        self.log = CommitLog(self.models / "log")
        self._holds: dict[Path, int] = {}
        """Staging folders of this process, and the descriptors that hold them."""

    def versions(self) -> list[int]:
        """All versions, ascending."""
        return list(range(1, self.log.latest() + 1))

    def manifest(self, version: int) -> ModelManifest:
        """Manifest of a version. Raises ModelNotFound, or what ``read_model_manifest`` raises."""
        try:
            return read_model_manifest(self.log, version)
        except DatasetNotFound as error:
            raise ModelNotFound(f"there is no model version {version} under {self.root}; {self._known()}") from error

    def folder(self, version: int) -> Path:
        """Folder of a version's files, loadable with transformers. Raises ModelNotFound if the version does not exist."""
        if not is_there(self.log.path(version)):
            raise ModelNotFound(f"there is no model version {version} under {self.root}; {self._known()}")
        return self._folder_of(self.manifest(version))

    def verified_folder(self, version: int) -> Path:
        """The folder, once its files were compared with the manifest; costs one reading of them (1 GB/s).

        Raises ModelNotFound; ShardCorrupt if a file is missing, has other bytes, or lies there unlisted where a loader would read it.
        """
        manifest = self.manifest(version)
        folder = self._folder_of(manifest)
        listed = {self.root / entry.path for entry in manifest.files}
        if any(folder not in path.parents for path in listed):
            raise ManifestCorrupt(f"{self.log.path(version)} lists files outside of {folder}; restore it from a copy")
        for entry in manifest.files:
            verify_pinned(self.root, entry)
        strangers = sorted(path.name for path in folder.iterdir() if path.suffix in _LOADED_SUFFIXES and path not in listed)
        if strangers := [name for name in strangers if name != MANIFEST_FILE]:
            raise ShardCorrupt(f"{folder} holds {', '.join(strangers)}, which the manifest of model version {version} does not list; remove that")
        return folder

    def find_run(self, run_id: str) -> ModelManifest | None:
        """The model that a training run made, if it was registered."""
        for version in reversed(self.versions()):
            manifest = self.manifest(version)
            if manifest.training.run_id == run_id:
                return manifest
        return None

    def rollout(self) -> RolloutState | None:
        """The newest rollout state. Raises ManifestCorrupt if it does not parse, ManifestNewer if another version of Headrace wrote it."""
        log = CommitLog(self.root / "rollout")
        number = log.latest()
        if number == 0:
            return None
        return parse_entry(RolloutState, log.read(number), log.path(number), "rollout state")

    def aliases(self) -> dict[str, int]:
        """Alias -> version: champion and challenger where a rollout set them, latest where there is a model."""
        state = self.rollout()
        found = {"champion": state.champion, "challenger": state.challenger} if state else {}
        found["latest"] = self.log.latest() or None
        return {name: version for name, version in found.items() if version is not None}

    def resolve(self, name: str) -> int:
        """Version of a number or an alias. Raises ModelNotFound."""
        if name.isdecimal():
            return self.manifest(int(name)).version
        aliases = self.aliases()
        if name not in aliases:
            known = ", ".join(f"{alias} (version {version})" for alias, version in aliases.items()) or "none is set yet"
            raise ModelNotFound(f"no model has the alias {name!r}; aliases: {known}")
        return aliases[name]

    def new_staging(self, owner: str) -> Path:
        """An empty folder for the files of a version to be; former ones of the same owner are removed. The owner runs once at a time.

        The garbage collector leaves it alone until it is registered, or this process ends.
        """
        for leftover in self.models.glob(f"{TEMPORARY_PREFIX}{owner}-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        staging, self._holds[staging] = held_folder(self.models / owner)
        return staging

    def register(self, staging: Path, build_manifest: BuildManifest) -> ModelManifest:
        """Publish the files in ``staging`` (a folder on the registry's file system) as the next version; ``staging`` is gone afterwards.

        Raises CommitConflict if a writer that does not honour the lock took the number; nothing of this attempt is visible then. On an object store
        the manifest of a run that another host has registered meanwhile is returned.
        """
        # Step 1: the files are durable.
        sync_tree(staging)
        crash_point("model_staged")
        if not is_local(self.root):
            return self._register_in_store(staging, build_manifest)
        with self._lock():
            # Step 2: the next number; what a crash left under it goes.
            version = self.log.latest() + 1
            self._remove_orphans()
            # Step 3: the card, and a hash of everything.
            manifest = self._describe(staging, version, self._folder(version), build_manifest)
            crash_point("model_described")
            # Step 4: the files get their final place.
            staging.rename(self._folder(version))
            sync_folder(self.models)
            crash_point("model_renamed")
            # Step 5: the version exists from here on.
            check_present(self.root, manifest.files)
            self.log.publish(version, manifest.model_dump_json(indent=2).encode())
            crash_point("model_published")
        self._let_go(staging)
        return manifest

    def _let_go(self, staging: Path) -> None:
        if staging in self._holds:
            os.close(self._holds.pop(staging))

    def _register_in_store(self, staging: Path, build_manifest: BuildManifest) -> ModelManifest:
        run_id = build_manifest(1, []).training.run_id
        folder = self.models / f"{run_id}-{secrets.token_hex(6)}"
        sent: frozenset[FileEntry] = frozenset()
        while True:
            # Step 2: the next number, unless the run has one by now.
            version = self.log.latest() + 1
            if (made := self.find_run(run_id)) is not None:
                break
            # Step 3: the card, and a hash of everything.
            manifest = self._describe(staging, version, folder, build_manifest)
            crash_point("model_described")
            # Step 4: the files are in the store.
            sent = self._send(staging, folder, manifest, sent)
            crash_point("model_renamed")
            # Step 5: the version exists from here on.
            try:
                check_present(self.root, manifest.files)
                self.log.publish(version, manifest.model_dump_json(indent=2).encode())
            except CommitConflict:  # another model took the number
                continue
            except ShardCorrupt:
                if self.find_run(run_id) is None:
                    raise
                continue  # another attempt has registered the run, and removed our files
            crash_point("model_published")
            made = manifest
            break
        self.remove_other_attempts(made)
        shutil.rmtree(staging, ignore_errors=True)
        self._let_go(staging)
        return made

    def _send(self, staging: Path, folder: Path, manifest: ModelManifest, sent: frozenset[FileEntry]) -> frozenset[FileEntry]:
        """Put the files into the store, but for those that were sent already; returns all that are there now."""
        for entry in manifest.files:
            if entry not in sent:
                send(self.root / staging / Path(entry.path).relative_to(folder.relative_to(self.root)), self.root / entry.path)
        send(staging / MANIFEST_FILE, folder / MANIFEST_FILE)
        return frozenset(manifest.files)

    def remove_other_attempts(self, registered: ModelManifest) -> None:
        """Remove what other attempts to register the run have left on an object store."""
        if is_local(self.root):
            return
        ours, attempt = self._folder_of(registered).name, re.compile(rf"{re.escape(registered.training.run_id)}-[0-9a-f]{{12}}")
        for name in names(self.models):
            if name != ours and attempt.fullmatch(name):
                remove_folder(self.models / name)

    def _describe(self, staging: Path, version: int, folder: Path, build_manifest: BuildManifest) -> ModelManifest:
        """Write what depends on the number, and the manifest that lists the files as they are going to lie in ``folder``."""
        for name in (CARD_FILE, MANIFEST_FILE):
            (staging / name).unlink(missing_ok=True)
        draft = build_manifest(version, [])
        languages = language_counts(self.root, draft.dataset.version)
        _write(staging / CARD_FILE, model_card(draft, languages).encode())
        manifest = build_manifest(version, self._entries(staging, folder))
        _write(staging / MANIFEST_FILE, manifest.model_dump_json(indent=2).encode())
        return manifest

    def _entries(self, staging: Path, folder: Path) -> list[FileEntry]:
        """Entries of the staged files under the names that they are about to get."""
        final = folder.relative_to(self.root)
        entries = (file_entry(staging, path, rows=0) for path in sorted(staging.rglob("*")) if path.is_file())
        return [entry.model_copy(update={"path": (final / entry.path).as_posix()}) for entry in entries]

    def _remove_orphans(self) -> None:
        for entry in self.models.iterdir():
            if _VERSION_FOLDER.match(entry.name) and not self.log.path(int(entry.name)).exists():
                shutil.rmtree(entry)

    def _folder(self, version: int) -> Path:
        return self.models / f"{version:08d}"

    def _folder_of(self, manifest: ModelManifest) -> Path:
        """Where the files of a version lie: in the folder of its number, or in that of the attempt which put them into an object store."""
        first = manifest.files[0].path.split("/") if manifest.files else []
        attempt = len(first) > 2 and first[0] == FOLDER and first[1].startswith(f"{manifest.training.run_id}-")
        return self.models / first[1] if attempt else self._folder(manifest.version)

    def _known(self) -> str:
        newest = self.log.latest()
        return f"versions 1 to {newest} exist" if newest else "none was registered yet; run `headrace train`"

    @contextmanager
    def _lock(self) -> Iterator[None]:
        make_folder(self.models)
        with (self.models / ".lock").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _write(path: Path, data: bytes) -> None:
    """Into a staging folder; on this host, also where the root is on an object store."""
    if is_local(path):
        create_durably(path, data)
    else:
        path.write_bytes(data)
