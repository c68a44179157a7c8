"""`headrace produce` against a real broker."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from kafka import TopicPartition

from ops.cli import produce
from ops.cli.main import common_flags, settings_from
from ops.producing.findings import file_id
from pipelines.kafka.clients import open_admin, open_consumer
from schemas.documents import Document, decode_document
from schemas.envelope import decode_event
from schemas.errors import BrokerUnavailable
from schemas.settings import Settings
from tests.broker_process import BrokerProcess

DEADLINE_S = 30.0


def run_produce(broker: BrokerProcess, prefix: str, *arguments: str) -> int:
    parser = argparse.ArgumentParser()
    produce.add_parser(parser.add_subparsers(dest="command"), common_flags())
    args = parser.parse_args(["produce", "--bootstrap-servers", broker.bootstrap_servers, "--set", f"kafka.topic_prefix={prefix}", *arguments])
    return int(args.run(args, settings_from(args)))


def settings_for(broker: BrokerProcess, prefix: str) -> Settings:
    return Settings.model_validate({"kafka": {"bootstrap_servers": broker.bootstrap_servers, "topic_prefix": prefix}})


def read_topic(broker: BrokerProcess, prefix: str) -> list[Any]:
    """All records of the documents topic."""
    with open_consumer(settings_for(broker, prefix)) as consumer:
        partitions = [TopicPartition(f"{prefix}.documents", number) for number in consumer.partitions_for_topic(f"{prefix}.documents")]
        consumer.assign(partitions)
        consumer.seek_to_beginning(*partitions)
        ends = consumer.end_offsets(partitions)
        records: list[Any] = []
        deadline = time.monotonic() + DEADLINE_S
        while any(consumer.position(partition) < ends[partition] for partition in partitions):
            assert time.monotonic() < deadline
            for batch in consumer.poll(timeout_ms=200).values():
                records += batch
    return records


def decoded(record: Any) -> Document:
    document = decode_document(record.key, record.value, record.headers, record.topic, record.partition, record.offset, max_bytes=2**30)
    assert isinstance(document, Document)
    return document


def test_files_become_cloud_events_keyed_by_document_id(
    broker: BrokerProcess, topic_prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": "own", "text": "水车", "lang": "zh"}\n{"text": "second"}\n', encoding="utf-8")
    (tmp_path / "b.html").write_text("<title>Page</title><p>third", encoding="utf-8")
    assert run_produce(broker, topic_prefix, str(tmp_path), "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    records = read_topic(broker, topic_prefix)
    assert summary == {
        "topic": f"{topic_prefix}.documents",
        "published": 3,
        "bytes": sum(len(record.value) for record in records),
        "too_large": [],
        "failed": [],
        "skipped": 0,
        "skipped_kinds": {},
        "blobs": 0,
    }
    documents = {decoded(record).doc_id: decoded(record) for record in records}
    assert {document.text for document in documents.values()} == {"水车", "second", "<title>Page</title><p>third"}
    assert documents["own"].lang == "zh"
    assert documents[file_id(str(tmp_path / "b.html"))].title == "Page"
    for record in records:
        event = decode_event(record.value, record.headers)
        assert record.key.decode() == event.subject == decoded(record).doc_id


def test_publishing_twice_sends_the_same_events(broker: BrokerProcess, topic_prefix: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the same text")
    for _ in range(2):
        assert run_produce(broker, topic_prefix, str(tmp_path)) == 0
    first, second = (decode_event(record.value, record.headers) for record in read_topic(broker, topic_prefix))
    assert (first.source, first.id) == (second.source, second.id)


@pytest.mark.parametrize("tells_its_limit", [True, False])
def test_documents_too_large_for_the_topic_are_named_and_the_rest_is_published(
    broker: BrokerProcess,
    topic_prefix: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tells_its_limit: bool,
) -> None:
    if not tells_its_limit:  # as where the topic's configuration may not be read
        monkeypatch.setattr("ops.producing.publish.record_limit", lambda *_: None)
    with open_admin(settings_for(broker, topic_prefix)) as admin:
        admin.create_topics({f"{topic_prefix}.documents": {"num_partitions": 1, "replication_factor": 1, "configs": {"max.message.bytes": "20000"}}})
    lines = [json.dumps({"id": f"d{number}", "text": "x" * (30_000 if number % 10 == 3 else 500)}) for number in range(200)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert run_produce(broker, topic_prefix, str(tmp_path), "--json") == 1
    output = capsys.readouterr()
    summary = json.loads(output.out)
    assert summary["published"] == 180
    assert sorted(large["source"].rpartition(" ")[2] for large in summary["too_large"]) == sorted(str(number + 1) for number in range(3, 200, 10))
    assert "a.jsonl line 4 (30," in output.err
    assert sorted(decoded(record).doc_id for record in read_topic(broker, topic_prefix)) == sorted(f"d{n}" for n in range(200) if n % 10 != 3)


def test_the_size_check_is_exact_to_the_byte(broker: BrokerProcess, topic_prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ops.producing.publish import batch_bytes, document_event
    from schemas.envelope import encode
    from schemas.events import DocumentReceived

    texts = ["x" * 5_000, "x" * 5_001]
    sizes = [batch_bytes(encode(document_event(DocumentReceived(id=f"d{i}", text=text)))) for i, text in enumerate(texts)]
    assert sizes[1] in (sizes[0] + 1, sizes[0])  # the time's fraction of a second may be shorter
    with open_admin(settings_for(broker, topic_prefix)) as admin:
        configs = {"max.message.bytes": str(sizes[0])}
        admin.create_topics({f"{topic_prefix}.documents": {"num_partitions": 1, "replication_factor": 1, "configs": configs}})
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"id": f"d{i}", "text": text}) for i, text in enumerate([texts[0], "x" * 5_010])))
    assert run_produce(broker, topic_prefix, str(tmp_path), "--json") == 1
    assert json.loads(capsys.readouterr().out)["published"] == 1


def test_files_that_cannot_be_read_are_named_and_the_rest_is_published(
    broker: BrokerProcess, topic_prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "good"}\nnot json\n{"text": "half \\ud800 pair"}\n')
    assert run_produce(broker, topic_prefix, str(tmp_path / "bad.jsonl"), str(tmp_path / "none.txt")) == 1
    output = capsys.readouterr()
    assert "bad.jsonl line 2: it is not JSON" in output.err
    assert "bad.jsonl line 3" in output.err
    assert "none.txt: there is no such file or folder" in output.err
    assert "published 1 document," in output.out
    assert [decoded(record).text for record in read_topic(broker, topic_prefix)] == ["good"]


def test_two_parts_of_the_sample_are_two_rounds(broker: BrokerProcess, topic_prefix: str) -> None:
    for part in ("1/2", "2/2"):
        assert run_produce(broker, topic_prefix, "--sample", "--limit", "40", "--part", part) == 0
    ids = [decoded(record).doc_id for record in read_topic(broker, topic_prefix)]
    assert len(set(ids)) == len(ids) == 80


def test_the_rate_limit_is_kept(broker: BrokerProcess, topic_prefix: str) -> None:
    start = time.monotonic()
    assert run_produce(broker, topic_prefix, "--sample", "--limit", "11", "--rate-limit", "20") == 0
    assert time.monotonic() - start >= 0.5


def test_ctrl_c_waits_for_what_was_sent_and_says_how_many(broker: BrokerProcess, topic_prefix: str) -> None:
    command = [sys.executable, "-c", COMMAND, "produce", "-", "--json", "--bootstrap-servers", broker.bootstrap_servers]
    command += ["--set", f"kafka.topic_prefix={topic_prefix}"]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(os.environ))
    assert child.stdin is not None
    child.stdin.write(b"".join(b'{"text": "document %d"}\n' % number for number in range(25)))
    child.stdin.flush()
    wait_for_records(broker, topic_prefix, 25)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=DEADLINE_S)
    assert child.returncode == 130, err
    assert b"interrupted" in err
    assert json.loads(out)["published"] == 25 == len(read_topic(broker, topic_prefix))


COMMAND = """
import argparse, sys
from ops.cli import produce
from ops.cli.main import common_flags, settings_from
parser = argparse.ArgumentParser()
produce.add_parser(parser.add_subparsers(), common_flags())
args = parser.parse_args(sys.argv[1:])
sys.exit(args.run(args, settings_from(args)))
"""


def wait_for_records(broker: BrokerProcess, prefix: str, num_records: int) -> None:
    """Until the topic exists and holds this many records."""
    deadline = time.monotonic() + DEADLINE_S
    with open_consumer(settings_for(broker, prefix)) as consumer:
        while True:
            partitions = [TopicPartition(f"{prefix}.documents", number) for number in consumer.partitions_for_topic(f"{prefix}.documents") or ()]
            if partitions and sum(consumer.end_offsets(partitions).values()) >= num_records:
                return
            assert time.monotonic() < deadline


def test_a_broker_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    parser = argparse.ArgumentParser()
    produce.add_parser(parser.add_subparsers(dest="command"), common_flags())
    args = parser.parse_args(["produce", "--sample"])
    unreachable = Settings.model_validate({"kafka": {"bootstrap_servers": "127.0.0.1:1", "request_timeout_s": 1}})
    with pytest.raises(BrokerUnavailable, match=r"127\.0\.0\.1:1"):
        args.run(args, unreachable)
