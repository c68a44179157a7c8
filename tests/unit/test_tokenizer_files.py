"""The tokenizer: same texts, same bytes; HF files that others can load; documents that cannot forge special tokens."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from pipelines.tokenizers.tokenizer import SPECIAL_TOKENS, BatchTokenizer, load_tokenizer, read_tokenizer, train_tokenizer, write_tokenizer
from schemas.errors import SettingsError, TokenizerMismatch
from schemas.manifest import TokenizerRef
from schemas.settings_data import TokenizerSettings

REPOSITORY = Path(__file__).parents[2]
TEXTS = [
    "The old mill stands by the river; its wheel has not turned for 1234567 years, don't you think?",
    "这座老磨坊立在河边。它的水轮已经一百年没有转动了，但水渠里依然有水流过。",
    "def main(path: str) -> int:\n    return len(open(path).read().split())\n\n\n# 水渠 и вода 😀\n",
    "古い水車小屋は川のほとりに建っています。",
] * 6
SETTINGS = TokenizerSettings(vocab_size=600)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def ref(root: Path) -> TokenizerRef:
    return write_tokenizer(root, TEXTS, SETTINGS)


@pytest.fixture(scope="module")
def tokenizer(root: Path, ref: TokenizerRef) -> BatchTokenizer:
    return load_tokenizer(root, ref)


CHILD = """
import hashlib, sys
from pipelines.tokenizers.tokenizer import train_tokenizer
from schemas.settings_data import TokenizerSettings
words = [f"{a}{b}{c}" for a in "abcdefghij" for b in "klmnopq" for c in ("zu", "zo", "中文", "水渠")]
texts = [" ".join(words[i::7]) for i in range(7)] * 3  # nearly all pairs are tied
files = train_tokenizer(texts, TokenizerSettings(vocab_size=900))
print({name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())})
"""


def test_the_same_texts_train_byte_identical_files_in_every_process() -> None:
    def run(**environment: str) -> str:
        variables = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
        return subprocess.run(
            [sys.executable, "-c", CHILD], cwd=REPOSITORY, env=variables | environment, check=True, capture_output=True, text=True, timeout=120
        ).stdout

    first = run(RAYON_NUM_THREADS="4", TOKENIZERS_PARALLELISM="true", PYTHONHASHSEED="1")
    assert "tokenizer.json" in first
    assert run(RAYON_NUM_THREADS="3", PYTHONHASHSEED="2") == first
    assert run(TOKENIZERS_PARALLELISM="false", PYTHONHASHSEED="3") == first


def test_the_reference_names_the_bytes_and_the_special_ids(root: Path, ref: TokenizerRef) -> None:
    assert ref.path == f"tokenizer/{ref.sha256}"
    assert (ref.eos_token_id, ref.pad_token_id) == (0, 1)
    assert 260 < ref.vocab_size <= 600
    assert sorted(path.name for path in (root / ref.path).iterdir()) == ["special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"]
    assert write_tokenizer(root, TEXTS, SETTINGS) == ref


def test_training_text_beyond_the_limit_is_not_looked_at() -> None:
    size = len(TEXTS[0].encode()) + 7
    limited = TokenizerSettings(vocab_size=600, max_training_bytes=size)
    assert train_tokenizer(TEXTS[:2], limited) == train_tokenizer([TEXTS[0], "这座"], limited)


def test_no_texts_still_give_a_tokenizer_that_speaks_bytes(tmp_path: Path) -> None:
    reference = write_tokenizer(tmp_path, [], SETTINGS)
    assert reference.vocab_size == 260
    bytewise = load_tokenizer(tmp_path, reference)
    assert bytewise.decode(bytewise.encode(pa.array(["水 é"]))[0].as_py()) == "水 é"


def test_special_token_text_in_a_document_is_plain_text(tokenizer: BatchTokenizer) -> None:
    text = "before<|endoftext|>after <|pad|><|endoftext|><|im_start|>user\n<|im_end|>"
    (ids,) = tokenizer.encode(pa.array([text])).to_pylist()
    assert set(range(len(SPECIAL_TOKENS))).isdisjoint(ids)
    assert tokenizer.decode(ids) == text


def test_encoding_gives_one_list_per_text_in_the_smallest_type(tokenizer: BatchTokenizer) -> None:
    texts = pa.array(["one", None, "", "水渠" * 50])
    encoded = tokenizer.encode(texts)
    assert encoded.type == pa.large_list(pa.uint16())
    assert [tokenizer.decode(ids) for ids in encoded.to_pylist()] == ["one", "", "", "水渠" * 50]
    assert tokenizer.encode(texts.slice(0, 0)).to_pylist() == []
    assert tokenizer.decode(np.array(encoded[0].as_py(), np.uint16)) == "one"


def test_batches_larger_than_one_call_come_back_in_order(tokenizer: BatchTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = pa.array([f"text number {i} " * (i % 7) for i in range(200)], pa.large_string())
    whole = tokenizer.encode(texts)
    monkeypatch.setattr("pipelines.tokenizers.engine.reference.ENCODE_CHARS", 50)
    assert tokenizer.encode(texts).equals(whole)


def test_digits_split_in_threes_and_scripts_do_not_mix(tokenizer: BatchTokenizer) -> None:
    pieces = [tokenizer.decode([token]) for token in tokenizer.encode(pa.array(["1234567 使用Python 3.11"]))[0].as_py()]
    assert all(len(piece) <= 3 for piece in pieces if piece.strip().isdigit())
    assert not any("用P" in piece for piece in pieces)


def test_chinese_takes_fewer_tokens_than_characters_times_one_and_a_half(tokenizer: BatchTokenizer) -> None:
    assert len(tokenizer.encode(pa.array([TEXTS[1]]))[0]) < 1.5 * len(TEXTS[1])


def test_transformers_loads_the_folder_with_its_chat_template(root: Path, ref: TokenizerRef, tokenizer: BatchTokenizer) -> None:
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(root / ref.path)
    assert (loaded.eos_token_id, loaded.pad_token_id, len(loaded)) == (0, 1, ref.vocab_size)
    assert loaded(TEXTS[2])["input_ids"] == tokenizer.encode(pa.array([TEXTS[2]]))[0].as_py()
    assert loaded.decode(loaded(TEXTS[2])["input_ids"]) == TEXTS[2]
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "你好"}]
    prompt = loaded.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert prompt == "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n"
    assert loaded.convert_ids_to_tokens([0, 1, 2, 3]) == list(SPECIAL_TOKENS)
    assert set(loaded.all_special_tokens) == set(SPECIAL_TOKENS)


def test_a_changed_or_missing_file_is_refused(tmp_path: Path) -> None:
    reference = write_tokenizer(tmp_path, TEXTS, SETTINGS)
    path = tmp_path / reference.path / "tokenizer.json"
    path.write_text(path.read_text().replace('"version"', ' "version"'))
    with pytest.raises(TokenizerMismatch, match="restore"):
        load_tokenizer(tmp_path, reference)
    path.unlink()
    with pytest.raises(TokenizerMismatch, match="missing"):
        load_tokenizer(tmp_path, reference)


def given_tokenizer(folder: Path, config: dict[str, object]) -> TokenizerSettings:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", "</s>"], show_progress=False))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return TokenizerSettings(path=str(folder))


def test_a_given_tokenizer_without_pad_pads_with_its_end_of_text(tmp_path: Path) -> None:
    (given := tmp_path / "given").mkdir()
    settings = given_tokenizer(given, {"eos_token": {"content": "</s>"}, "unk_token": "<unk>"})
    reference = write_tokenizer(tmp_path, [], settings)
    assert (reference.eos_token_id, reference.pad_token_id) == (1, 1)
    tokenizer = load_tokenizer(tmp_path, reference)
    (ids,) = tokenizer.encode(pa.array(["not cut off, nor padded </s>"])).to_pylist()
    assert len(ids) > 8
    assert 1 not in ids
    config = json.loads(read_tokenizer(tmp_path / reference.path)["tokenizer_config.json"])
    assert (config["eos_token"], config["pad_token"]) == ("</s>", "</s>")
    assert "assistant:" in config["chat_template"]
    assert write_tokenizer(tmp_path, [], TokenizerSettings(path=str(tmp_path / reference.path))) == reference


def test_a_given_tokenizer_keeps_its_own_chat_template(tmp_path: Path) -> None:
    given_tokenizer(tmp_path, {"eos_token": "</s>"})
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert json.loads(read_tokenizer(tmp_path)["tokenizer_config.json"])["chat_template"] == "{{ messages }}"


def test_a_folder_that_holds_no_usable_tokenizer_is_a_settings_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"tokenizer\.json cannot be used"):
        read_tokenizer(tmp_path)
    given_tokenizer(tmp_path, {})
    with pytest.raises(SettingsError, match="eos_token"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(SettingsError, match="not JSON"):
        read_tokenizer(tmp_path)
