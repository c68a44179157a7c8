"""retract, deadletter and gc as a person uses them, against the embedded broker."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from kafka import TopicPartition

from ops.cli.main import main
from pipelines.dataset.dataset import Dataset
from pipelines.dataset.verify import verify
from pipelines.ingest.stream import ingest_once
from pipelines.kafka.clients import open_admin, open_producer
from tests.broker_process import BrokerProcess
from tests.ingest_harness import ENGLISH, Ingest, Record, document

TEXT = f"{ENGLISH} and the bread was baked before the sun came up over the village"
NEAR = TEXT.replace("village", "valley")


@pytest.fixture
def ingest(broker: BrokerProcess, topic_prefix: str, tmp_path: Path) -> Ingest:
    return Ingest(tmp_path / "data", broker.bootstrap_servers, topic_prefix)


class Command:
    """The command line, in this process."""

    def __init__(self, ingest: Ingest, capsys: pytest.CaptureFixture[str]) -> None:
        self._options = [part for name, value in ingest.values.items() for part in ("--set", f"{name}={value}")]
        self._capsys = capsys

    def __call__(self, *arguments: str, code: int = 0) -> str:
        """Its standard output, or its standard error where it fails."""
        self._capsys.readouterr()
        assert main([*arguments, *self._options]) == code
        captured = self._capsys.readouterr()
        return captured.out or captured.err

    def both(self, *arguments: str) -> str:
        """Standard output and standard error."""
        self._capsys.readouterr()
        assert main([*arguments, *self._options]) == 0
        return "".join(self._capsys.readouterr())

    def json(self, *arguments: str, code: int = 0) -> Any:
        """Its answer as JSON."""
        return json.loads(self(*arguments, "--json", code=code))


@pytest.fixture
def headrace(ingest: Ingest, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(ingest, capsys)


def outcomes(ingest: Ingest) -> list[tuple[str | None, str, str | None]]:
    """(id, outcome, reason) of every record of the newest version."""
    import polars as pl

    rows = pl.concat([pl.read_parquet(ingest.root / entry.path) for entry in Dataset(ingest.root).manifest.documents]).to_dicts()
    return [(row["doc_id"], row["outcome"], row["reason"]) for row in rows]


def test_a_retracted_document_leaves_and_a_near_duplicate_enters_behind_it(ingest: Ingest, headrace: Command) -> None:
    others = [document(f"other-{index}", f"{' '.join(ENGLISH.split()[index:] * 2)} {index}", 0) for index in range(0, 12, 6)]
    ingest.publish([document("a", TEXT, 0), document("b", NEAR, 0), *others])
    ingest.once()
    assert outcomes(ingest)[:2] == [("a", "kept", None), ("b", "duplicate", "near")]
    told = headrace.json("retract", "a", "b", "nobody", "--reason", "the author asked")["retractions"]
    assert [(entry["id"], entry["kept_in"], entry["duplicate_of"]) for entry in told] == [("a", [1], []), ("b", [], ["a"]), ("nobody", [], [])]
    ingest.once()
    assert set(outcomes(ingest)) == {("a", "retracted", None), ("b", "retracted", None), ("nobody", "retracted", None)}
    shown = headrace.json("datasets", "show")
    assert (shown["num_masked_documents"], shown["totals"]["num_masked_documents"]) == (1, 1)
    assert (
        shown["num_masked_tokens"] == Dataset(ingest.root, 1).manifest.totals.num_tokens - shown["totals"]["num_tokens"] + shown["num_masked_tokens"]
    )
    fate = headrace.json("trace", "a")
    assert (fate["retracted_in"], fate["dataset_versions"], fate["models"]) == (2, {"first": 1, "last": 1}, [])
    assert "retracted in version 2 by" in headrace("trace", "a")
    assert "retracted already, since version 2" in headrace("retract", "a")
    assert "it stands for a: give that" in headrace("retract", f"{ingest.topic}/0/0")
    ingest.publish([document("c", NEAR, 0), document("a", TEXT, 1)])
    ingest.once()
    fates = {entry for entry in outcomes(ingest) if entry[1] != "retracted"}
    assert ("c", "kept", None) in fates
    assert fates - {("c", "kept", None)} == {("a", "duplicate", "near")}  # a came later, and what is like it is kept now
    assert Dataset(ingest.root).manifest.num_masked_documents == 0
    assert verify(ingest.root).problems == []


def test_duplicates_that_are_lost_with_a_retracted_document_are_listed_and_come_back_once(ingest: Ingest, headrace: Command) -> None:
    named = {"ce_id": b"7", "ce_source": b"/wiki", "ce_specversion": b"1.0", "ce_type": b"document.received", "content-type": b"application/json"}
    other = f"{ENGLISH} at the other end of the valley where nobody lives any more since the railway came"
    ingest.publish([document("a", TEXT, 1), document("z", other, 1)])
    ingest.once()
    ingest.publish([document("b", NEAR, 0), document("c", TEXT, 1), document("gone", TEXT, 0)])
    with open_producer(ingest.settings) as producer:
        producer.send(ingest.topic, value=json.dumps({"text": NEAR}).encode(), headers=list(named.items()), partition=0).get()
    ingest.once()
    headrace("retract", "gone")
    ingest.once()
    told = headrace.json("retract", "a")["retractions"][0]["lost_duplicates"]
    assert [(entry["id"], entry["reason"]) for entry in told] == [("b", "near"), ("/wiki#7", "near"), ("c", "exact")]
    ingest.once()
    assert [entry["id"] for entry in headrace.json("trace", "a")["lost_duplicates"]] == ["b", "/wiki#7", "c"]
    assert "retract a --restore-duplicates" in headrace.both("trace", "a")
    (retraction,) = headrace.json("retract", "a", "--restore-duplicates")["retractions"]
    places = [entry["restored"] for entry in retraction["lost_duplicates"]]
    assert all(place["partition"] == retraction["partition"] and place["offset"] > retraction["offset"] for place in places)
    ingest.once()
    fates = {doc_id: (outcome, reason) for doc_id, outcome, reason in outcomes(ingest) if outcome != "retracted"}
    assert fates == {"b": ("kept", None), "/wiki#7": ("duplicate", "exact"), "c": ("duplicate", "near")}
    assert headrace.json("trace", "/wiki#7")["replay_of"] == f"{ingest.topic}/0/2"
    assert headrace.json("retract", "a", "--restore-duplicates")["retractions"][0]["lost_duplicates"] == []
    assert verify(ingest.root).problems == []


def test_what_kafka_does_not_hold_any_more_is_not_restored_and_that_is_said(ingest: Ingest, headrace: Command) -> None:
    ingest.publish([document("a", TEXT, 1), document("b", NEAR, 1)])
    ingest.once()
    with open_admin(ingest.settings) as admin:
        admin.delete_records({TopicPartition(ingest.topic, 1): 2})
    told = headrace("retract", "a", "--restore-duplicates", code=1)
    assert f"b ({ingest.topic}/1/1): dropped in version 1 as its duplicate (near), not published again: Kafka does not hold" in told


def test_a_retracted_id_that_is_published_again_enters_and_ingest_and_trace_say_so(
    ingest: Ingest, headrace: Command, caplog: pytest.LogCaptureFixture
) -> None:
    ingest.publish([document("a", TEXT, 0)])
    ingest.once()
    assert "whoever publishes the id again brings the document back" in headrace.both("retract", "a")
    ingest.once()
    place = headrace.json("trace", "a")["retracted_by"]
    ingest.publish([document("a", TEXT, int(place.split("/")[1]))])
    caplog.clear()
    ingest_once(ingest.settings)
    assert "so they count as new: 1 document: 'a'" in caplog.text
    assert outcomes(ingest) == [("a", "kept", None)]
    assert headrace.json("trace", "a")["returned_after"] == place
    assert f"published again after its retraction at {place}" in headrace("trace", "a")


def test_dead_letters_are_listed_shown_mended_and_enter_once(ingest: Ingest, headrace: Command) -> None:
    broken = TEXT.encode() + b"\xff\x1b[31m"
    ingest.publish([document("fine", NEAR, 0), Record(broken, 0), Record(b'{"id": "mine", "text": 5}', 0, b"k"), Record(b"{", 1, b"k2")])
    ingest.once()
    listed = headrace.json("deadletter", "list")
    assert listed["rules"] == {"not_utf8": 1, "wrong_type": 1, "bad_json": 1}
    assert headrace.json("deadletter", "list", "--rule", "wrong_type")["letters"][0]["position"] == f"{ingest.topic}/0/2"
    assert headrace.json("deadletter", "list", "--since", "2999-01-01T00:00:00Z")["letters"] == []
    assert len(headrace.json("deadletter", "list", "--since", "1h", "--limit", "2")["letters"]) == 2
    place = f"{ingest.topic}/0/1"
    shown = headrace("deadletter", "show", place)
    assert "\\xff\\x1b[31m" in shown
    assert "\x1b" not in shown
    assert "not_utf8" in shown
    assert headrace.json("deadletter", "show", place)["size_bytes"] == len(broken)
    assert "still cannot be read (not_utf8)" in headrace("deadletter", "replay", place, code=1)
    assert "no dead letter" in headrace("deadletter", "show", f"{ingest.topic}/0/99", code=1)
    assert "take one position" in headrace("deadletter", "replay", "--rule", "bad_json", "--set-text", "x", code=2)
    for _ in range(2):
        headrace("deadletter", "replay", place, "--set-text", f"{ENGLISH} mended")
        headrace("deadletter", "replay", f"{ingest.topic}/0/2", "--set-text", " ".join(reversed(TEXT.split())))
    ingest.once()
    assert sorted(outcomes(ingest)) == sorted(
        [(place, "kept", None), (place, "duplicate", "replayed"), ("mine", "kept", None), ("mine", "duplicate", "replayed")]
    )
    assert "is kept already" in headrace("trace", place)
    mine = f"{ingest.topic}/0/2"  # mended, and replayed under an id of its own
    (letter,) = headrace.json("deadletter", "list", "--rule", "wrong_type")["letters"]
    assert sorted((at["outcome"], at["reason"], at["dataset_version"]) for at in letter["replays"]) == [
        ("duplicate", "replayed", 2),
        ("kept", None, 2),
    ]
    kept = next(at["position"] for at in letter["replays"] if at["outcome"] == "kept")
    assert f"{kept} kept" in headrace("deadletter", "list", "--rule", "wrong_type")
    assert f"{kept} (document mine, a replay of {mine}), dataset version 2: kept" in headrace("deadletter", "show", mine)
    assert headrace.json("deadletter", "list", "--rule", "bad_json")["letters"][0]["replays"] == []


def test_a_replay_that_is_mended_in_two_ways_around_a_crash_enters_once(ingest: Ingest, headrace: Command, tmp_path: Path) -> None:
    ingest.publish([document("fine", NEAR, 0), Record(b'{"id": "mine", "text": 5}', 0)])
    ingest.once()
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    first.write_text(json.dumps({"id": "mine", "text": " ".join(reversed(TEXT.split()))}))
    second.write_text(json.dumps({"id": "mine", "text": " ".join(sorted(set(TEXT.split()))) + " and so on for ever"}))
    position = f"{ingest.topic}/0/1"
    headrace("deadletter", "replay", position, "--edit", str(first))
    assert ingest.run(crash_at="segment_written").returncode == -signal.SIGKILL
    headrace("deadletter", "replay", position, "--edit", str(second))
    ingest.once()
    headrace("deadletter", "replay", position, "--edit", str(second))
    ingest.once()
    headrace("retract", "mine")
    headrace("deadletter", "replay", position, "--edit", str(second))
    ingest.once()
    totals = Dataset(ingest.root).manifest.totals
    assert totals.outcomes["kept"] == 3  # type: ignore[index]
    assert totals.num_masked_documents == 1
    assert verify(ingest.root).problems == []


def test_gc_removes_what_crashes_left_and_says_so_first(ingest: Ingest, headrace: Command) -> None:
    ingest.publish([document("fine", NEAR, 0)])
    assert ingest.run(crash_at="segment_written").returncode == -signal.SIGKILL
    ingest.once()
    leftover = ingest.root / "log" / f".tmp-00000001.json-{'0' * 12}"
    other = ingest.root / "tokenizer" / ("0" * 64) / "tokenizer.json"
    fitted = ingest.root / "tokenizer" / ("1" * 64) / "headrace.json"
    for path in (other, fitted):
        path.parent.mkdir()
    for path in (leftover, other, fitted):
        path.write_bytes(b"{}")
        os.utime(path, (0, 0))
    would_go = headrace.json("gc", "--grace-s", "0", "--dry-run")["removed"]
    assert {path.split("/")[0] for path in would_go} == {"log", "tokenizer", "shards", "documents", "dedup"}
    assert headrace.json("gc", "--grace-s", "0")["removed"] == would_go
    assert not leftover.exists()
    assert not other.parent.exists()
    assert fitted.exists()  # a person's tokenizer may wait for its dataset
    assert headrace.json("gc", "--grace-s", "0")["removed"] == []
    assert verify(ingest.root).problems == []
