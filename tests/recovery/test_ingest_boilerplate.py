"""Lines that many documents have are taken out of later versions, the same ones whatever crashed in between."""

import random
import signal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.dataset.boilerplate import counts_files
from pipelines.dataset.dataset import Dataset
from pipelines.dataset.gc import orphans
from pipelines.dataset.shard_maps import ShardMaps
from pipelines.dataset.texts import SPAN, read_texts
from pipelines.dataset.trail import read_kept
from pipelines.dataset.verify import verify
from pipelines.dedup.paragraphs import EMPTY, ParagraphCounts, distinct_paragraphs
from pipelines.ingest.stream import Stream
from pipelines.runtime.crash import CRASH_POINTS
from pipelines.tokenizers.tokenizer import load_tokenizer
from schemas.arrow import Outcome
from schemas.manifest import DatasetManifest
from tests.broker_process import BrokerProcess
from tests.ingest_harness import CHINESE, ENGLISH, Ingest, Record, document, state

ENGLISH_FOOTER = "© Example Publishing House. All rights reserved; no part may be copied."
CHINESE_FOOTER = "版权所有，未经许可不得转载，违者必究。"
ON: dict[str, object] = {"dedup.boilerplate": True, "ingest.max_batch_records": 15, "ingest.slice_records": 6, "tokenizer.vocab_size": 400}
NUM_VERSIONS = 4
POINTS = ("masks_written:2", "segment_written:2", "published:2")
"""Where lines make a difference: before and after a version's counts are written, the second version being the first that knows any."""


def articles(number: int) -> list[Record]:
    """English and Chinese in turn, each with both footers."""
    rng = random.Random(7)
    records = []
    for index in range(number):
        words, glue = (ENGLISH.split(), " ") if index % 2 else (list(CHINESE), "")
        body = glue.join(rng.choices(words, k=rng.randint(40, 80))) + f" {index}"
        records.append(document(f"doc-{index}", f"{body}\n\n{ENGLISH_FOOTER}\n{CHINESE_FOOTER}", index % 2))
    return records


@pytest.fixture(scope="module")
def source(broker: BrokerProcess, tmp_path_factory: pytest.TempPathFactory) -> Ingest:
    ingest = Ingest(tmp_path_factory.mktemp("reference"), broker.bootstrap_servers, "boilerplate", ON)
    ingest.publish(articles(15 * NUM_VERSIONS))
    assert len(ingest.once()) == NUM_VERSIONS
    return ingest


def manifests(ingest: Ingest) -> list[DatasetManifest]:
    return list(Dataset(ingest.root).manifests())


def kept_texts(root: Path, manifest: DatasetManifest) -> list[str]:
    kept = read_kept([root / entry.path for entry in manifest.documents], SPAN)
    return read_texts(ShardMaps(Dataset(root)), load_tokenizer(root, manifest.tokenizer), kept)


def test_footers_of_one_version_are_gone_from_the_next(source: Ingest) -> None:
    first, *later = manifests(source)
    assert first.outcomes[Outcome.KEPT] == 15
    for text in kept_texts(source.root, first):
        assert text.endswith(f"\n\n{ENGLISH_FOOTER}\n{CHINESE_FOOTER}")
    for manifest in later:
        for text in kept_texts(source.root, manifest):
            assert len(text) > 40
            assert ENGLISH_FOOTER not in text
            assert CHINESE_FOOTER not in text
            assert text == text.strip()
    assert verify(source.root).problems == []


def test_counts_add_up_over_all_kept_documents_and_few_files_hold_them(source: Ingest) -> None:
    dataset = Dataset(source.root)
    files = counts_files(dataset)
    assert len(files) < NUM_VERSIONS
    assert files[0].first_version == 1
    total = EMPTY
    for file in files:
        total = total.merge(ParagraphCounts.load(dataset.root / file.entry.path))
    footers = distinct_paragraphs(pa.array([f"{ENGLISH_FOOTER}\n{CHINESE_FOOTER}"], pa.large_string()), 20).to_pylist()[0]
    counted = dict(zip(total.hashes.tolist(), total.num_documents.tolist(), strict=True))
    num_kept = sum(manifest.outcomes[Outcome.KEPT] for manifest in dataset.manifests())
    assert [counted[line] for line in footers] == [num_kept, num_kept]


def test_a_new_process_for_each_version_gives_what_one_process_gave(ingest: Ingest, reference: list[dict[str, Any]]) -> None:
    for _ in range(NUM_VERSIONS):
        with Stream(ingest.settings) as stream:
            stream.commit_next()
    assert state(ingest.root) == reference


@pytest.mark.parametrize("point", ["segment_written:2", *(pytest.param(point, marks=pytest.mark.slow) for point in POINTS[::2])])
def test_crash_between_the_files_of_a_version_takes_the_same_lines_out(ingest: Ingest, reference: list[dict[str, Any]], point: str) -> None:
    crashed = ingest.run(crash_at=point)
    assert crashed.returncode == -signal.SIGKILL, crashed.stderr
    ingest.once()
    assert state(ingest.root) == reference
    assert verify(ingest.root).problems == []


@pytest.mark.slow
@pytest.mark.parametrize("point", CRASH_POINTS)
def test_crash_at_every_step_of_the_commit_protocol_takes_the_same_lines_out(ingest: Ingest, reference: list[dict[str, Any]], point: str) -> None:
    test_crash_between_the_files_of_a_version_takes_the_same_lines_out(ingest, reference, point)


def test_counts_of_a_crashed_attempt_are_removed_when_its_grace_is_over(ingest: Ingest, reference: list[dict[str, Any]]) -> None:
    assert ingest.run(crash_at="segment_written").returncode == -signal.SIGKILL
    assert "boilerplate" in {path.split("/")[0] for path in orphans(ingest.root)}
    Ingest(ingest.root, ingest.bootstrap_servers, ingest.prefix, {**ON, "ingest.gc_grace_s": 0}).once()
    assert orphans(ingest.root) == []
    assert state(ingest.root) == reference
