"""Formats end to end: broken records, pages and documents outside their records, from a real broker into a dataset."""

import argparse
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ops.cli import produce
from ops.cli.main import common_flags, settings_from
from pipelines.ingest.freshness import VersionTimes
from pipelines.ingest.progress import Progress
from pipelines.ingest.stream import ingest_once
from pipelines.kafka.clients import open_producer
from pipelines.kafka.reading import Slice, read_slice
from pipelines.steps.decode import decode
from schemas.manifest import DatasetManifest
from tests.broker_process import BrokerProcess
from tests.ingest_harness import ENGLISH, Ingest
from tests.integration.conftest import Stream
from tests.unit.test_kafka_records import BytesName

WORDS = ENGLISH.split(" ")


def long_text(num_bytes: int) -> str:
    """Sentences that no quality rule minds and no two of which are alike."""
    rng = random.Random(7)
    lines, size = [], 0
    while size < num_bytes:
        lines.append(" ".join(f"{word}" if rng.random() < 0.6 else f"{word}{rng.randrange(10**6)}" for word in rng.choices(WORDS, k=14)) + ".")
        size += len(lines[-1]) + 1
    return "\n".join(lines)


def run_produce(ingest: Ingest, *arguments: str) -> int:
    parser = argparse.ArgumentParser()
    produce.add_parser(parser.add_subparsers(dest="command"), common_flags())
    flags = [part for name, value in ingest.values.items() for part in ("--set", f"{name}={value}")]
    args = parser.parse_args(["produce", *flags, *arguments])
    return int(args.run(args, settings_from(args)))


def outcomes(ingest: Ingest) -> dict[str, tuple[str, int]]:
    tables = [pq.read_table(file) for file in sorted((ingest.root / "documents").rglob("*.parquet"))]
    rows = pa.concat_tables(tables).to_pylist()
    return {row["doc_id"] or f"{row['partition']}/{row['offset']}": (row["reason"] or row["outcome"], row["num_chars"] or 0) for row in rows}


def test_a_header_name_that_is_not_utf8_is_a_dead_letter_and_the_others_are_read(stream: Stream) -> None:
    topic = stream.create()
    value = b'{"text": "water"}'
    with open_producer(stream.settings, linger_ms=200) as producer:
        for number in range(5):
            producer.send(topic, value, headers=[(BytesName("x") if number == 2 else "x", b"1")])
    table = decode(read_slice(Slice(topic, 0, 0, 5), stream.settings), stream.settings)
    assert table["reason"].to_pylist() == [None, None, "bad_header", None, None]
    assert table["text"].to_pylist() == ["water", "water", None, "water", "water"]


class Told(Progress):
    """Bytes of the versions that were committed."""

    size_bytes = 0

    def committed(self, manifest: DatasetManifest, times: VersionTimes) -> None:
        self.size_bytes += times.size_bytes


def check_document_outside_its_record(broker: BrokerProcess, prefix: str, tmp_path: Path, num_bytes: int, outcome: str, **values: int) -> None:
    named = {name.replace("__", "."): value for name, value in values.items()}
    ingest = Ingest(tmp_path / "root", broker.bootstrap_servers, prefix, {"tokenizer.max_training_bytes": 200_000} | named)
    tmp_path.mkdir(exist_ok=True)
    text = long_text(num_bytes)
    lines = [{"id": "large", "text": text}, {"id": "small", "text": long_text(400)}]
    (tmp_path / "docs.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    assert run_produce(ingest, str(tmp_path / "docs.jsonl")) == 0
    (blob,) = (ingest.root / "blobs").iterdir()
    assert blob.stat().st_size > num_bytes
    told = Told()
    ingest_once(ingest.settings, progress=told)
    assert told.size_bytes > blob.stat().st_size, "what lies outside the records counts"
    found = outcomes(ingest)
    assert found["large"] == (outcome, len(text))
    assert found["small"][0] in ("kept", "near")


def test_a_document_of_three_megabytes_goes_through_default_message_limits(broker: BrokerProcess, topic_prefix: str, tmp_path: Path) -> None:
    check_document_outside_its_record(broker, topic_prefix, tmp_path, 3_000_000, "kept", quality__max_chars=10**9)


@pytest.mark.slow
def test_a_document_of_fifty_megabytes_goes_through_and_is_too_long_unless_books_are_wanted(
    broker: BrokerProcess, topic_prefix: str, tmp_path: Path
) -> None:
    check_document_outside_its_record(broker, topic_prefix, tmp_path / "books", 50_000_000, "kept", quality__max_chars=10**9)
    check_document_outside_its_record(broker, f"{topic_prefix}-2", tmp_path / "default", 50_000_000, "too_long")


def test_a_blob_that_is_gone_or_changed_is_a_dead_letter(broker: BrokerProcess, topic_prefix: str, tmp_path: Path) -> None:
    ingest = Ingest(tmp_path / "root", broker.bootstrap_servers, topic_prefix, {"formats.max_inline_bytes": 2_000})
    lines = [json.dumps({"id": f"d{i}", "text": long_text(3_000) + f" {i}"}) for i in range(3)]
    (tmp_path / "docs.jsonl").write_text("\n".join([*lines, json.dumps({"id": "inline", "text": long_text(500)})]))
    assert run_produce(ingest, str(tmp_path / "docs.jsonl")) == 0
    blobs = {json.loads(blob.read_bytes())["id"]: blob for blob in (ingest.root / "blobs").iterdir()}
    blobs["d0"].unlink()
    blobs["d1"].write_bytes(b"something else")
    ingest_once(ingest.settings)
    assert sorted(reason for reason, _ in outcomes(ingest).values())[:2] == ["dataref_mismatch", "dataref_missing"]
    assert outcomes(ingest)["d2"][0] == "kept"
