"""The fast tokenizer engine: the ids of the tokenizers package, or that package."""

import io
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from gigatoken import gigatoken_rs
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from pipelines.tokenizers.engine import checked, fast
from pipelines.tokenizers.engine.checked import PROBES, open_checked
from pipelines.tokenizers.engine.fast import Engine, Unsupported
from pipelines.tokenizers.engine.reference import Reference, Tokens
from pipelines.tokenizers.tokenizer import SPECIAL_TOKENS, SPLITS, BatchTokenizer, train_tokenizer
from schemas.manifest import TokenizerRef
from schemas.settings_data import TokenizerSettings

CORPUS = Path(__file__).parents[2].parent / "shared" / "corpus" / "documents.jsonl.zst"
PROSE = [
    "The old mill stands by the river; it's been there for 1234 years.",
    "这座老磨坊立在河边。",
    "def f(x):\n    return x\n",
    "ひらがなと漢字 café",
] * 9
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
    r"%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
FAMILIES: dict[str, tuple[str, ...]] = {"own": SPLITS, "gpt2": (), "llama3": (GPT4 % r"\p{N}{1,3}",), "qwen2": (GPT4 % r"\p{N}",)}
"""What texts are split by, one expression after the other; none: as ``ByteLevel`` does by itself."""
BEFORE = (
    r"'(?i:[sdmt]|ll|ve|re)"
    r"|[\p{Han}\p{Hiragana}\p{Katakana}\u30FC]+"
    r"|[^\r\n\p{L}\p{N}]?(?:(?![\p{Han}\p{Hiragana}\p{Katakana}\u30FC])[\p{L}\p{M}])+"
    r"|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""What the datasets of earlier versions of Headrace were split by."""


def trained(expressions: Sequence[str], texts: list[str] = PROSE, vocab_size: int = 500) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    splits = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in expressions]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not splits)])
    if not splits:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = list(SPECIAL_TOKENS)
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    )
    return tokenizer


def wrapped(tokenizer: Tokenizer, name: str, **settings: Any) -> BatchTokenizer:
    ref = TokenizerRef(sha256=name * 64, path="tokenizer/x", vocab_size=tokenizer.get_vocab_size(), eos_token_id=0, pad_token_id=1)
    return BatchTokenizer(tokenizer.to_str(), ref, TokenizerSettings(**settings))


def assert_same_ids(tokenizer_json: str, texts: list[str | None]) -> None:
    array = pa.array(texts, pa.large_string())
    mine, theirs = Engine(tokenizer_json).encode(array, np.uint32), Reference(tokenizer_json).encode(array, np.uint32)
    assert mine.offsets.tolist() == theirs.offsets.tolist()
    assert np.array_equal(mine.ids, theirs.ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_known_pattern_gives_the_ids_of_the_tokenizers_package_on_every_probe(family: str) -> None:
    tokenizer_json = trained(FAMILIES[family], [*PROSE, *PROBES]).to_str()
    assert_same_ids(tokenizer_json, [*PROBES, *PROSE, None, "".join(PROBES), "é" * 5000, "水" * 9000, " " * 5000])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_code_point_of_the_first_planes_is_split_as_the_expression_says(family: str) -> None:
    codes = [*range(1, 0xD800), *range(0xE000, 0x3FFFF, 3), *range(0xE0000, 0xE0200)][:: 1 if os.environ.get("HEADRACE_TEST_ALL_CODES") else 40]
    texts = [f"a{chr(code)}b {chr(code)} 1{chr(code)}2 .{chr(code)}'{chr(code)}\n{chr(code)}水{chr(code)}" for code in codes]
    assert_same_ids(trained(FAMILIES[family]).to_str(), list(texts))


def test_no_text_makes_a_special_token() -> None:
    tokenizer_json = train_tokenizer([*PROSE, "".join(SPECIAL_TOKENS)], TokenizerSettings(vocab_size=600))["tokenizer.json"].decode()
    text = f"{''.join(SPECIAL_TOKENS)} <|endoftext|>x <|im_start|>user\n<|im_end|>"
    ids = Engine(tokenizer_json).encode(pa.array([text]), np.uint32).ids
    assert ids.min() >= len(SPECIAL_TOKENS)
    assert_same_ids(tokenizer_json, [text])


def test_special_token_text_is_text_and_other_added_tokens_are_found() -> None:
    tokenizer = trained(())
    tokenizer.add_tokens([AddedToken("<tool>", special=False)])
    encoder = wrapped(tokenizer, "a", check_fraction=1.0)
    texts = pa.array(["plain", "a <tool> b", None, "<|endoftext|>", "", "ends with <tool>"])
    assert encoder.has_engine
    ids = encoder.encode(texts).to_pylist()
    assert ids == wrapped(tokenizer, "a", engine="huggingface").encode(texts).to_pylist()
    assert [tokenizer.token_to_id("<tool>") in row for row in ids] == [False, True, False, False, False, True]
    assert 0 not in ids[3]


def test_a_tokenizer_that_gigatoken_does_not_know_is_left_to_the_tokenizers_package() -> None:
    unknown = trained((BEFORE,))
    with pytest.raises(Unsupported, match="Unknown pre_tokenizer"):
        Engine(unknown.to_str())
    encoder = wrapped(unknown, "b")
    assert not encoder.has_engine
    assert encoder.encode(pa.array(["a b 水"])).to_pylist() == [unknown.encode("a b 水").ids]
    value = json.loads(trained(()).to_str())
    value["model"]["dropout"] = 0.1
    with pytest.raises(Unsupported, match="dropout"):
        Engine(json.dumps(value))


@pytest.mark.parametrize("change", ["lowercase", "prefix space", "whitespace", "digits", "ignore_merges"])
def test_whatever_gigatoken_takes_on_it_encodes_as_the_tokenizers_package_or_not_at_all(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checked, "_refused", set())
    tokenizer = trained(())
    if change == "lowercase":
        tokenizer.normalizer = normalizers.Lowercase()
    elif change == "prefix space":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    elif change == "whitespace":
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    elif change == "digits":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    value = json.loads(tokenizer.to_str())
    value["model"]["ignore_merges"] = change == "ignore_merges"
    encoder = wrapped(Tokenizer.from_str(json.dumps(value)), "f")
    texts = pa.array([*PROBES, *PROSE], pa.large_string())
    assert encoder.encode(texts).to_pylist() == wrapped(Tokenizer.from_str(json.dumps(value)), "f", engine="huggingface").encode(texts).to_pylist()


class Liar(Engine):
    """Right about the probes, wrong about one word."""

    def encode(self, texts: pa.Array, dtype: npt.DTypeLike) -> Tokens:
        encoded = super().encode(texts, dtype)
        if any("Wassermühle" in (text or "") for text in texts.to_pylist()):
            encoded.ids[-1] += 1
        return encoded


def test_a_mismatch_is_noticed_named_and_never_stored(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(checked, "Engine", Liar)
    monkeypatch.setattr(checked, "_refused", set())
    tokenizer = trained(())
    encoder = wrapped(tokenizer, "c", check_fraction=1.0)
    texts = pa.array(["good", "eine Wassermühle"])
    assert encoder.has_engine
    with caplog.at_level(logging.WARNING):
        rows = encoder.encode(texts, pa.array(["first", "second"])).to_pylist()
    assert rows == [tokenizer.encode(text, add_special_tokens=False).ids for text in texts.to_pylist()]
    assert "document second" in caplog.text
    assert not encoder.has_engine
    assert not wrapped(tokenizer, "c").has_engine


def test_an_engine_that_fails_a_probe_is_not_used(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(checked, "Engine", Liar)
    monkeypatch.setattr(checked, "_refused", set())
    monkeypatch.setattr(checked, "PROBES", ("eine Wassermühle",))
    tokenizer_json = trained(()).to_str()
    assert open_checked(tokenizer_json, Reference(tokenizer_json), "d" * 64, 0.0) is None
    assert "differs" in caplog.text


class PanicException(BaseException):
    """As Rust code that panics raises it."""


class Panicking:
    """A backend that breaks on one word."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def encode(self, data: bytes) -> Any:
        if b"Zahnrad" in data:
            raise PanicException("index out of bounds")
        return self._backend.encode(data)


def test_an_engine_that_breaks_down_costs_nothing_but_speed(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(checked, "_refused", set())
    load = gigatoken_rs.load_hf_json
    monkeypatch.setattr(gigatoken_rs, "load_hf_json", lambda data: Panicking(load(data)))
    tokenizer = trained(())
    encoder = wrapped(tokenizer, "9", check_fraction=0.0)
    assert encoder.has_engine
    assert encoder.encode(pa.array(["gut", "ein Zahnrad"])).to_pylist() == [tokenizer.encode(text).ids for text in ("gut", "ein Zahnrad")]
    assert "index out of bounds" in caplog.text and not encoder.has_engine


def test_large_documents_are_always_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = trained(())
    seen: list[int] = []
    original = Reference.encode

    def counted(self: Reference, texts: pa.Array, dtype: Any) -> Any:
        seen.extend(len(text or "") for text in texts.to_pylist())
        return original(self, texts, dtype)

    encoder = wrapped(tokenizer, "e", check_fraction=0.0)
    assert encoder.has_engine
    monkeypatch.setattr(Reference, "encode", counted)
    encoder.encode(pa.array(["usual", "long " * 300_000]))
    assert seen == [1 << 16]


def test_the_memory_of_words_is_given_back_and_the_ids_stay_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[int] = []
    load = gigatoken_rs.load_hf_json

    def noted(data: str) -> Any:
        loaded.append(1)
        return load(data)

    monkeypatch.setattr(gigatoken_rs, "load_hf_json", noted)
    monkeypatch.setattr(fast, "MAX_GROWTH_BYTES", 2**20)
    engine = Engine(train_tokenizer(PROSE, TokenizerSettings(vocab_size=400))["tokenizer.json"].decode())
    rng = np.random.default_rng(0)
    letters = rng.integers(97, 123, (600_000, 8), dtype=np.uint8)
    letters[:, 7] = 32
    texts = pa.array([letters.tobytes().decode()])
    first = engine.encode(texts, np.uint32)
    again = engine.encode(texts, np.uint32)
    assert len(loaded) == 2
    assert np.array_equal(first.ids, again.ids)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not CORPUS.exists(), reason="the test corpus ../shared/corpus is not there")
def test_the_whole_corpus_gets_the_ids_of_the_tokenizers_package() -> None:
    compare_on_corpus(1)


@pytest.mark.skipif(not CORPUS.exists(), reason="the test corpus ../shared/corpus is not there")
def test_a_sample_of_the_corpus_gets_the_ids_of_the_tokenizers_package() -> None:
    compare_on_corpus(400)


def compare_on_corpus(step: int) -> None:
    import zstandard

    with CORPUS.open("rb") as file:
        lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8")
        texts = [json.loads(line)["text"] for number, line in enumerate(lines) if number % step == 0]
    tokenizer_json = train_tokenizer(texts[::7][:2000], TokenizerSettings(vocab_size=8000))["tokenizer.json"].decode()
    engine, reference = Engine(tokenizer_json), Reference(tokenizer_json)
    for first in range(0, len(texts), 2000):
        part = pa.array(texts[first : first + 2000], pa.large_string())
        mine, theirs = engine.encode(part, np.uint16), reference.encode(part, np.uint16)
        assert np.array_equal(mine.offsets, theirs.offsets)
        assert np.array_equal(mine.ids, theirs.ids)
