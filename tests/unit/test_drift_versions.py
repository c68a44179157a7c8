"""Drift: a changed stream is noticed, chance is not, and what a person releases is the new normal."""

import random
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipelines.dataset.dataset import Dataset
from pipelines.dataset.statistics import Statistics
from pipelines.drift import watch as drift_watch
from pipelines.drift.drift import chance_psi, feature_drift, jensen_shannon, verdicts
from pipelines.drift.state import FILE as STATE_FILE
from pipelines.drift.watch import Watch, drift_alert, release, report_on
from ray_apps.loop.disk import Disk
from ray_apps.loop.plan import Step, TrainingOrder, plan
from schemas.errors import DatasetError, DatasetNotFound
from schemas.events import AlertFired
from schemas.settings import LoopSettings
from schemas.settings_drift import DriftSettings
from schemas.statistics import VersionStatistics
from tests.factories import commit_records
from tests.ingest_harness import CHINESE, ENGLISH, document
from tests.unit.test_statistics_versions import documents

COMMIT = datetime(2026, 1, 1, tzinfo=UTC)
SETTINGS = DriftSettings(min_documents=100)


def sample(chinese: float, number: int = 400, seed: int = 0) -> VersionStatistics:
    """Statistics of documents of which this share is Chinese."""
    rng = random.Random(seed)
    rows = [{"language": "zh" if rng.random() < chinese else "en", "num_chars": rng.randrange(50, 500), "num_tokens": 9} for _ in range(number)]
    statistics = Statistics()
    statistics.add(documents(rows))
    return statistics.finish(COMMIT)


def judged(*shares: float, released: tuple[int, ...] = ()) -> list[bool]:
    parts = [(number + 1, sample(share, seed=number)) for number, share in enumerate(shares)]
    return [report.is_drifting for report in verdicts(parts, SETTINGS, released).reports]


def test_a_changed_share_of_chinese_is_drift_and_an_unchanged_one_is_not() -> None:
    found = verdicts([(1, sample(0.3, seed=1)), (2, sample(0.3, seed=2)), (3, sample(0.8, seed=3))], SETTINGS)
    assert [report.is_drifting for report in found.reports] == [False, False, True]
    (language,) = found.reports[2].drifted
    assert language.feature == "language" and language.psi > 0.2
    assert {part.bin for part in language.contributions} == {"zh", "en"}
    assert "language (PSI" in found.reports[2].sentence() and "before" in found.reports[2].sentence()


def test_a_drift_does_not_become_its_own_baseline() -> None:
    assert judged(0.3, 0.3, *[0.9] * 12, 0.3) == [False, False, *[True] * 12, False]


def test_what_a_person_released_is_the_new_normal() -> None:
    assert judged(0.3, 0.3, 0.9, 0.9, 0.9, released=(3,)) == [False] * 5
    assert judged(0.3, 0.3, 0.9, 0.9, 0.3, released=(3,)) == [False, False, False, False, True]


def test_small_versions_are_judged_together() -> None:
    parts = [(number + 1, sample(0.3 if number < 8 else 0.9, number=30, seed=number)) for number in range(14)]
    found = verdicts(parts, SETTINGS)
    assert [(report.first, report.version) for report in found.reports] == [(1, 4), (5, 8), (9, 12)]
    assert [report.is_drifting for report in found.reports] == [False, False, True]
    assert found.waiting == (13, 14)


def test_chance_is_no_drift() -> None:
    rng = random.Random(0)
    for number in (30, 120, 500):
        now, before = (Counter(str(min(29, int(rng.expovariate(0.2)))) for _ in range(number)) for _ in range(2))
        drift = feature_drift("source", now, before, SETTINGS)
        assert not drift.is_over and drift.psi < drift.chance_psi


def test_the_divergences_have_their_textbook_values() -> None:
    assert jensen_shannon([0.5, 0.5], [0.5, 0.5]) == 0
    assert jensen_shannon([1 - 1e-12, 1e-12], [1e-12, 1 - 1e-12]) == pytest.approx(1)
    drift = feature_drift("language", {"en": 500_000, "zh": 500_000}, {"en": 900_000, "zh": 100_000}, SETTINGS)
    assert drift.psi == pytest.approx(0.4 * 2.1972, rel=1e-3)  # (.5-.9) ln(.5/.9) + (.5-.1) ln(.5/.1)
    assert drift.js == pytest.approx(0.1468, rel=1e-2)
    assert chance_psi(2, 10**6, 10**6) < 1e-4


def test_features_without_counts_on_both_sides_are_not_compared() -> None:
    names = {item.feature for item in verdicts([(1, sample(0.3)), (2, sample(0.3))], SETTINGS).reports[1].features}
    assert names == {"source", "language", "length", "outcome"}


def batch(prefix: str, chinese: float, number: int = 60) -> list[tuple[bytes | None, bytes | None]]:
    rng = random.Random(prefix)
    words, letters = ENGLISH.split(), list(CHINESE)
    texts = ["".join(rng.choices(letters, k=60)) if rng.random() < chinese else " ".join(rng.choices(words, k=40)) for _ in range(number)]
    records = [document(f"{prefix}-{index}", text, 0) for index, text in enumerate(texts)]
    return [(record.key, record.value) for record in records]


def orders(root: Path, settings: DriftSettings) -> list[Step]:
    """What a loop that starts now would do."""
    return plan(Disk(root, settings).view(), LoopSettings(min_new_tokens=1))


def test_a_drifting_version_fires_one_alert_and_holds_training_until_it_is_released(tmp_path: Path) -> None:
    settings = DriftSettings(min_documents=40, hold_training=True)
    watch = Watch(tmp_path, settings)
    for version, prefix in ((1, "a"), (2, "b")):
        commit_records(tmp_path, batch(prefix, 0.2))
        assert watch.held(version) is None and drift_alert(Dataset(tmp_path), watch) is None
    commit_records(tmp_path, batch("c", 1.0))
    assert watch.held(2) is None, "what comes later says nothing about a version"
    held = watch.held(3)
    assert held is not None and "language" in held and "headrace datasets release 3" in held
    first, again = drift_alert(Dataset(tmp_path), watch), drift_alert(Dataset(tmp_path), Watch(tmp_path, settings))
    assert first is not None and first == again
    assert isinstance(first.data, AlertFired) and first.data.name == "dataset_drift" and first.subject == "dataset/3"
    assert Watch(tmp_path, DriftSettings(min_documents=40)).held(3) is None, "holding is a choice"
    assert not orders(tmp_path, settings) and orders(tmp_path, DriftSettings())
    commit_records(tmp_path, batch("d", 0.2))
    assert watch.held(4) == held, "versions hold what came before them"
    assert watch.held(4, trained=3) is None, "what was trained on already cannot be held back"
    written, is_new = release(tmp_path, 3, "we want Chinese", COMMIT)
    assert is_new and release(tmp_path, 3, "again", COMMIT) == (written, False)
    assert watch.held(3) is None and drift_alert(Dataset(tmp_path, 3), watch) is None
    assert report_on(tmp_path, 3, settings).is_released
    assert "headrace datasets release 4" in (watch.held(4) or ""), "version 4 is unlike the released one"
    release(tmp_path, 4, "and all else", COMMIT)
    assert orders(tmp_path, settings) == [TrainingOrder(dataset_version=4, parent_model=None)]


def test_who_goes_on_from_a_saved_state_says_what_a_reading_from_version_1_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift_watch, "SAVE_EVERY", 2)
    settings = DriftSettings(min_documents=40, baseline_versions=1, hold_training=True)
    state = tmp_path / "drift" / STATE_FILE
    state.parent.mkdir()
    writer = Watch(tmp_path, settings, is_writer=True)

    def told(version: int) -> tuple[object, ...]:
        watch = Watch(tmp_path, settings)
        found = watch.verdicts(version)
        return found.newest, found.waiting, [watch.held(version, trained) for trained in range(version)]

    for version, chinese in enumerate((0.2, 0.2, 1.0, 0.2, 0.2), start=1):
        commit_records(tmp_path, batch(str(version), chinese, 60 if version < 5 else 30))
        writer.verdicts(version)
        kept = state.read_bytes() if state.exists() else b""
        with_state = told(version)
        state.unlink(missing_ok=True)
        assert told(version) == with_state
        state.write_bytes(kept)
        assert told(version) == with_state, "nothing of an empty or older state stands in the way"
    assert with_state[1] == (5,) and len(writer.verdicts().reports) == 2, "one that drifted, and the newest"
    first = tmp_path / "log" / "00000001.json"
    hidden = first.rename(tmp_path / "hidden")
    assert told(5) == with_state, "only the baseline is read again, and what came since"
    hidden.rename(first)
    assert report_on(tmp_path, 2, settings).version == 2, "older than the state"
    release(tmp_path, 3, "meant", COMMIT)
    assert Watch(tmp_path, settings).held(5) != with_state[2], "a release is a new reading"


def test_a_state_that_cannot_be_kept_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(drift_watch, "SAVE_EVERY", 1)
    (tmp_path / "drift" / STATE_FILE).mkdir(parents=True)
    commit_records(tmp_path, batch("a", 0.2))
    found = Watch(tmp_path, DriftSettings(min_documents=40), is_writer=True).verdicts()
    assert [report.version for report in found.reports] == [1] and "could not be written" in caplog.text
    assert [path.name for path in (tmp_path / "drift").iterdir()] == [STATE_FILE], "no temporary file stays"


def test_only_versions_that_exist_are_released_and_judged(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFound):
        release(tmp_path, 1, "", COMMIT)
    commit_records(tmp_path, batch("a", 0.5))
    with pytest.raises(DatasetNotFound, match="no dataset version 2"):
        release(tmp_path, 2, "", COMMIT)
    with pytest.raises(DatasetError, match=r"drift\.min_documents"):
        report_on(tmp_path, None, DriftSettings())
