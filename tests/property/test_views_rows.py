"""The rows of a view are its documents' tokens, one after the other, whatever was chosen and retracted."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.dataset.dataset import Dataset
from pipelines.dataset.loader import TokenRows
from pipelines.dataset.shard_maps import ShardMaps
from pipelines.views.rows import ViewRows
from pipelines.views.selection import OpenView, holds, whole
from ray_apps.training.batches import make_batch
from schemas.arrow import Outcome, Split
from schemas.errors import SettingsError
from schemas.view import Filter, Group, Holdout, View
from tests.factories import PAD, clock, make_dataset

Tokens = npt.NDArray[np.int64]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions; the second retracts every third document of both."""
    made = tmp_path_factory.mktemp("rows")
    make_dataset(made, num_rows=150, num_validation_rows=40, sequence_length=32)
    make_dataset(made, num_rows=150, num_validation_rows=40, sequence_length=32, mask=lambda kept: kept.gather_every(3))
    return made


def view(**fields: object) -> View:
    return View.model_validate({"name": "v", "version": 1, "created_at": clock(), **fields})


def kept(dataset: Dataset) -> pl.DataFrame:
    """Kept, unretracted documents in commit order, read without the product's selection."""
    files = [pl.read_parquet(dataset.root / entry.path) for manifest in dataset.manifests() for entry in manifest.documents]
    masks = [pl.read_ipc(dataset.root / entry.path) for manifest in dataset.manifests() for entry in manifest.masks]
    masked = {(row["shard"], row["row"], row["start"]) for frame in masks for row in frame.to_dicts()}
    rows = [row for row in pl.concat(files).to_dicts() if row["outcome"] == Outcome.KEPT]
    return pl.DataFrame([row for row in rows if (row["shard"], row["row"], row["start"]) not in masked], infer_schema_length=None)


def concatenated(dataset: Dataset, documents: pl.DataFrame) -> Tokens:
    maps = ShardMaps(dataset)
    spans = [maps.span(row["shard"], row["row"], row["start"], row["length"]) for row in documents.to_dicts()]
    return np.concatenate([np.empty(0, np.int64), *(span.astype(np.int64) for span in spans)])


def in_rows(tokens: Tokens, sequence_length: int) -> Tokens:
    rows = np.full(-(-len(tokens) // sequence_length) * sequence_length, PAD, np.int64)
    rows[: len(tokens)] = tokens
    return rows.reshape(-1, sequence_length)


bounds = st.tuples(st.integers(1, 220), st.integers(1, 220)).map(sorted)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(version=st.sampled_from([1, 2]), chosen=bounds, cut=st.integers(2, 200), data=st.data())
def test_gather_equals_decoding_and_concatenating(root: Path, version: int, chosen: list[int], cut: int, data: st.DataObject) -> None:
    dataset = Dataset(root, version)
    groups = (Group(name="short", weight=1, max_num_tokens=cut), Group(name="long", weight=3))
    asked = view(filter=Filter(min_num_tokens=chosen[0], max_num_tokens=chosen[1]), groups=groups)
    rows = ViewRows(OpenView(dataset, asked, "0" * 64))
    documents = kept(dataset).filter(pl.col("shard").str.contains("-train-") & pl.col("num_tokens").is_between(chosen[0], chosen[1]))
    short, long = documents.filter(pl.col("num_tokens") <= cut), documents.filter(pl.col("num_tokens") > cut)
    expected = np.concatenate([in_rows(concatenated(dataset, part), 32) for part in (short, long)])
    assert (rows.num_rows, rows.num_tokens, rows.num_documents) == (len(expected), documents["length"].sum(), len(documents))
    assert np.array_equal(rows.gather(np.arange(rows.num_rows)), expected)
    if rows.num_rows:
        ids = np.array(data.draw(st.lists(st.integers(0, rows.num_rows - 1), max_size=30)), np.int64)
        assert np.array_equal(rows.gather(ids), expected[ids])


@pytest.mark.parametrize("split", list(Split))
@pytest.mark.parametrize("version", [1, 2])
def test_a_view_without_filters_and_weights_holds_exactly_the_tokens_that_were_kept_and_not_retracted(root: Path, version: int, split: Split) -> None:
    dataset = Dataset(root, version)
    documents = kept(dataset).filter(pl.col("shard").str.contains(f"-{split}-"))
    rows = ViewRows(whole(dataset), split)
    expected = concatenated(dataset, documents)
    assert np.array_equal(rows.gather(np.arange(rows.num_rows)), in_rows(expected, 32))
    assert rows.num_tokens == len(expected)
    if split == Split.TRAIN:
        assert rows.num_tokens == dataset.manifest.totals.num_effective_train_tokens
    if version == 1:
        assert np.array_equal(rows.gather(np.arange(rows.num_rows)), TokenRows(root, 1, split).gather(np.arange(rows.num_rows)))


def test_splits_have_no_document_in_common_and_together_are_everything(root: Path) -> None:
    opened = OpenView(Dataset(root), view(holdouts=[Holdout(name="tiny", max_num_tokens=40)]), "0" * 64)
    parts = {split: set(opened.chosen(split)["doc_id"]) for split in opened.view.splits}
    everything = kept(opened.dataset)
    assert parts["tiny"] == set(everything.filter(pl.col("num_tokens") <= 40)["doc_id"])
    assert sum(len(part) for part in parts.values()) == len(set().union(*parts.values())) == len(everything)
    assert ViewRows(opened, "tiny").num_tokens == everything.filter(pl.col("num_tokens") <= 40)["length"].sum()
    with pytest.raises(SettingsError, match="no split 'other'; it has train, validation, tiny"):
        opened.chosen("other")


def test_one_document_alone_is_judged_as_it_is_among_all(root: Path) -> None:
    groups = (Group(name="short", weight=1, max_num_tokens=50), Group(name="long", weight=1, min_num_tokens=100, language=("en",)))
    asked = view(filter=Filter(min_num_tokens=5, not_language=("zh",)), groups=groups, holdouts=[Holdout(name="tiny", max_num_tokens=20)])
    opened = OpenView(Dataset(root), asked, "0" * 64)
    chosen = set(opened.chosen(Split.TRAIN)["doc_id"])
    documents = kept(opened.dataset).to_dicts()
    assert {row["doc_id"] for row in documents if holds(opened, row)} == chosen and 0 < len(chosen) < len(documents)


def test_rows_that_do_not_exist_are_refused_and_an_empty_view_has_none(root: Path) -> None:
    rows = ViewRows(OpenView(Dataset(root), view(filter=Filter(min_num_tokens=10**6)), "0" * 64))
    assert rows.num_rows == rows.num_tokens == 0
    assert rows.gather(np.empty(0, np.int64)).shape == (0, 32)
    with pytest.raises(IndexError):
        rows.gather(np.array([0]))


def test_the_padding_of_a_last_row_is_no_target(root: Path) -> None:
    dataset = Dataset(root, 1)
    rows = ViewRows(OpenView(dataset, view(filter=Filter(max_num_tokens=20)), "0" * 64))
    targets = make_batch(rows.gather(np.arange(rows.num_rows)), dataset.tokenizer).num_targets
    assert targets == rows.num_tokens - rows.num_rows


def test_the_hash_of_the_data_tells_views_and_dataset_versions_apart(root: Path) -> None:
    first, second = Dataset(root, 1), Dataset(root, 2)
    opened = [OpenView(first, view(), "1" * 64), OpenView(second, view(), "1" * 64), OpenView(first, view(), "2" * 64), whole(first)]
    hashes = [ViewRows(one).dataset_sha256 for one in opened]
    assert len(set(hashes)) == 4 and hashes[3] == first.sha256
