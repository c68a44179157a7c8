"""Whatever was ingested and retracted before: behind a switch, what comes next meets the same fate in the new lineage as in the old one."""

import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.dataset.audit import live_texts
from pipelines.dataset.dataset import Dataset
from pipelines.dataset.switch import WITHDRAWN, switch
from pipelines.dataset.verify import verify
from pipelines.tokenizers.tokenizer import train_tokenizer
from schemas.manifest import DatasetManifest
from schemas.settings_data import TokenizerSettings
from tests.factories import clock, commit_records, text_settings

ENGLISH = "the mill turns when water comes down from the hill and grain is ground between two stones that people cut by hand"
CHINESE = "水从山上流下来推动石磨转动人们用它把谷物磨成面粉这是很久以前的事情村子里的人都记得"
TEXTS = (
    f"{ENGLISH} long ago in the north",
    f"{ENGLISH} long ago in the south",
    f"{CHINESE}，磨坊在河边。",
    f"{CHINESE}，磨坊在山边。",
    " ".join(reversed(ENGLISH.split())),
    "too short",
)
FILES = train_tokenizer([*TEXTS, ENGLISH.upper()], TokenizerSettings(vocab_size=300))
PLACE = ["topic", "partition", "offset"]
FATE = [*PLACE, "doc_id", "outcome", "reason", "duplicate_of", "similarity", "fingerprint", "language", "num_chars"]

Value = tuple[bytes | None, bytes | None]
ids = st.sampled_from([f"id-{number}" for number in range(4)])


def document(doc_id: str, text: str) -> Value:
    return doc_id.encode(), json.dumps({"id": doc_id, "text": text}, ensure_ascii=False).encode()


records = st.one_of(
    st.builds(document, ids, st.sampled_from(TEXTS)),
    ids.map(lambda doc_id: (doc_id.encode(), None)),
    st.just((b"k", b"{")),
    st.just((None, None)),
)
batches = st.lists(st.lists(records, min_size=1, max_size=6), min_size=1, max_size=3)


def rows_of(root: Path, manifest: DatasetManifest) -> pl.DataFrame:
    return pl.read_parquet(root / manifest.documents[0].path)


def fates(root: Path, manifest: DatasetManifest) -> list[dict[str, Any]]:
    return rows_of(root, manifest).select(FATE).to_dicts()


def texts_of(root: Path) -> list[tuple[str, str]]:
    return [(row["doc_id"], row["text"]) for block in live_texts(Dataset(root), ["doc_id"]) for row in block.to_pylist()]


@settings(max_examples=5, deadline=None)
@given(before=batches, after=batches)
def test_what_comes_next_meets_the_same_fate_in_both_lineages(before: list[list[Value]], after: list[list[Value]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        old, new = Path(folder, "old"), Path(folder, "new")
        for values in before:
            commit_records(old, values)
        source = Dataset(old)
        first = switch(source, FILES, new, text_settings(old), clock()).manifest
        assert first.num_records == source.manifest.totals.num_records
        assert texts_of(new) == texts_of(old)
        was, now = pl.concat([rows_of(old, manifest) for manifest in source.manifests()]), rows_of(new, first)
        withdrawn = now["reason"].eq_missing(WITHDRAWN)
        assert withdrawn.sum() == source.manifest.totals.num_masked_documents
        assert was.filter(~withdrawn).select(FATE).equals(now.filter(~withdrawn).select(FATE))
        for values in after:
            assert fates(new, commit_records(new, values)) == fates(old, commit_records(old, values))
        assert texts_of(new) == texts_of(old)
        assert verify(new).problems == verify(old).problems == []
        assert [manifest.version for manifest in Dataset(new).manifests()] == list(itertools.accumulate([1] * (1 + len(after))))
