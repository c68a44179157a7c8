"""Fitted models at work: what they tell apart, their thresholds, their files, and that no text can break them."""

import hashlib
import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pipelines.quality.classifier import auc
from pipelines.quality.fit import FitOptions, Fitted, fit_language
from pipelines.quality.models import QualityModels, Scores, load_quality_models, read_model, write_model
from schemas.errors import QualityModelCorrupt, SettingsError
from schemas.settings import Settings, data_fingerprint
from schemas.settings_quality_model import QualityModelSettings

CORPUS = Path(__file__).parents[3] / "shared" / "corpus" / "documents.jsonl.zst"
SOURCES = {
    "en": ("debian-handbook", "anarchism", "python3.11-doc", "libreoffice-help-en-us"),
    "zh": ("libreoffice-help-zh-cn", "debian-handbook", "debian-faq-zh-cn"),
}
NOTHING = pa.array([], pa.large_string())
TOPICS = ("The river carries water to the mill", "A baker sells bread in the town", "Ships bring tea over the sea", "Snow lies deep on the hills")
SEASONS = ("May", "June", "winter", "autumn")


def strings(texts: list[str]) -> pa.Array:
    return pa.array(texts, pa.large_string())


def stories(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return ["\n\n".join(f"{rng.choice(TOPICS)} in {rng.choice(SEASONS)}, year {rng.randint(1000, 9999)}." for _ in range(6)) for _ in range(count)]


def log_line(rng: random.Random) -> str:
    level = rng.choice(["INFO", "WARN"])
    return f"2026-{rng.randint(1, 12):02}-{rng.randint(1, 28):02} {level} svc[{rng.randint(1, 9999)}]: id={rng.getrandbits(48):x} status=500"


def logs(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return ["\n".join(log_line(rng) for _ in range(12)) for _ in range(count)]


@pytest.fixture(scope="module")
def fitted() -> Fitted:
    return fit_language(strings(stories(400)), strings(stories(400, 1)), strings(logs(200)), FitOptions())


@pytest.fixture(scope="module")
def root(fitted: Fitted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("root")
    write_model(folder, {"en": fitted})
    return folder


@pytest.fixture(scope="module")
def models(root: Path) -> QualityModels:
    return models_under(root)


def sha_of(root: Path) -> str:
    return next((root / "quality").iterdir()).name


def models_under(root: Path, **options: Any) -> QualityModels:
    found = load_quality_models(Settings(root=str(root), quality_model=QualityModelSettings(path=sha_of(root), **options)))
    assert found is not None
    return found


def score(models: QualityModels, texts: list[str], language: str = "en") -> Scores:
    return models.score(strings(texts), pa.array([language] * len(texts), pa.string()))


def values(column: pa.Array) -> npt.NDArray[np.float64]:
    return np.nan_to_num(np.asarray(column.to_numpy(zero_copy_only=False), np.float64))


def test_what_reads_like_the_references_is_accepted_and_logs_are_not(models: QualityModels) -> None:
    good, bad = score(models, stories(50, 5)), score(models, logs(50, 5))
    assert good.rules.null_count >= 42
    assert set(bad.rules.to_pylist()) <= {"perplexity/too_high", "quality/too_low"}
    assert min(values(good.quality)) > 0.5 > max(values(bad.quality))
    assert good.quality.type == good.perplexity.type == good.informativeness.type == pa.float32()


def test_hold_out_metrics_are_kept_with_the_model(models: QualityModels) -> None:
    card = models.model.card.languages["en"].classifier
    assert card is not None
    assert (card.num_good, card.held_out_good, card.held_out_bad) == (350, 50, 50)
    assert min(card.accuracy, card.auc, card.f1) >= 0.9


def test_languages_without_a_model_and_empty_documents_have_no_scores(models: QualityModels) -> None:
    scores = models.score(strings(["Ein Satz auf Deutsch.", "", " \n\n "]), pa.array(["de", "en", None], pa.string()))
    assert [column.null_count for column in scores] == [3, 3, 3, 3]
    empty = models.score(NOTHING, pa.array([], pa.string()))
    assert [len(column) for column in empty] == [0, 0, 0, 0]


def test_a_model_for_any_language_is_for_those_without_their_own(fitted: Fitted, tmp_path: Path) -> None:
    write_model(tmp_path, {"*": fitted})
    assert score(models_under(tmp_path), stories(3), "de").perplexity.null_count == 0
    strict = models_under(tmp_path, max_perplexity=("de=1",), min_quality=("*=0",), min_informativeness=("*=0",))
    assert score(strict, stories(1), "de").rules.to_pylist() == ["perplexity/too_high"]
    assert score(strict, stories(1), "fr").rules.to_pylist() == [None]


def test_repetition_and_gibberish_tell_nothing(models: QualityModels) -> None:
    scores = values(score(models, [stories(1, 9)[0], "the " * 200, "qzx vbn wrt klp " * 30]).informativeness)
    assert scores[0] > 2 * scores[1]
    assert scores[2] == 0


def test_each_rule_has_a_quantile_and_an_absolute_threshold(root: Path) -> None:
    text = stories(1, 7)
    off = {"max_perplexity_quantile": 1, "min_quality_quantile": 0, "min_informativeness_quantile": 0}
    assert score(models_under(root, **off), text).rules.to_pylist() == [None]
    for name, rule in (("max_perplexity", "perplexity/too_high"), ("min_perplexity", "perplexity/too_low")):
        bound = "1" if name.startswith("max") else "1e8"
        assert score(models_under(root, **off, **{name: (f"en={bound}",)}), text).rules.to_pylist() == [rule]
    for name in ("quality", "informativeness"):
        assert score(models_under(root, **off, **{f"min_{name}": ("de=0", "*=99")}), text).rules.to_pylist() == [f"{name}/too_low"]
    assert score(models_under(root, **off | {"min_perplexity_quantile": 1}), text).rules.to_pylist() == ["perplexity/too_low"]


def test_settings_name_a_model_by_its_hash(root: Path) -> None:
    assert load_quality_models(Settings(root=str(root))) is None
    with pytest.raises(ValueError, match="SHA-256"):
        QualityModelSettings(path="quality/mine")
    with pytest.raises(ValueError, match="language=value"):
        QualityModelSettings(max_perplexity=("2000",))
    with pytest.raises(SettingsError, match="no quality model"):
        load_quality_models(Settings(root=str(root), quality_model=QualityModelSettings(path="0" * 64)))
    first, second = (data_fingerprint(Settings(quality_model=QualityModelSettings(path=letter * 64))) for letter in "ab")
    assert first != second


def test_a_damaged_file_is_found_when_the_model_is_read(fitted: Fitted, tmp_path: Path) -> None:
    folder = tmp_path / "quality" / write_model(tmp_path, {"en": fitted})
    for name in ("en.grams.npy", "model.json"):
        path = folder / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(QualityModelCorrupt, match=name):
            read_model(folder)
        path.write_bytes(whole)
    other = b'{"format": 2, "languages": {}, "files": {}}'
    newer = folder.parent / hashlib.sha256(other).hexdigest()
    newer.mkdir()
    (newer / "model.json").write_bytes(other)
    with pytest.raises(QualityModelCorrupt, match="another format"):
        read_model(newer)
    (folder / "en.idf.npy").unlink()
    with pytest.raises(QualityModelCorrupt, match=r"en\.idf\.npy"):
        read_model(folder)


def test_the_same_documents_give_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    hashes = set()
    for step in (1, -1):
        documents = stories(60)[::step] + stories(60)[:5]
        fitted = fit_language(strings(documents), strings(stories(60, 1)[::step]), strings(logs(60)[::step]), FitOptions())
        hashes.add(write_model(tmp_path, {"en": fitted}))
    assert len(hashes) == 1


def test_too_few_documents_give_no_model() -> None:
    fitted = fit_language(strings(stories(1) * 50), strings(stories(50)), strings(logs(5)), FitOptions())
    assert fitted.card == type(fitted.card)()


TEXTS = st.lists(
    st.text(max_size=200) | st.sampled_from([*stories(3), *logs(2), "x" * 3000, "\n" * 50, "你好，世界。" * 9, "\u200d\ufe0f😀" * 5]), max_size=12
)


@hypothesis_settings(max_examples=80, deadline=None)
@given(texts=TEXTS, cut=st.integers(0, 12))
def test_scores_of_any_text_are_there_and_do_not_depend_on_the_batch(models: QualityModels, texts: list[str], cut: int) -> None:
    whole = score(models, texts)
    parts = [score(models, texts[:cut]), score(models, texts[cut:])]
    for together, *apart in zip(whole, *parts, strict=True):
        assert together.equals(pa.concat_arrays(apart))
    for column in whole[:3]:
        assert np.isfinite(values(column)).all()
    assert all(0 <= value <= 1 for value in values(whole.quality))


@hypothesis_settings(max_examples=20, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=20), min_size=50, max_size=60, unique=True), st.integers(2, 6), st.integers(0, 2))
def test_any_documents_can_be_fitted(texts: list[str], order: int, prune: int) -> None:
    fitted = fit_language(strings(texts), strings(texts), strings(texts), FitOptions(order, prune))
    assert all(np.isfinite(part).all() for part in (fitted.parts.idf, fitted.parts.classifier, fitted.parts.language_model.unigrams))


@cache
def corpus() -> dict[str, list[str]]:
    """Documents with some prose in them, shuffled, by language."""
    if not CORPUS.is_file():
        pytest.skip(f"there is no corpus in {CORPUS.parent}")
    sources = {f'"source": "{source}"'.encode() for sources in SOURCES.values() for source in sources}
    found: dict[str, list[str]] = {language: [] for language in SOURCES}
    with pa.CompressedInputStream(pa.OSFile(str(CORPUS)), "zstd") as stream:
        for line in stream.read().split(b"\n"):
            mark = line[line.find(b'"source": ') :].partition(b",")[0]
            document = json.loads(line) if mark in sources and len(line) > 500 else {}
            if document.get("source") in SOURCES.get(document.get("lang", ""), ()):
                found[document["lang"]].append(document["text"][:6000])
    for texts in found.values():
        random.Random(0).shuffle(texts)
    return found


def shuffled(text: str, language: str, rng: random.Random) -> str:
    """Its words (Chinese: its characters) in any order."""
    units = text.split() if language == "en" else list(text)
    rng.shuffle(units)
    return (" " if language == "en" else "").join(units)


def mashed(text: str, language: str, rng: random.Random) -> str:
    """What a cat types."""
    return " ".join("".join(rng.choices("asdfghjklqwertyuiop;,./", k=rng.randint(2, 10))) for _ in range(len(text) // 8 + 5))


def misread(text: str, language: str, rng: random.Random) -> str:
    """Its bytes in another encoding."""
    return text.encode().decode("utf-16-le" if language == "en" else "latin-1", "replace")


@pytest.mark.parametrize("language", SOURCES)
def test_broken_text_has_a_higher_perplexity_than_unseen_clean_text(language: str, tmp_path: Path) -> None:
    texts = corpus()[language][:1700]
    training, held_out = texts[:-200], texts[-200:]
    write_model(tmp_path, {language: fit_language(strings(training), NOTHING, NOTHING, FitOptions())})
    models = models_under(tmp_path)
    clean = values(score(models, held_out, language).perplexity)
    rng = random.Random(1)
    for breaking in (shuffled, mashed, misread):
        broken = values(score(models, [breaking(text, language, rng) for text in held_out], language).perplexity)
        assert auc(broken, clean) > 0.9, breaking.__name__


def test_code_and_logs_are_told_from_prose() -> None:
    code = [path.read_text("utf-8")[:4000] for path in sorted(Path(json.__file__).parent.parent.glob("*.py"))]
    garbage = [text for text in code if len(text) > 300] + logs(100)
    fitted = fit_language(NOTHING, strings(corpus()["en"][:600]), strings(garbage), FitOptions())
    assert fitted.card.classifier is not None
    assert fitted.card.classifier.auc > 0.95
