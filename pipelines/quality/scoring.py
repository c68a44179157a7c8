"""All scores of a batch in one compiled pass: each document is split into tokens once, and all models read those.

Invariant: a document's scores depend on its text and its language's models alone, never on the batch. A score that has no model, or a document
without a token (or term), is NaN.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from pipelines.quality.classifier import features_of, logit, probability
from pipelines.quality.informativeness import informativeness, terms_of
from pipelines.quality.perplexity import LanguageModel, language_model, log_probability, perplexity
from pipelines.quality.table import empty_table
from pipelines.quality.units import BREAK, Tokens, empty_tokens, longest, tokenize, unit_source
from pipelines.quality.vocabulary import encode
from pipelines.text.buffers import Utf8

QUALITY, PERPLEXITY, INFORMATIVENESS = range(3)
"""Columns of the scores."""


class Parts(NamedTuple):
    """The models of one language; one that is missing has arrays of length 0."""

    language_model: LanguageModel
    idf: npt.NDArray[np.float32]
    classifier: npt.NDArray[np.float32]


class Scratch(NamedTuple):
    """Room for one document."""

    tokens: Tokens
    ids: npt.NDArray[np.int64]
    terms: npt.NDArray[np.uint64]
    slots: npt.NDArray[np.int32]


def empty_parts() -> Parts:
    """No models."""
    nothing = np.zeros(0, np.float32)
    nothing.flags.writeable = False
    unigrams = np.zeros((0, 2), np.float32)
    return Parts(language_model(empty_table(1), unigrams, empty_table(1), np.zeros(1, np.int64)), nothing, nothing)


def empty_scratch(longest_bytes: int) -> Scratch:
    """Room for any text of this many bytes: 45 bytes for each, which the system hands out only as they are touched."""
    size = longest_bytes + 1
    return Scratch(empty_tokens(longest_bytes), np.empty(size, np.int64), np.empty(size, np.uint64), np.empty(3 * size, np.int32))


def score_rows(texts: Utf8, rows: npt.NDArray[np.int64], parts: Parts) -> npt.NDArray[np.float64]:
    """Scores of these rows, float64 [len(rows), 3]."""
    scores = np.full((len(rows), 3), np.nan)
    _score_rows(unit_source(texts.data), texts.offsets, rows, (parts, empty_scratch(longest(texts.offsets))), scores)
    return scores


@njit(cache=True, nogil=True)
def _score_rows(source: Any, offsets: Any, rows: Any, state: Any, scores: Any) -> None:
    parts, scratch = state
    for index in range(len(rows)):
        start, stop = offsets[rows[index]], offsets[rows[index] + 1]
        count = tokenize(source, start, stop, scratch.tokens)
        if count:
            tokens = Tokens(scratch.tokens.hashes[:count], scratch.tokens.starts[:count], scratch.tokens.kinds[:count])
            if len(parts.language_model.unigrams):
                scores[index, PERPLEXITY] = _perplexity(source, stop, tokens, parts.language_model, scratch.ids)
            if len(parts.idf):
                num_terms = terms_of(tokens, scratch.terms)
                if num_terms:
                    scores[index, INFORMATIVENESS] = informativeness(scratch.terms[:num_terms], parts.idf)
            if len(parts.classifier):
                ends = features_of(source, start, stop, tokens, scratch.slots)
                scores[index, QUALITY] = probability(logit(scratch.slots, ends, parts.classifier))


@njit(cache=True, nogil=True)
def _perplexity(source: Any, stop: Any, tokens: Any, model: Any, ids: Any) -> Any:
    num_ids = encode(source, stop, tokens, model.vocabulary, ids)
    total, num_paragraphs = log_probability(ids, num_ids, model)
    num_tokens = num_paragraphs
    for kind in tokens.kinds:
        num_tokens += kind != BREAK
    return perplexity(total, num_tokens)
