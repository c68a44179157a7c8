"""Fits all quality models of a language: to references that the user trusts, and to good and bad examples.

A tenth of the documents, or MIN_HELD_OUT and up to a quarter if there are few, is kept out of every fit. Thresholds are quantiles of the scores
of these: a model knows the documents that it was fitted to too well to judge new ones by them. Which ones is decided by the content's hash,
and equal texts count once, so that neither the order of the files nor a copy changes a byte of the model.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numba import njit

from pipelines.dedup.fingerprint import content_hashes
from pipelines.quality import classifier
from pipelines.quality.card import NUM_QUANTILES, ClassifierCard, InformativenessCard, LanguageCard, PerplexityCard
from pipelines.quality.classifier import features_of
from pipelines.quality.estimate import estimate
from pipelines.quality.informativeness import NUM_SLOTS, count_documents, terms_of, weights
from pipelines.quality.perplexity import build_model
from pipelines.quality.scoring import INFORMATIVENESS, PERPLEXITY, QUALITY, Parts, empty_parts, empty_scratch, score_rows
from pipelines.quality.units import Tokens, all_tokens, longest, tokenize, unit_source
from pipelines.quality.vocabulary import BEGIN, END, encode, fit_vocabulary
from pipelines.text.buffers import Utf8, utf8_views

HELD_OUT, MOST_HELD_OUT = 10, 4
"""One document in so many is held out; of a few documents, one in so many at most."""
MIN_HELD_OUT = 50
MIN_DOCUMENTS = 50
"""References, or examples of a class, below which a language gets no model."""


class FitOptions(NamedTuple):
    """How to fit."""

    order: int = 3
    """Longest n-gram, 2 to 6. Order 4 told broken text apart no better on the test corpus (AUC within 0.002) and scores a fifth slower."""
    prune: int = 1
    """n-grams of three units and more that occur this often or less are left out."""


class Fitted(NamedTuple):
    """The models of a language."""

    parts: Parts
    units: list[str]
    """Names of the language model's units by id; empty without one."""
    card: LanguageCard


class Split(NamedTuple):
    """Distinct documents, in the order of their content's hash."""

    fitted: Utf8
    held_out: Utf8


def split(texts: pa.Array) -> Split:
    """Distinct texts, the first ones held out."""
    digests = np.frombuffer(content_hashes(texts).buffers()[1], ">u8").reshape(-1, 2)
    _, first = np.unique(digests, axis=0, return_index=True)
    num_held_out = max(-(-len(first) // HELD_OUT), min(MIN_HELD_OUT, len(first) // MOST_HELD_OUT))
    held_out, fitted = (texts.take(pa.array(rows)) for rows in (first[:num_held_out], first[num_held_out:]))
    return Split(utf8_views(fitted), utf8_views(held_out))


def num_distinct(texts: pa.Array) -> int:
    """Texts that differ."""
    return len(texts.drop_null().unique())


def fit_language(references: pa.Array, good: pa.Array, bad: pa.Array, options: FitOptions) -> Fitted:
    """The models of one language; those without MIN_DOCUMENTS distinct documents are left out. All arrays are ``large_string``."""
    fitted = Fitted(empty_parts(), [], LanguageCard())
    if num_distinct(references) >= MIN_DOCUMENTS:
        documents = split(references)
        fitted = _with_frequencies(_with_language_model(fitted, documents, options), documents)
    if min(num_distinct(good), num_distinct(bad)) >= MIN_DOCUMENTS:
        fitted = _with_classifier(fitted, split(good), split(bad))
    return fitted


def quantiles(scores: npt.NDArray[np.float64]) -> tuple[float, ...]:
    """The grid that thresholds are read from; of float32 scores, as they are stored."""
    known = scores[~np.isnan(scores)].astype(np.float32)
    if not len(known):
        return ()
    return tuple(float(f"{value:.7g}") for value in np.quantile(known, np.arange(NUM_QUANTILES + 1) / NUM_QUANTILES))


def _scores(documents: Utf8, parts: Parts) -> npt.NDArray[np.float64]:
    return score_rows(documents, np.arange(len(documents.offsets) - 1), parts)


def _with_language_model(fitted: Fitted, documents: Split, options: FitOptions) -> Fitted:
    data, offsets = documents.fitted
    source = unit_source(data)
    tokens, counts = all_tokens(source, offsets)
    vocabulary = fit_vocabulary(source, tokens)
    stream = np.empty(2 * int(offsets[-1] - offsets[0]) + 2 * len(counts), np.int64)
    num_units = _write_stream(source, (offsets, counts), tokens, vocabulary.table, stream)
    grams = estimate(stream[:num_units].copy(), len(vocabulary.units), options.order, options.prune)
    parts = fitted.parts._replace(language_model=build_model(vocabulary.table, grams))
    scores = _scores(documents.held_out, parts)[:, PERPLEXITY]
    card = PerplexityCard(
        order=options.order,
        prune=options.prune,
        num_documents=len(counts),
        num_units=num_units,
        num_grams=tuple(len(gram.word) for gram in grams),
        bounds=tuple(parts.language_model.bounds.tolist()),
        num_held_out=len(scores),
        quantiles=quantiles(scores),
    )
    return Fitted(parts, vocabulary.units, fitted.card.model_copy(update={"perplexity": card}))


@njit(cache=True, nogil=True)
def _write_stream(source: Any, documents: Any, tokens: Any, vocabulary: Any, stream: Any) -> Any:
    """Ids of all documents, each paragraph between <s> and </s>; returns how many."""
    offsets, counts = documents
    ids = np.empty(np.max(offsets[1:] - offsets[:-1]) + 1, np.int64)
    first = filled = 0
    for row in range(len(counts)):
        after = first + counts[row]
        its = Tokens(tokens.hashes[first:after], tokens.starts[first:after], tokens.kinds[first:after])
        stream[filled] = BEGIN
        filled += 1
        for number in ids[: encode(source, offsets[row + 1], its, vocabulary, ids)]:
            stream[filled] = number
            filled += 1
            if number == END:
                stream[filled] = BEGIN
                filled += 1
        stream[filled] = END
        filled += 1
        first = after
    return filled


def _with_frequencies(fitted: Fitted, documents: Split) -> Fitted:
    data, offsets = documents.fitted
    num_documents = len(offsets) - 1
    frequencies = np.zeros(NUM_SLOTS, np.int64)
    _count_frequencies(unit_source(data), offsets, empty_scratch(longest(offsets)), frequencies)
    parts = fitted.parts._replace(idf=weights(frequencies, num_documents))
    scores = _scores(documents.held_out, parts)[:, INFORMATIVENESS]
    card = InformativenessCard(num_documents=num_documents, num_held_out=len(scores), quantiles=quantiles(scores))
    return Fitted(parts, fitted.units, fitted.card.model_copy(update={"informativeness": card}))


@njit(cache=True, nogil=True)
def _count_frequencies(source: Any, offsets: Any, scratch: Any, frequencies: Any) -> None:
    last = np.full(NUM_SLOTS, -1, np.int64)
    for row in range(len(offsets) - 1):
        count = tokenize(source, offsets[row], offsets[row + 1], scratch.tokens)
        tokens = Tokens(scratch.tokens.hashes[:count], scratch.tokens.starts[:count], scratch.tokens.kinds[:count])
        count_documents(scratch.terms[: terms_of(tokens, scratch.terms)], row, last, frequencies)


def _with_classifier(fitted: Fitted, good: Split, bad: Split) -> Fitted:
    learned = classifier.fit_weights(_examples(good.fitted, bad.fitted))
    parts = fitted.parts._replace(classifier=learned)
    good_scores, bad_scores = (_scores(documents.held_out, parts)[:, QUALITY] for documents in (good, bad))
    scores = np.nan_to_num(np.concatenate([good_scores, bad_scores]))
    measured = classifier.measure(scores, np.arange(len(scores)) < len(good_scores))
    card = ClassifierCard(
        num_good=len(good.fitted.offsets) - 1,
        num_bad=len(bad.fitted.offsets) - 1,
        held_out_good=measured.num_good,
        held_out_bad=measured.num_bad,
        accuracy=round(measured.accuracy, 6),
        auc=round(measured.auc, 6),
        f1=round(measured.f1, 6),
        quantiles=quantiles(good_scores),
    )
    return Fitted(parts, fitted.units, fitted.card.model_copy(update={"classifier": card}))


def _examples(good: Utf8, bad: Utf8) -> classifier.Examples:
    slots, offsets = [], []
    filled = 0
    for documents in (good, bad):
        found = np.empty(3 * int(documents.offsets[-1] - documents.offsets[0]) + 1, np.int32)
        ends = np.zeros((len(documents.offsets) - 1, classifier.NUM_GROUPS + 1), np.int64)
        count = _gather_features(unit_source(documents.data), documents.offsets, empty_scratch(longest(documents.offsets)), found, ends)
        slots.append(found[:count].copy())
        offsets.append(ends + filled)
        filled += count
    is_good = np.repeat([True, False], [len(part) for part in offsets])
    return classifier.Examples(np.concatenate(slots), np.concatenate(offsets), is_good)


@njit(cache=True, nogil=True)
def _gather_features(source: Any, offsets: Any, scratch: Any, slots: Any, ends: Any) -> Any:
    filled = 0
    for row in range(len(offsets) - 1):
        count = tokenize(source, offsets[row], offsets[row + 1], scratch.tokens)
        tokens = Tokens(scratch.tokens.hashes[:count], scratch.tokens.starts[:count], scratch.tokens.kinds[:count])
        first, second, third = features_of(source, offsets[row], offsets[row + 1], tokens, slots[filled:])
        ends[row, 0] = filled
        ends[row, 1], ends[row, 2], ends[row, 3] = filled + first, filled + second, filled + third
        filled += third
    return filled
