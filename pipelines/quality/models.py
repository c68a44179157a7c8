"""Quality models on disk and at work: ``<root>/quality/<sha256 of model.json>/``, immutable, read through memory maps.

    model.json                                         what it is, quantiles for thresholds, SHA-256 of the files below
    <language>.{vocabulary,unigrams,grams}.npy         the language model      <language>.units.txt   names of its units, for export
    <language>.idf.npy                                 informativeness         <language>.classifier.npy
NumPy's own format, read without pickle. The hash is part of ``quality_model.path``, so the settings fingerprint changes with the content.

Cost: scoring is one pass for all models, 20 to 30 MB/s on one core; loading hashes the files once per process (about 1 GB/s).
"""

import functools
import hashlib
import io
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import ValidationError

from pipelines.quality.card import MODEL_FILE, NUM_QUANTILES, LanguageCard, ModelCard
from pipelines.quality.fit import Fitted
from pipelines.quality.perplexity import language_model
from pipelines.quality.scoring import INFORMATIVENESS, PERPLEXITY, QUALITY, Parts, empty_parts, score_rows
from pipelines.storage.durable import durable_folder, sha256_file
from pipelines.storage.store import is_folder, is_there, local, names, read_bytes, refetch
from pipelines.text.buffers import utf8_views
from schemas.errors import QualityModelCorrupt, SettingsError
from schemas.settings import Settings
from schemas.settings_quality_model import QualityModelSettings

FOLDER = "quality"
ANY_LANGUAGE = "*"
RULES = ("perplexity/too_high", "perplexity/too_low", "quality/too_low", "informativeness/too_low")


class Scores(NamedTuple):
    """Of n documents; null where the document's language has no such model, or the document no word."""

    quality: pa.Array
    """float32: probability of good."""
    perplexity: pa.Array
    """float32, per token."""
    informativeness: pa.Array
    """float32: nats per term."""
    rules: pa.Array
    """string: the first rule that the document breaks; null: accepted."""


class Model(NamedTuple):
    """A quality model as it was read."""

    sha256: str
    folder: Path
    card: ModelCard
    parts: dict[str, Parts]
    """By language."""


class QualityModels:
    """A model with the thresholds of the settings."""

    def __init__(self, model: Model, settings: QualityModelSettings) -> None:
        self.model = model
        self.settings = settings

    def score(self, texts: pa.Array, languages: pa.Array) -> Scores:
        """Scores and verdicts of normalized texts (``large_string``) in these languages (codes, ``string``)."""
        views = utf8_views(texts)
        coded = languages.cast(pa.string()).fill_null("").dictionary_encode()
        numbers = coded.indices.to_numpy()
        scores = np.full((len(texts), 3), np.nan, np.float32)
        broken = np.zeros((len(texts), len(RULES) + 1), bool)
        broken[:, -1] = True
        for number, code in enumerate(coded.dictionary.to_pylist()):
            language = code if code in self.model.parts else ANY_LANGUAGE
            if language in self.model.parts:
                bounds = thresholds(code, self.model.card.languages[language], self.settings)
                rows = np.flatnonzero(numbers == number)
                scores[rows] = score_rows(views, rows, self.model.parts[language])
                broken[rows, :-1] = _broken(scores[rows], bounds)
        rules = pa.array([*RULES, None], pa.string()).take(pa.array(np.argmax(broken, axis=1)))
        quality, perplexity, informativeness = (_nullable(scores[:, column]) for column in (QUALITY, PERPLEXITY, INFORMATIVENESS))
        return Scores(quality, perplexity, informativeness, rules)


def _nullable(column: npt.NDArray[np.float32]) -> pa.Array:
    return pa.array(column, pa.float32(), mask=np.isnan(column))


def _broken(scores: npt.NDArray[np.float32], bounds: tuple[float, ...]) -> npt.NDArray[np.bool_]:
    """One column for each of RULES; NaN, as a score or as a bound, breaks none."""
    above, below, quality, informativeness = bounds
    perplexity = scores[:, PERPLEXITY]
    columns = (perplexity > above, perplexity < below, scores[:, QUALITY] < quality, scores[:, INFORMATIVENESS] < informativeness)
    return np.stack(columns, axis=1)


def thresholds(language: str, card: LanguageCard, settings: QualityModelSettings) -> tuple[float, ...]:
    """The bound of each of RULES for documents of a language, under the models of that card; NaN: switched off, or no such model."""
    perplexity = card.perplexity.quantiles if card.perplexity else ()
    good = card.classifier.quantiles if card.classifier else ()
    informative = card.informativeness.quantiles if card.informativeness else ()
    return (
        _bound(language, settings.max_perplexity, perplexity, settings.max_perplexity_quantile, off=1.0),
        _bound(language, settings.min_perplexity, perplexity, settings.min_perplexity_quantile, off=0.0),
        _bound(language, settings.min_quality, good, settings.min_quality_quantile, off=0.0),
        _bound(language, settings.min_informativeness, informative, settings.min_informativeness_quantile, off=0.0),
    )


def _bound(language: str, absolute: tuple[str, ...], grid: tuple[float, ...], quantile: float, *, off: float) -> float:
    given = dict(entry.split("=") for entry in absolute)
    value = given.get(language, given.get(ANY_LANGUAGE))
    if value is not None:
        return float(value)
    if quantile == off or not grid:
        return float("nan")
    return float(np.interp(quantile * NUM_QUANTILES, np.arange(NUM_QUANTILES + 1), grid))


def load_quality_models(settings: Settings) -> QualityModels | None:
    """The models that the settings name, None if they name none; read and checked once per process.

    Raises SettingsError if the folder is not there, QualityModelCorrupt if its bytes are not those that its name promises.
    """
    options = settings.quality_model
    return _loaded(model_folder(settings.root, options.path), options) if options.path else None


def model_folder(root: str, path: str) -> Path:
    """Where ``quality_model.path`` points: a bare hash is a model under the root."""
    return Path(root, FOLDER, path) if re.fullmatch("[0-9a-f]{64}", path) else Path(path)


@functools.lru_cache(maxsize=4)
def _loaded(folder: Path, settings: QualityModelSettings) -> QualityModels:
    return QualityModels(read_model(folder), settings)


def read_card(folder: Path) -> ModelCard:
    """What a model is, its hash checked; see read_model."""
    try:
        data = read_bytes(folder / MODEL_FILE)
    except OSError as error:
        raise SettingsError(f"there is no quality model in {folder}; `headrace quality list` shows those under the root") from error
    found = hashlib.sha256(data).hexdigest()
    if found != folder.name:
        raise QualityModelCorrupt(f"{folder / MODEL_FILE} has SHA-256 {found}, its folder's name says another: restore or fit it again")
    try:
        return ModelCard.model_validate_json(data)
    except ValidationError as error:
        raise QualityModelCorrupt(f"{folder / MODEL_FILE} is of another format; use the Headrace that wrote it, or fit the model again") from error


def read_model(folder: Path) -> Model:
    """Read a model through memory maps; every file's SHA-256 is checked."""
    card = read_card(folder)
    for name, promised in card.files.items():
        path = folder / name
        if not _is_sound(path, promised):
            raise QualityModelCorrupt(f"{path} is missing or damaged (SHA-256 is not {promised}): restore or fit the model again")
    return Model(folder.name, folder, card, {language: _read_parts(folder, language, entry) for language, entry in card.languages.items()})


def _is_sound(path: Path, sha256: str) -> bool:
    try:
        return sha256_file(local(path)) == sha256 or (refetch(path) and sha256_file(path) == sha256)
    except FileNotFoundError:
        return False


def _read_parts(folder: Path, language: str, card: LanguageCard) -> Parts:
    def array(name: str) -> npt.NDArray[Any]:
        return np.asarray(np.load(folder / f"{_stem(language)}.{name}.npy", mmap_mode="r", allow_pickle=False))

    parts = empty_parts()
    if card.perplexity:
        bounds = np.array(card.perplexity.bounds, np.int64)
        parts = parts._replace(language_model=language_model(array("vocabulary"), array("unigrams"), array("grams"), bounds))
    if card.informativeness:
        parts = parts._replace(idf=array("idf"))
    return parts._replace(classifier=array("classifier")) if card.classifier else parts


def read_units(folder: Path, language: str) -> list[str]:
    """Names of the units of a language model by id."""
    return local(folder / f"{_stem(language)}.units.txt").read_text("utf-8").split("\n")


def write_model(root: Path, fitted: dict[str, Fitted]) -> str:
    """Write a model under the root, whole or not at all; returns its SHA-256. Writing the same model twice is harmless."""
    files = {name: data for language, model in sorted(fitted.items()) for name, data in _files(language, model).items()}
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    card = ModelCard(languages={language: model.card for language, model in sorted(fitted.items())}, files=hashes)
    data = (card.model_dump_json(indent=1) + "\n").encode()
    sha256 = hashlib.sha256(data).hexdigest()
    _publish(root / FOLDER / sha256, files | {MODEL_FILE: data})
    return sha256


def _publish(folder: Path, files: dict[str, bytes]) -> None:
    """A folder that is there already has the same bytes."""
    try:
        with durable_folder(folder, MODEL_FILE) as writing:
            for name, data in files.items():
                (writing / name).write_bytes(data)
    except OSError as error:
        if is_there(folder / MODEL_FILE):
            return
        if is_folder(folder):
            raise QualityModelCorrupt(f"{folder} is in the way: it holds no {MODEL_FILE}; move it away") from error
        raise


def _files(language: str, fitted: Fitted) -> dict[str, bytes]:
    model, idf, weights = fitted.parts
    arrays: dict[str, npt.NDArray[np.generic]] = {}
    if fitted.card.perplexity:
        arrays |= {"vocabulary": model.vocabulary, "unigrams": model.unigrams, "grams": model.grams}
    if fitted.card.informativeness:
        arrays |= {"idf": idf}
    if fitted.card.classifier:
        arrays |= {"classifier": weights}
    files = {f"{_stem(language)}.{name}.npy": _npy(array) for name, array in arrays.items()}
    return files | ({f"{_stem(language)}.units.txt": "\n".join(fitted.units).encode()} if fitted.units else {})


def _npy(array: npt.NDArray[np.generic]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _stem(language: str) -> str:
    return "all-languages" if language == ANY_LANGUAGE else language


def model_folders(root: Path) -> list[Path]:
    """Folders of the models under the root, sorted by name."""
    return sorted(root / FOLDER / name for name in names(root / FOLDER) if re.fullmatch("[0-9a-f]{64}", name))
