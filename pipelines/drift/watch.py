"""Drift of the dataset under a root: verdicts from the log, releases by people, the alert.

``<root>/drift/00000012.json`` says that a person released version 12; it is created once and never changes, so releasing twice is releasing once.
All else is recomputed from the manifests: ``Watch`` reads each of them once, from the last saved state on (drift_state.py). Older versions
without statistics in their manifest cost a pass over their audit trail.
"""

import logging
import re
from datetime import datetime
from itertools import takewhile
from pathlib import Path

from pydantic import ValidationError

from pipelines.dataset.dataset import Dataset, latest_version, read_manifest
from pipelines.dataset.statistics import version_statistics
from pipelines.drift.drift import DriftReport, Judge, Verdicts, verdicts
from pipelines.drift.state import SAVE_EVERY, load_state, save_state
from pipelines.storage.durable import create_durably
from pipelines.storage.store import names, read_bytes
from schemas.errors import DatasetError, ManifestCorrupt
from schemas.events import AlertFired, Event, new_event
from schemas.record import Record
from schemas.settings_drift import DriftSettings
from schemas.statistics import VersionStatistics

FOLDER = "drift"
SOURCE = "/headrace/drift"
_log = logging.getLogger(__name__)
_RELEASE = re.compile(r"^([0-9]{8})\.json\Z")


class Release(Record):
    """A person's word that a version may be trained on as it is, with all before it."""

    version: int
    """The version."""
    released_at: datetime
    """When, UTC."""
    reason: str
    """Why, for the log."""


class Watch:
    """Follows the log of one dataset."""

    def __init__(self, root: Path, settings: DriftSettings, *, is_writer: bool = False) -> None:
        """``is_writer``: of the dataset; it leaves where it stands for others (drift_state.py)."""
        self._root = root
        self._settings = settings
        self._is_writer = is_writer
        self._released: frozenset[int] | None = None
        self._judge = Judge(settings)
        self._version = 0

    def verdicts(self, version: int | None = None) -> Verdicts:
        """Up to a version, by default the newest; ask for versions in ascending order. A new release is a new reading of the log.

        Of what was judged before the state that it began with, only the reports that matter are there.
        """
        newest = latest_version(self._root) if version is None else version
        released = released_versions(self._root)
        if released != self._released:
            self._released, self._judge, self._version = released, Judge(self._settings, released), 0
            if found := load_state(self._root, FOLDER, self._settings, released, newest, self._statistics):
                self._version, self._judge = found
        for number in range(self._version + 1, newest + 1):
            self._judge.add(number, self._statistics(number))
            self._version = number
            if self._is_writer and number % SAVE_EVERY == 0:
                self._judge.forget()
                self._save(number, released)
        return self._judge.verdicts()

    def _save(self, version: int, released: frozenset[int]) -> None:
        """Leave the state; without it others read more, so nothing ends because of it."""
        try:
            save_state(self._root, FOLDER, version, self._judge, self._settings, released)
        except OSError as error:
            _log.warning("the state of drift after version %d could not be written under %s: %s", version, self._root / FOLDER, error)

    def _statistics(self, version: int) -> VersionStatistics:
        return version_statistics(self._root, read_manifest(self._root, version))

    def held(self, version: int, trained: int = 0) -> str | None:
        """Why training on this version has to wait: ``drift.hold_training`` says so, and a sample that has drifted would be trained on for the
        first time (``trained`` is the newest version that was trained on). A release of a version lets in what came before it too.
        """
        if not self._settings.hold_training:
            return None
        new = takewhile(lambda report: report.version > trained and not report.is_released, reversed(self.verdicts(version).reports))
        newest = next((report for report in new if report.is_drifting), None)
        return f"{newest.sentence()}; {_remedy(newest)}" if newest is not None else None


def released_versions(root: Path) -> frozenset[int]:
    """Versions that a person released."""
    return frozenset(int(match[1]) for match in map(_RELEASE.match, names(root / FOLDER)) if match)


def release(root: Path, version: int, reason: str, now: datetime) -> tuple[Release, bool]:
    """Release a version; returns what is on disk, and whether this call put it there. Raises DatasetNotFound, ManifestCorrupt."""
    Dataset(root, version)
    wanted = Release(version=version, released_at=now, reason=reason)
    path = root / FOLDER / f"{version:08d}.json"
    try:
        create_durably(path, (wanted.model_dump_json(indent=1) + "\n").encode())
    except FileExistsError:
        return _read_release(path), False
    return wanted, True


def _read_release(path: Path) -> Release:
    try:
        return Release.model_validate_json(read_bytes(path))
    except ValidationError as error:
        raise ManifestCorrupt(f"{path} is not a release: {error.errors()[0]['msg']}; remove it and release the version again") from error


def drift_alert(dataset: Dataset, watch: Watch) -> Event | None:
    """``alert.fired`` if the dataset's version completed a sample that has drifted; its id follows from the manifest."""
    newest = watch.verdicts(dataset.version).newest
    if newest is None or newest.version != dataset.version or not newest.is_drifting:
        return None
    labels = {"dataset_version": str(newest.version), "features": ",".join(item.feature for item in newest.drifted)}
    data = AlertFired(name="dataset_drift", severity="warning", summary=f"{newest.sentence()}; {_remedy(newest)}", labels=labels)
    identity = f"drift-{newest.version}-{dataset.sha256[:16]}"
    manifest = dataset.manifest
    return new_event(
        data, id=identity, source=SOURCE, time=manifest.created_at, subject=f"dataset/{newest.version}", traceparent=manifest.traceparent
    )


def _remedy(report: DriftReport) -> str:
    return f"look at `headrace datasets report --version {report.version}`; if it is meant, `headrace datasets release {report.version}`"


def _about(version: int | None, found: Verdicts) -> list[DriftReport]:
    return [report for report in found.reports if version is None or report.first <= version <= report.version]


def _all_verdicts(root: Path, settings: DriftSettings) -> Verdicts:
    """From version 1 on: what an old version was compared with, no state says."""
    numbered = ((number, version_statistics(root, read_manifest(root, number))) for number in range(1, latest_version(root) + 1))
    return verdicts(numbered, settings, released_versions(root))


def report_on(root: Path, version: int | None, settings: DriftSettings) -> DriftReport:
    """The report about the sample that holds ``version`` (default: the newest sample). Raises DatasetNotFound, DatasetError if none does."""
    newest = Dataset(root, version).version
    found = Watch(root, settings).verdicts()
    reports = _about(version, found)
    if not reports and version is not None and version not in found.waiting:
        reports = _about(version, _all_verdicts(root, settings))
    if not reports:
        raise DatasetError(
            f"dataset version {newest} is not judged yet: it and the versions with it hold fewer than {settings.min_documents} records "
            "(drift.min_documents); ingest more, or lower the setting"
        )
    return reports[-1]
