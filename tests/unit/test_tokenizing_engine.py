"""The compiled tokenizer engine: the ids of the tokenizers package, or that package."""

import io
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from pipelines.tokenizers.engine import checked
from pipelines.tokenizers.engine.bpe import Encoded
from pipelines.tokenizers.engine.checked import PROBES, open_checked
from pipelines.tokenizers.engine.compiled import Engine, Unsupported
from pipelines.tokenizers.engine.pieces import FAMILIES, GPT2
from pipelines.tokenizers.engine.reference import Reference
from pipelines.tokenizers.tokenizer import BatchTokenizer, train_tokenizer
from schemas.manifest import TokenizerRef
from schemas.settings_data import TokenizerSettings

CORPUS = Path(__file__).parents[2].parent / "shared" / "corpus" / "documents.jsonl.zst"
PROSE = [
    "The old mill stands by the river; it's been there for 1234 years.",
    "这座老磨坊立在河边。",
    "def f(x):\n    return x\n",
    "ひらがなと漢字 café",
] * 9


def trained(pattern: str, texts: list[str] = PROSE, vocab_size: int = 500) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    if pattern == GPT2:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        split, bytewise = pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytewise])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=["<|endoftext|>", "<|pad|>"], initial_alphabet=alphabet, show_progress=False)
    )
    return tokenizer


def wrapped(tokenizer: Tokenizer, name: str, **settings: Any) -> BatchTokenizer:
    ref = TokenizerRef(sha256=name * 64, path="", vocab_size=tokenizer.get_vocab_size(), eos_token_id=0, pad_token_id=1)
    return BatchTokenizer(tokenizer.to_str(), ref, TokenizerSettings(**settings))


@pytest.mark.parametrize("pattern", FAMILIES, ids=["own", "gpt2", "llama3", "qwen2"])
def test_every_known_pattern_gives_the_ids_of_the_tokenizers_package_on_every_probe(pattern: str) -> None:
    tokenizer_json = trained(pattern, [*PROSE, *PROBES]).to_str()
    probes = pa.array([*PROBES, *PROSE, "".join(PROBES), "é" * 5000, "水" * 9000, " " * 5000], pa.large_string())
    mine, theirs = Engine(tokenizer_json).encode(probes, np.uint16), Reference(tokenizer_json).encode(probes, np.uint16)
    assert mine.offsets.tolist() == theirs.offsets.tolist()
    assert mine.ids.tolist() == theirs.ids.tolist()


def test_every_code_point_of_the_first_planes_is_split_as_the_expression_says() -> None:
    codes = [*range(1, 0xD800), *range(0xE000, 0x3FFFF, 3), *range(0xE0000, 0xE0200)]
    texts = pa.array(
        [f"a{chr(code)}b {chr(code)} 1{chr(code)}2 .{chr(code)}'{chr(code)}\n{chr(code)}水{chr(code)}" for code in codes[:: 1 + len(codes) // 9000]]
    )
    for pattern in FAMILIES:
        tokenizer_json = trained(pattern).to_str()
        assert np.array_equal(Engine(tokenizer_json).encode(texts, np.uint16).ids, Reference(tokenizer_json).encode(texts, np.uint16).ids)


def test_special_token_text_is_text_and_other_added_tokens_are_found() -> None:
    tokenizer = trained(GPT2)
    tokenizer.add_tokens([AddedToken("<tool>", special=False)])
    encoder = wrapped(tokenizer, "a", check_fraction=1.0)
    texts = pa.array(["plain", "a <tool> b", None, "<|endoftext|>", "", "ends with <tool>"])
    assert encoder.has_engine
    ids = encoder.encode(texts).to_pylist()
    assert ids == wrapped(tokenizer, "a", engine="huggingface").encode(texts).to_pylist()
    assert [tokenizer.token_to_id("<tool>") in row for row in ids] == [False, True, False, False, False, True]
    assert 0 not in ids[3]


def test_a_tokenizer_that_the_engine_does_not_know_is_left_to_the_tokenizers_package() -> None:
    def reason(change: Any) -> str:
        tokenizer = trained(GPT2)
        value = json.loads(change(tokenizer) or tokenizer.to_str())
        with pytest.raises(Unsupported) as caught:
            Engine(json.dumps(value))
        return str(caught.value)

    def with_model(**fields: Any) -> Any:
        def change(tokenizer: Tokenizer) -> str:
            value = json.loads(tokenizer.to_str())
            value["model"] |= fields
            return json.dumps(value)

        return change

    assert "normalizer" in reason(lambda t: setattr(t, "normalizer", normalizers.NFKC()))
    assert "plain bytes" in reason(lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.Whitespace()))
    assert "plain bytes" in reason(lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)))
    sequence = [pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    assert "more than one way" in reason(lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.Sequence(sequence)))
    assert "ignore_merges" in reason(with_model(ignore_merges=True))
    assert "byte_fallback" in reason(with_model(byte_fallback=True))
    assert "Unigram" in reason(with_model(type="Unigram"))
    unknown = trained(GPT2)
    unknown.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    encoder = wrapped(unknown, "b")
    assert not encoder.has_engine
    assert encoder.encode(pa.array(["a b"])).to_pylist() == [unknown.encode("a b").ids]


class Liar(Engine):
    """Right about the probes, wrong about one word."""

    def encode(self, texts: pa.Array, dtype: Any) -> Encoded:
        encoded = super().encode(texts, dtype)
        if any("Wassermühle" in (text or "") for text in texts.to_pylist()):
            encoded.ids[-1] += 1
        return encoded


def test_a_mismatch_is_noticed_named_and_never_stored(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(checked, "Engine", Liar)
    monkeypatch.setattr(checked, "_refused", set())
    tokenizer = trained(GPT2)
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
    tokenizer_json = trained(GPT2).to_str()
    assert open_checked(tokenizer_json, Reference(tokenizer_json), "d" * 64, 0.0) is None
    assert "differs" in caplog.text


def test_rare_documents_are_always_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = trained(GPT2)
    seen: list[int] = []
    original = Reference.encode

    def counted(self: Reference, texts: pa.Array, dtype: Any) -> Any:
        seen.extend(len(text or "") for text in texts.to_pylist())
        return original(self, texts, dtype)

    encoder = wrapped(tokenizer, "e", check_fraction=0.0)
    assert encoder.has_engine
    monkeypatch.setattr(Reference, "encode", counted)
    encoder.encode(pa.array(["usual", "unassigned \u0378", "long " * 300_000]))
    assert seen == [12, 1 << 16]


def test_ids_need_no_room_in_the_cache_to_be_right() -> None:
    """Pieces that fall on one line of the table replace each other; every answer is compared byte for byte."""
    tokenizer_json = train_tokenizer(PROSE, TokenizerSettings(vocab_size=400))["tokenizer.json"].decode()
    rng = np.random.default_rng(0)
    words = ["".join(map(chr, rng.integers(97, 101, rng.integers(1, 9)))) for _ in range(150_000)]
    texts = pa.array([" ".join(words), " ".join(words[::-1]), " ".join(words)])
    mine, theirs = Engine(tokenizer_json).encode(texts, np.uint32), Reference(tokenizer_json).encode(texts, np.uint32)
    assert np.array_equal(mine.ids, theirs.ids)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not CORPUS.exists(), reason="the test corpus ../shared/corpus is not there")
def test_the_whole_corpus_gets_the_ids_of_the_tokenizers_package() -> None:
    compare_on_corpus(1)


@pytest.mark.skipif(not CORPUS.exists(), reason="the test corpus ../shared/corpus is not there")
def test_a_sample_of_the_corpus_gets_the_ids_of_the_tokenizers_package() -> None:
    compare_on_corpus(200)


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
