"""Decides which documents of a batch are kept, and with which text: normalize, language, known lines, mojibake, rules, personal data, models.

The steps run in this order. Each sees the documents that passed the step before, with the text that it left. The first broken rule is the verdict.
Invariant: a verdict depends on the document and the settings alone, not on its batch; no text raises.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.dedup.paragraphs import EMPTY, take_out_known
from pipelines.quality.models import Scores, load_quality_models
from pipelines.steps.language import UNDETERMINED, detect_languages
from pipelines.steps.normalize import normalize
from pipelines.steps.pii import redact
from pipelines.steps.quality import judge
from pipelines.steps.unreadable import MOJIBAKE, find_unreadable
from schemas.arrow import PARAGRAPHS
from schemas.settings import Settings

REPLACEMENT = "\ufffd"
_DECLARED = r"^\s*([A-Za-z]{2,3})(?:[-_].*)?$"


class Assessed(NamedTuple):
    """One element per document."""

    texts: pa.Array
    """large_string: normalized, cleaned and redacted; null where rejected."""
    rules: pa.Array
    """string: the first broken rule; null: accepted."""
    languages: pa.Array
    """string: ISO 639 code."""
    num_chars: pa.Array
    """int64: characters before redaction."""
    num_replaced: pa.Array
    """int64: number of U+FFFD among the characters."""
    pii: pa.Array
    """schemas.arrow.PII_COUNTS; null for what the quality rules rejected."""
    scores: Scores
    """Null for what was rejected before, and without models."""
    paragraphs: pa.Array
    """schemas.arrow.PARAGRAPHS, of the normalized text with all its lines; null where rejected, and where ``dedup.boilerplate`` is off."""


def assess(texts: pa.Array, declared_languages: pa.ChunkedArray, settings: Settings, known: npt.NDArray[np.uint64] = EMPTY.hashes) -> Assessed:
    """Assess each text (``string`` or ``large_string``, no nulls). ``known``: hashes of the lines to take out, ascending.

    Raises only for the operator's own models, which the settings name.
    """
    normalized = normalize(texts)
    languages = _languages(normalized.texts, declared_languages)
    cleaned, paragraphs = _without_boilerplate(normalized.texts, known, settings)
    judged = judge(cleaned, languages, normalized.num_controls, settings)
    judged = judged._replace(rules=pc.if_else(pa.array(find_unreadable(normalized.texts)), MOJIBAKE, judged.rules))
    accepted = np.flatnonzero(judged.rules.is_null())
    redacted = redact(judged.texts.take(pa.array(accepted)), settings.pii)
    clean = accepted[redacted.rules.is_null()]
    scores = _scores(redacted.texts.filter(redacted.rules.is_null()), languages.take(pa.array(clean)), settings)
    at, at_clean = positions(accepted, len(texts)), positions(clean, len(texts))
    rules = pc.coalesce(judged.rules, redacted.rules.take(at), scores.rules.take(at_clean))
    finished = pc.if_else(rules.is_null(), redacted.texts.take(at), pa.scalar(None, pa.large_string()))
    scores = Scores(*(column.take(at_clean) for column in scores))
    paragraphs = paragraphs.filter(rules.is_null()).take(positions(np.flatnonzero(rules.is_null()), len(texts)))
    return Assessed(finished, rules, languages, judged.num_chars, _num_replaced(normalized.texts), redacted.counts.take(at), scores, paragraphs)


def _num_replaced(texts: pa.Array) -> pa.Array:
    series: Any = pl.from_arrow(texts)
    return series.str.count_matches(REPLACEMENT, literal=True).to_arrow().cast(pa.int64())


def _without_boilerplate(texts: pa.Array, known: npt.NDArray[np.uint64], settings: Settings) -> tuple[pa.Array, pa.Array]:
    """The texts without the known lines, and the hashes of all their lines, for later versions to know."""
    if not settings.dedup.boilerplate:
        return texts, pa.nulls(len(texts), PARAGRAPHS)
    return take_out_known(texts, known, settings.dedup.boilerplate_min_chars)


def positions(chosen: npt.NDArray[np.int64], num_rows: int) -> pa.Array:
    """For each row its number among the chosen ones, null if it is not chosen: ``take`` spreads a column of the chosen over all rows."""
    numbers = np.full(num_rows, -1, np.int64)
    numbers[chosen] = np.arange(len(chosen))
    return pa.array(numbers, mask=numbers < 0)


def _languages(texts: pa.Array, declared: pa.ChunkedArray) -> pa.Array:
    """The detected language; where that is unsure, the one that the producer declared, if it is a language code."""
    series: Any = pl.from_arrow(declared)
    codes = series.cast(pl.String).str.extract(_DECLARED).str.to_lowercase().to_arrow().cast(pa.string())
    detected = detect_languages(texts)
    unsure = pc.and_(pc.equal(detected, UNDETERMINED), codes.is_valid())
    return pc.if_else(unsure, codes, detected)


def _scores(texts: pa.Array, languages: pa.Array, settings: Settings) -> Scores:
    models = load_quality_models(settings)
    if models is not None:
        return models.score(texts, languages)
    none = pa.nulls(len(texts), pa.float32())
    return Scores(none, none, none, pa.nulls(len(texts), pa.string()))
