"""Whatever a batch consists of, its outcomes add up to its offsets and every kept document is where the audit trail says."""

import itertools
import json

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.dataset.dataset import Dataset
from pipelines.dataset.verify import verify
from schemas.arrow import Outcome
from tests.factories import commit_records, text_settings

TEXTS = [f"Grain number {index} is ground between two stones that people cut by hand long ago, 石磨 {index}." for index in range(6)]
records = st.one_of(
    st.sampled_from(TEXTS).map(lambda text: (None, json.dumps({"text": text}).encode())),
    st.text(max_size=60).map(lambda text: (None, json.dumps({"id": "x", "text": text}).encode())),
    st.binary(max_size=20).map(lambda value: (None, value)),
    st.binary(min_size=1, max_size=5).map(lambda key: (key, None)),
    st.just((None, None)),
)


@settings(max_examples=12, deadline=None)
@given(batches=st.lists(st.lists(records, min_size=1, max_size=25), min_size=1, max_size=3), shard_rows=st.integers(1, 6))
def test_outcomes_add_up_and_nothing_is_kept_twice(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[tuple[bytes | None, bytes | None]]], shard_rows: int
) -> None:
    root = tmp_path_factory.mktemp("batches")
    for batch in batches:
        manifest = commit_records(root, batch, text_settings(root, **{"packing.shard_rows": shard_rows}))
        assert sum(manifest.outcomes.values()) == manifest.num_records == len(batch)
    assert verify(root).problems == []
    documents = pl.concat([pl.read_parquet(root / entry.path) for version in Dataset(root).manifests() for entry in version.documents])
    assert documents["offset"].to_list() == list(range(sum(map(len, batches))))
    without_record = [offset for offset, value in enumerate(itertools.chain.from_iterable(batches)) if value == (None, None)]
    assert documents.filter(pl.col("outcome") == "control")["offset"].to_list() == without_record
    assert set(documents["outcome"]) <= set(Outcome)
    kept = documents.filter(pl.col("outcome") == "kept")
    assert kept["num_tokens"].sum() == Dataset(root).manifest.totals.num_tokens
    assert kept["fingerprint"].null_count() == kept["shard"].null_count() == 0
    duplicates = documents.filter(pl.col("outcome") == "duplicate")
    assert set(duplicates["duplicate_of"]) <= set(kept["doc_id"])
