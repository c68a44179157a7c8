"""Nothing of a masked document's text is read, everything else is; older versions are read as they were."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.dataset.dataset import Dataset
from pipelines.dataset.loader import TokenRows
from pipelines.dataset.retractions.masks import Ids, Mask, SpanMask, write_masks
from pipelines.dataset.shards import open_shard
from ray_apps.training.batches import make_batch
from ray_apps.training.cross_entropy import IGNORED
from schemas.arrow import MASKS, Split
from schemas.manifest import TokenizerRef
from tests.factories import EOS, PAD, make_dataset


@st.composite
def spans(draw: st.DrawFn) -> tuple[int, int, list[tuple[int, int]]]:
    """Rows, row length, disjoint spans (start, end) in any order."""
    num_rows, sequence_length = draw(st.integers(1, 12)), draw(st.integers(1, 9))
    cuts = sorted(draw(st.sets(st.integers(0, num_rows * sequence_length), max_size=12)))
    pairs = list(zip(cuts[::2], cuts[1::2], strict=False))
    return num_rows, sequence_length, draw(st.permutations(pairs))


@settings(max_examples=200, deadline=None)
@given(case=spans(), data=st.data())
def test_the_mask_of_any_rows_is_that_of_the_flat_run(case: tuple[int, int, list[tuple[int, int]]], data: st.DataObject) -> None:
    num_rows, sequence_length, pairs = case
    flat = np.zeros(num_rows * sequence_length, dtype=bool)
    for start, end in pairs:
        flat[start:end] = True
    rows = np.array(data.draw(st.lists(st.integers(0, num_rows - 1), max_size=15)), dtype=np.int64)
    starts, ends = np.array([start for start, _ in pairs], np.int64), np.array([end for _, end in pairs], np.int64)
    if pairs:
        found = SpanMask(starts, ends - starts).of_rows(rows, sequence_length)
        assert np.array_equal(found, flat.reshape(num_rows, sequence_length)[rows])


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 1: documents. Version 2: more, and every third of all documents so far is retracted. Version 3: more."""
    root = tmp_path_factory.mktemp("masked")
    make_dataset(root, num_rows=40, sequence_length=16)
    make_dataset(root, num_rows=40, sequence_length=16, mask=lambda kept: kept.gather_every(3))
    make_dataset(root, num_rows=10, sequence_length=16)
    return root


def naive(root: Path, version: int, split: Split) -> tuple[Ids, Mask]:
    """All rows of a split, and which positions are masked, by painting one span after the other."""
    dataset = Dataset(root, version)
    sequence_length = dataset.manifest.sequence_length
    files = [root / entry.path for manifest in dataset.manifests() for entry in manifest.masks]
    spans = [span for path in files for span in pl.read_ipc(path).to_dicts()]
    rows, flags = [], []
    for entry in dataset.shards(split):
        flat = open_shard(root / entry.path).reshape(-1).astype(np.int64)
        flag = np.zeros(flat.size, dtype=bool)
        for span in spans:
            first = span["row"] * sequence_length + span["start"]
            if span["shard"] == entry.path:
                flag[first : first + span["length"]] = True
        rows.append(flat.reshape(-1, sequence_length))
        flags.append(flag.reshape(rows[-1].shape))
    return np.concatenate(rows), np.concatenate(flags)


@pytest.mark.parametrize("split", list(Split))
@pytest.mark.parametrize("version", [1, 2, 3])
def test_gather_with_masks_equals_painting_the_spans_one_by_one(masked: Path, version: int, split: Split) -> None:
    rows, flags = naive(masked, version, split)
    assert flags.any() == (version > 1)
    ids = np.random.default_rng(0).integers(0, len(rows), 200)
    found, retracted = TokenRows(masked, version, split).gather_masked(ids)
    expected = np.where(flags & (rows != EOS), PAD, rows)
    assert np.array_equal(found, expected[ids])
    assert np.array_equal(retracted if retracted is not None else np.zeros_like(flags[ids]), flags[ids])
    if version == 1:
        assert retracted is None


@pytest.mark.parametrize("pad", [PAD, EOS])
def test_retracted_tokens_are_neither_inputs_nor_targets_and_all_others_are_as_before(masked: Path, pad: int) -> None:
    tokenizer = Dataset(masked).tokenizer.model_copy(update={"pad_token_id": pad})
    rows, flags = naive(masked, 3, Split.TRAIN)
    before = make_batch(rows, tokenizer)
    after = make_batch(np.where(flags & (rows != EOS), pad, rows), tokenizer, flags)
    hidden = flags[:, 1:]
    assert (after.target_BT.numpy()[hidden] == IGNORED).all()
    assert np.array_equal(after.target_BT.numpy()[~hidden], before.target_BT.numpy()[~hidden])
    text = flags[:, :-1] & (rows[:, :-1] != EOS)
    assert (after.input_BT.numpy()[text] == pad).all()
    assert np.array_equal(after.input_BT.numpy()[~text], before.input_BT.numpy()[~text])
    assert after.num_targets == before.num_targets - int((hidden & (before.target_BT.numpy() != IGNORED)).sum())


def test_the_end_of_the_document_before_a_retracted_tail_stays_a_target_where_padding_is_the_end_token() -> None:
    tokenizer = TokenizerRef(sha256="0" * 64, path="tokenizer/x", vocab_size=300, eos_token_id=0, pad_token_id=0)
    rows = np.array([[5, 6, 0, 0, 0, 0, 0, 0]])  # 5 6 end, then a retracted document and its end, then padding
    flags = np.array([[False, False, False, True, True, True, False, False]])
    assert make_batch(rows, tokenizer, flags).target_BT.tolist() == [[6, 0, *[IGNORED] * 5]]


def test_masked_tokens_are_counted_and_do_not_count_as_training_tokens(masked: Path) -> None:
    manifest = Dataset(masked).manifest
    _, flags = naive(masked, 3, Split.TRAIN)
    _, held_out = naive(masked, 3, Split.VALIDATION)
    totals = manifest.totals
    assert totals.num_masked_train_tokens == flags.sum()
    assert totals.num_masked_tokens == flags.sum() + held_out.sum() == Dataset(masked, 2).manifest.num_masked_tokens
    assert totals.num_effective_train_tokens == totals.num_train_tokens - flags.sum() == Dataset(masked).ref().num_train_tokens
    assert manifest.num_masked_documents == 0
    assert Dataset(masked, 1).manifest.totals.num_masked_tokens == 0


def test_a_version_without_retractions_has_no_mask_file(tmp_path: Path) -> None:
    assert write_masks(tmp_path, 1, "0" * 12, MASKS.empty_table()).files == []
    assert list(tmp_path.iterdir()) == []
