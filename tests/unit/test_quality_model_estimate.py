"""The n-gram model: estimated as the paper says, stored without loss, scored as kenlm scores it."""

import math
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.quality.arpa import write_arpa
from pipelines.quality.estimate import FALLBACK_DISCOUNTS, Grams, estimate
from pipelines.quality.fit import FitOptions, Fitted, fit_language
from pipelines.quality.perplexity import LanguageModel, build_model, log_probability, stored_grams
from pipelines.quality.table import empty_table
from pipelines.quality.units import BREAK, MARK, SINGLE, WORD, Tokens, all_tokens, unit_source
from pipelines.quality.vocabulary import BEGIN, END, UNKNOWN, encode
from pipelines.text.buffers import utf8_views

Words = tuple[int, ...]


def tokens_of(text: str) -> tuple[Tokens, Any]:
    views = utf8_views(pa.array([text], pa.large_string()))
    source = unit_source(views.data)
    return all_tokens(source, views.offsets)[0], source


def kinds_of(text: str) -> list[int]:
    return [int(kind) for kind in tokens_of(text)[0].kinds]


def ids_of(fitted: Fitted, text: str) -> list[int]:
    tokens, source = tokens_of(text)
    ids = np.zeros(len(text.encode()) + 1, np.int64)
    count = encode(source, len(text.encode()), tokens, fitted.parts.language_model.vocabulary, ids)
    return [int(number) for number in ids[:count]]


def units_of(fitted: Fitted, text: str) -> list[str]:
    return [fitted.units[number] for number in ids_of(fitted, text)]


def prose(rng: np.random.Generator, num_documents: int, num_words: int = 120) -> list[str]:
    """Documents whose words follow one another by a fixed rule with noise, over a Zipf vocabulary."""
    names = ["".join(rng.choice(list("abcdefghijklmnop"), 5)) for _ in range(400)]
    documents = []
    for _ in range(num_documents):
        word = int(rng.integers(400))
        words = []
        for _ in range(num_words):
            words.append(names[word] + rng.choice(["", "", "", ",", ".\n\n"]))
            word = int(rng.zipf(1.5)) % 400 if rng.random() < 0.4 else (word * 7 + 3) % 400
        documents.append(" ".join(words))
    return documents


def fitted_on(texts: list[str], order: int = 4, prune: int = 1) -> Fitted:
    nothing = pa.array([], pa.large_string())
    return fit_language(pa.array(texts, pa.large_string()), nothing, nothing, FitOptions(order, prune))


@pytest.fixture(scope="module")
def fitted() -> Fitted:
    return fitted_on(prose(np.random.default_rng(1), 300))


def test_words_characters_marks_and_paragraphs_are_tokens() -> None:
    assert kinds_of("Don't, stop----now") == [WORD, MARK, WORD, MARK, WORD, MARK, WORD]
    assert kinds_of("你好，世界") == [SINGLE, SINGLE, MARK, SINGLE, SINGLE]
    assert kinds_of("用Python写") == [SINGLE, WORD, SINGLE]
    assert kinds_of("\n\none\ntwo\n \nthree\n\n") == [WORD, WORD, BREAK, WORD]
    assert kinds_of("") == kinds_of(" \u200b\n\n\n") == []
    assert kinds_of("x" * 100) == [WORD] * 4


def test_case_digits_and_hidden_characters_do_not_make_another_word() -> None:
    first, second = (tokens_of(text)[0].hashes.tolist() for text in ("Ärger 2024 MILL", "ärger 1999 mi\u00adll"))
    assert first == second
    assert tokens_of("mill")[0].hashes.tolist() != tokens_of("mills")[0].hashes.tolist()


def test_unknown_words_are_spelled_and_unknown_signs_are_unknown(fitted: Fitted) -> None:
    known = fitted.units[10]
    assert units_of(fitted, known.upper()) == [known]
    spelled = units_of(fitted_on([f"common words stay {chr(97 + i % 26)}{chr(98 + i // 3)}x" for i in range(70)]), "common xyz")
    assert spelled[0] == "common"
    assert len(spelled) == 4
    assert spelled[1] in ("^x", "<unk>")
    assert spelled[2] in ("~y", "<unk>")
    assert units_of(fitted, "☃") == ["<unk>"]


def naive_probabilities(sentences: list[Words], size: int, order: int) -> dict[Words, float]:
    """Interpolated modified Kneser-Ney as its definition reads, without pruning; probability of the last unit after the others."""
    raw: Counter[Words] = Counter()
    for sentence in sentences:
        for length in range(1, order + 1):
            raw.update(sentence[at : at + length] for at in range(len(sentence) - length + 1))
    before: dict[Words, set[int]] = defaultdict(set)
    for gram in raw:
        before[gram[1:]].add(gram[0])
    adjusted = {gram: raw[gram] if len(gram) == order or gram[0] == BEGIN else len(before[gram]) for gram in raw if gram != (BEGIN,)}
    result: dict[Words, float] = {(): 1 / (size - 1)}
    for length in range(1, order + 1):
        grams = {gram: count for gram, count in adjusted.items() if len(gram) == length}
        t = [sum(count == k for count in grams.values()) for k in range(5)]
        y = t[1] / (t[1] + 2 * t[2]) if t[1] else 0
        found = [k - (k + 1) * y * t[k + 1] / t[k] if t[k] else -1 for k in (1, 2, 3)]
        discounts = found if min(found) >= 0 else FALLBACK_DISCOUNTS
        total: Counter[Words] = Counter()
        left: defaultdict[Words, float] = defaultdict(float)
        for gram, count in grams.items():
            total[gram[:-1]] += count
            left[gram[:-1]] += discounts[min(count, 3) - 1]
        for gram, count in grams.items():
            share = (count - discounts[min(count, 3) - 1]) / total[gram[:-1]]
            result[gram] = share + left[gram[:-1]] / total[gram[:-1]] * result[gram[1:]]
    return result


SENTENCES = st.lists(st.lists(st.integers(3, 7), max_size=8).map(lambda words: (BEGIN, *words, END)), min_size=1, max_size=12)


@settings(max_examples=40, deadline=None)
@given(SENTENCES, st.integers(2, 4))
def test_probabilities_are_those_of_the_definition(sentences: list[Words], order: int) -> None:
    grams = estimate(np.concatenate([np.array(sentence) for sentence in sentences]), 8, order, 0)
    naive = naive_probabilities(sentences, 8, order)
    for ids, scores in stored_grams(build_model(empty_table(1), grams)):
        for gram, probability in zip(map(tuple, ids.tolist()), scores[:, 0].tolist(), strict=True):
            if gram in naive:
                assert 10**probability == pytest.approx(naive[gram], rel=1e-4)


def backed_off(model: dict[Words, tuple[float, float]], context: Words, word: int) -> float:
    """log10 of a word's probability, as an ARPA file is to be read."""
    if (*context, word) in model:
        return model[(*context, word)][0]
    return (model[context][1] if context in model else 0.0) + backed_off(model, context[1:], word)


@settings(max_examples=30, deadline=None)
@given(SENTENCES, st.integers(0, 2), st.data())
def test_probabilities_add_up_to_one_after_every_context(sentences: list[Words], prune: int, data: Any) -> None:
    grams = estimate(np.concatenate([np.array(sentence) for sentence in sentences]), 8, 3, prune)
    stored = stored_grams(build_model(empty_table(1), grams))
    model = {tuple(gram): tuple(score) for ids, scores in stored for gram, score in zip(ids.tolist(), scores.tolist(), strict=True)}
    context = tuple(data.draw(st.lists(st.sampled_from([BEGIN, UNKNOWN, 3, 4, 5, 6, 7]), max_size=2)))
    if END not in context:
        total = sum(10 ** backed_off(model, context, word) for word in (UNKNOWN, END, 3, 4, 5, 6, 7))
        assert total == pytest.approx(1, abs=1e-3)


def test_pruned_grams_are_gone_and_all_others_are_stored() -> None:
    rng = np.random.default_rng(3)
    stream = np.concatenate([[BEGIN, *rng.integers(3, 20, 30), END] for _ in range(50)])
    everything, pruned = (estimate(stream, 20, 4, prune) for prune in (0, 1))
    assert [len(gram.word) for gram in pruned[:2]] == [len(gram.word) for gram in everything[:2]]
    assert 0 < len(pruned[2].word) < len(everything[2].word)
    stored = stored_grams(build_model(empty_table(1), everything))
    assert [len(ids) for ids, _ in stored] == [len(gram.word) for gram in everything]
    assert unpacked(everything) == {tuple(gram) for ids, _ in stored for gram in ids.tolist()}


def unpacked(grams: list[Grams]) -> set[Words]:
    """All n-grams, written out."""
    found: set[Words] = set()
    before: list[Words] = [()]
    for gram in grams:
        before = [(*before[context], word) for context, word in zip(gram.context.tolist(), gram.word.tolist(), strict=True)]
        found |= set(before)
    return found


def score(model: LanguageModel, ids: list[int]) -> float:
    return float(log_probability(np.array([*ids, 0], np.int64), len(ids), model)[0])


@pytest.mark.parametrize(("order", "prune"), [(2, 0), (3, 1), (4, 1), (6, 2)])
def test_log_probabilities_are_those_of_kenlm(order: int, prune: int, tmp_path: Path) -> None:
    kenlm = pytest.importorskip("kenlm", reason="kenlm is not installed")
    texts = prose(np.random.default_rng(2), 150)
    fitted = fitted_on(texts, order, prune)
    write_arpa(tmp_path / "model.arpa", fitted.parts.language_model, fitted.units)
    reference = kenlm.Model(str(tmp_path / "model.arpa"))
    for text in [*texts[:40], "entirely unheard of words ☃ zzzz", "", "a\n\nb"]:
        ids = ids_of(fitted, text)
        paragraphs = " ".join(fitted.units[number] for number in ids).split("</s>")
        assert score(fitted.parts.language_model, ids) == pytest.approx(sum(map(reference.score, paragraphs)), abs=1e-4, rel=1e-6)


def test_scores_of_real_text_are_finite(fitted: Fitted) -> None:
    assert math.isfinite(score(fitted.parts.language_model, []))
    assert math.isfinite(score(fitted.parts.language_model, [UNKNOWN] * 50))
