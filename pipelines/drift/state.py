"""The state of drift after a version, so that a later start does not read the statistics of months: ``<root>/drift/state.json``.

It is never the truth: it follows from the manifests up to its version, the releases up to it and the settings, and it names all three; where they
are others now, or it cannot be read, judging begins with version 1. It may be removed at any time.
What is kept is what later verdicts need: which versions were accepted as the baseline, which wait to make up a sample, and two reports, the newest
one and the newest one that drifted and that no release has settled since.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path

from pydantic import Field, ValidationError

from pipelines.dataset.dataset import dataset_log
from pipelines.dataset.statistics import merged
from pipelines.drift.drift import DriftReport, Judge, Sample
from pipelines.storage.durable import replace_durably
from pipelines.storage.store import read_bytes
from schemas.errors import DatasetNotFound
from schemas.record import Record
from schemas.settings_drift import DriftSettings
from schemas.statistics import VersionStatistics

FILE = "state.json"
SAVE_EVERY = 64
"""Versions between two states: what has to be read again at most."""
_log = logging.getLogger(__name__)
StatisticsOf = Callable[[int], VersionStatistics]


class DriftState(Record):
    """Where judging stood after a version."""

    version: int = Field(ge=1)
    """The version."""
    of: str
    """Fingerprint of what this follows from."""
    accepted: tuple[tuple[int, int], ...]
    """First and last version of each sample of the baseline."""
    waiting: tuple[int, ...]
    """Versions that do not make up a sample yet."""
    reports: tuple[DriftReport, ...]
    """The reports that later questions can be about."""
    sha256: str | None = None
    """SHA-256 of the other fields, as JSON; None: the state was written before this field existed."""

    def digest(self) -> str:
        """The value that ``sha256`` must have."""
        return hashlib.sha256(self.model_dump_json(exclude={"sha256"}).encode()).hexdigest()


def save_state(root: Path, folder: str, version: int, judge: Judge, settings: DriftSettings, released: frozenset[int]) -> None:
    """Write where judging stands after this version."""
    state = DriftState(
        version=version,
        of=_fingerprint(root, version, settings, released),
        accepted=tuple((sample.first, sample.version) for sample in judge.accepted),
        waiting=judge.verdicts().waiting,
        reports=judge.verdicts().reports,
    )
    replace_durably(root / folder / FILE, state.model_copy(update={"sha256": state.digest()}).model_dump_json().encode())


def load_state(
    root: Path, folder: str, settings: DriftSettings, released: frozenset[int], newest: int, statistics_of: StatisticsOf
) -> tuple[int, Judge] | None:
    """The version and a judge that stands behind it; none if nothing usable is there, or only about later versions than ``newest``."""
    try:
        state = DriftState.model_validate_json(read_bytes(root / folder / FILE))
        if state.sha256 not in (None, state.digest()):
            _log.warning("%s is damaged; drift is computed again from the first version", root / folder / FILE)
            return None
        if state.version > newest or state.of != _fingerprint(root, state.version, settings, released):
            return None
    except (OSError, ValidationError, DatasetNotFound):
        return None
    accepted = [Sample(first, last, merged(statistics_of(version) for version in range(first, last + 1))) for first, last in state.accepted]
    waiting = [Sample(version, version, statistics_of(version)) for version in state.waiting]
    return state.version, Judge(settings, released, accepted, waiting, state.reports)


def _fingerprint(root: Path, version: int, settings: DriftSettings, released: frozenset[int]) -> str:
    decisive = [settings.model_dump(mode="json", exclude={"hold_training"}), sorted(number for number in released if number <= version)]
    manifest = hashlib.sha256(dataset_log(root).read(version)).hexdigest()
    return hashlib.sha256(json.dumps([decisive, manifest], sort_keys=True).encode()).hexdigest()
