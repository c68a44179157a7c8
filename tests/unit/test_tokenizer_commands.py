"""headrace tokenizer as a person uses it: what is fitted can be listed, compared, imported again and switched to."""

import json
from pathlib import Path
from typing import Any

import pytest

from ops.cli.main import main
from pipelines.dataset.audit import live_texts
from pipelines.dataset.dataset import Dataset, latest_version
from pipelines.dataset.verify import verify
from pipelines.tokenizers.balance import level
from pipelines.tokenizers.fertility import vocabulary_of
from pipelines.tokenizers.tokenizer import TOKENIZER_FILE, train_tokenizer
from schemas.manifest import DatasetManifest
from schemas.settings_data import TokenizerSettings
from tests.factories import commit_records, text_settings

ENGLISH = "The wheel turns when the water comes down from the hill, and the miller grinds the grain of the whole valley between two stones"
CHINESE = "水从山上流下来推动石磨转动，人们用它把谷物磨成面粉，这是很久以前的事情，村子里的人都还记得那座老磨坊"


class Command:
    """The command line, in this process, under one root."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root = root
        self._capsys = capsys

    def __call__(self, *arguments: str, code: int = 0) -> str:
        """Its standard output, or its standard error where it fails."""
        self._capsys.readouterr()
        assert main(["tokenizer", *arguments, "--root", str(self.root)]) == code
        captured = self._capsys.readouterr()
        return captured.err if code else captured.out

    def json(self, *arguments: str) -> Any:
        """Its answer as JSON."""
        return json.loads(self(*arguments, "--json"))


@pytest.fixture
def tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(tmp_path / "data", capsys)


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    """Much English, little Chinese."""
    texts = [f"{ENGLISH} {index}" for index in range(40)] + [f"{CHINESE}{index}" for index in range(4)]
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return str(path)


def lossy_tokenizer(folder: Path) -> Path:
    """One that writes everything in lower case."""
    files = train_tokenizer([ENGLISH.lower(), CHINESE], TokenizerSettings(vocab_size=320))
    value = json.loads(files[TOKENIZER_FILE]) | {"normalizer": {"type": "Lowercase"}}
    folder.mkdir()
    for name, data in (files | {TOKENIZER_FILE: json.dumps(value).encode()}).items():
        (folder / name).write_bytes(data)
    return folder


def commit(root: Path, *texts: str, path: str = "") -> None:
    values: list[tuple[bytes | None, bytes | None]] = []
    for index, text in enumerate(texts):
        values.append((b"k", json.dumps({"id": f"doc-{index}", "text": text}).encode()))
    commit_records(root, values, text_settings(root, **{"tokenizer.path": path}))


def by_language(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["language"]: row for row in rows}


def test_a_fitted_tokenizer_tells_fertility_per_word_or_character_and_is_listed(tokenizer: Command, corpus: str) -> None:
    fitted = tokenizer.json("fit", corpus, "--vocab-size", "400", "--name", "mine")
    rows = by_language(fitted["fertility"])
    assert set(rows) == {"all", "en", "zh"}
    assert rows["en"]["documents"] == 40
    assert rows["en"]["tokens_per_word"] == pytest.approx(rows["en"]["tokens"] / rows["en"]["words"])
    assert rows["zh"]["tokens_per_word"] is None
    assert 0 < rows["zh"]["tokens_per_character"] == pytest.approx(rows["zh"]["tokens"] / rows["zh"]["characters"])
    assert rows["all"]["bytes"] == rows["en"]["bytes"] + rows["zh"]["bytes"] == fitted["num_bytes"]
    assert rows["en"]["fragment_share"] == 0 < rows["zh"]["fragment_share"]
    [listed] = tokenizer.json("list")["tokenizers"]
    assert (listed["sha256"], listed["name"], listed["origin"], listed["dataset_version"]) == (fitted["sha256"], "mine", "trained", None)
    shown = tokenizer.json("show", fitted["sha256"][:6])
    assert (shown["engine"], shown["round_trip"]["lossy"], shown["card"]["languages"]) == ("gigatoken", [], fitted["languages"])
    assert "17 probes" in tokenizer("show", fitted["sha256"])


def test_balancing_gives_a_small_language_all_it_has(tokenizer: Command, corpus: str) -> None:
    limit = ("--set", "tokenizer.max_training_bytes=1500", "--vocab-size", "400")
    plain, balanced = tokenizer.json("fit", corpus, *limit), tokenizer.json("fit", corpus, "--balance", *limit)
    assert set(plain["languages"]) == {"en"}
    assert balanced["languages"]["zh"] > 500
    assert balanced["languages"]["en"] < plain["languages"]["en"]
    assert level({"a": 10, "b": 100, "c": 1000}, 300) == {"a": 10, "b": 100, "c": 190}
    assert level({"a": 500, "b": 500}, 300) == {"a": 150, "b": 150}


def test_a_dataset_gives_the_texts_and_says_which_tokenizer_is_in_use(tokenizer: Command) -> None:
    commit(tokenizer.root, ENGLISH, CHINESE * 2)
    [listed] = tokenizer.json("list")["tokenizers"]
    assert (listed["origin"], listed["dataset_version"]) == ("trained", 1)
    fitted = tokenizer.json("fit", "--from-dataset", "--vocab-size", "300")
    assert (fitted["num_documents"], set(fitted["languages"])) == (2, {"en", "zh"})
    compared = tokenizer.json("inspect", listed["sha256"], "--against", fitted["sha256"], "--version", "1")
    assert by_language(compared["languages"])["all"]["tokens"] == Dataset(tokenizer.root).manifest.num_tokens - 2
    assert [row["documents"] for row in compared["languages"]] == [row["documents"] for row in compared["against"]["languages"]]
    assert compared["against"]["languages"][0]["tokens"] > compared["languages"][0]["tokens"]
    assert compared["vocab_size"] - compared["special_ids"] > compared["unused_ids"] > 0
    assert "second / first" in tokenizer("inspect", listed["sha256"], "--against", fitted["sha256"])
    assert "one of the two" in tokenizer("fit", code=2)
    assert "0 tokenizers under" in tokenizer("show", "abcdef", code=2)


def test_what_is_imported_is_the_same_tokenizer_and_a_lossy_one_is_told(tokenizer: Command, corpus: str, tmp_path: Path) -> None:
    fitted = tokenizer.json("fit", corpus, "--vocab-size", "350", "--output", str(tmp_path / "elsewhere"))
    assert tokenizer.json("list")["tokenizers"] == []
    imported = tokenizer.json("import", str(tmp_path / "elsewhere"), "--name", "again")
    assert (imported["sha256"], imported["origin"], imported["card"]["name"]) == (fitted["sha256"], "imported", "again")
    bare = tmp_path / "bare.json"
    bare.write_bytes((tmp_path / "elsewhere" / TOKENIZER_FILE).read_bytes())
    assert "names no eos_token" in tokenizer("import", str(bare), code=2)
    assert tokenizer.json("import", str(bare), "--eos-token", "<|endoftext|>", "--pad-token", "<|pad|>")["sha256"] == fitted["sha256"]
    lossy = tokenizer.json("import", str(lossy_tokenizer(tmp_path / "lossy")))
    assert (lossy["engine"], lossy["engine_because"]) == ("huggingface", "gigatoken: Unsupported normalizer type: Lowercase")
    assert lossy["round_trip"]["lossy"]
    assert len(tokenizer.json("list")["tokenizers"]) == 2


def test_vocabularies_are_read_as_bytes() -> None:
    vocabulary = vocabulary_of(train_tokenizer([CHINESE * 9, ENGLISH * 9], TokenizerSettings(vocab_size=400)))
    assert {bytes([byte]) for byte in range(256)} <= set(vocabulary.tokens)
    assert vocabulary.is_single_byte.sum() == 256
    assert vocabulary.tokens.index(b"\xe6") in vocabulary.is_fragment.nonzero()[0]
    assert any(token and len(token) > 3 and token in CHINESE.encode() for token in vocabulary.tokens)
    assert vocabulary.is_special.nonzero()[0].tolist() == [0, 1, 2, 3]


def test_a_switch_from_an_imported_tokenizer_needs_every_text_back(tokenizer: Command, tmp_path: Path, corpus: str) -> None:
    fitted = tokenizer.json("fit", corpus, "--vocab-size", "330", "--output", str(tmp_path / "fitted"))
    lossy, lossless = tmp_path / "lossy-data", tmp_path / "lossless-data"
    commit(lossy, ENGLISH, path=str(lossy_tokenizer(tmp_path / "lossy")))
    commit(lossless, ENGLISH, CHINESE, path=str(tmp_path / "fitted"))
    assert verify(lossy).problems == verify(lossless).problems == []
    target = tmp_path / "new"
    tokenizer.root = lossy
    refused = tokenizer("switch", str(tmp_path / "fitted"), "--into", str(target), code=1)
    assert "'doc-0'" in refused
    assert "does not decode every text to the original" in refused
    assert latest_version(target) == 0
    tokenizer.root = lossless
    other = str(tmp_path / "other")
    tokenizer.json("fit", corpus, "--vocab-size", "390", "--output", other)
    switched = tokenizer.json("switch", other, "--into", str(target))
    assert (switched["version"], switched["is_new"], switched["derived_from"]["tokenizer_sha256"]) == (1, True, fitted["sha256"])
    assert "had been switched before" in tokenizer("switch", other, "--into", str(target))
    assert [block["text"].to_pylist() for block in live_texts(Dataset(target))] == [[ENGLISH, CHINESE]]
    assert verify(target).problems == []
    assert verify(target).documents_decoded == 2


def test_every_field_of_a_manifest_has_its_place_in_a_new_lineage() -> None:
    """A new field wants a decision in pipelines/dataset/switch.py: recomputed by build_manifest, taken along, or empty in a first version."""
    recomputed = {"format", "version", "parent", "created_at", "attempt", "outcomes", "reasons", "num_records", "num_tokens", "shards", "documents"}
    recomputed |= {"tokenizer", "sequence_length", "settings_fingerprint", "languages", "statistics", "totals", "derived_from", "traceparent"}
    recomputed |= {"code_version"}
    taken_along = {"topic_ids", "offsets", "record_bytes", "leader_epochs", "dedup_segments", "boilerplate", "boilerplate_first_version"}
    empty = {"accepted_loss", "dedup_base", "dedup_base_version", "masks", "merged", "num_masked_documents", "num_masked_tokens"}
    assert set(DatasetManifest.model_fields) == recomputed | taken_along | empty
