"""Runs that go on, or share their dataset with others: a follower and its pace, a fenced stream, what people and monitors are told."""

import errno
import json
import os
import random
import signal
import threading
import urllib.request
from pathlib import Path

import pytest

from pipelines.dataset.dataset import Dataset, latest_version
from pipelines.dataset.verify import verify
from pipelines.ingest.following import Follower, ingest_follow
from pipelines.ingest.progress import Progress
from pipelines.ingest.stream import Stream, ingest_once
from pipelines.kafka.clients import open_admin
from pipelines.runtime.ports import free_ports
from schemas.arrow import Outcome
from schemas.errors import CommitConflict, SettingsError
from schemas.settings import Settings
from tests.broker_process import BrokerProcess, start_broker
from tests.ingest_harness import ENGLISH, Ingest, Record, document, finish, wait_until

TEXT = "water comes down from the hill and the mill turns, so that grain is ground between two stones number"


@pytest.fixture
def ingest(broker: BrokerProcess, topic_prefix: str, tmp_path: Path) -> Ingest:
    return Ingest(tmp_path / "data", broker.bootstrap_servers, topic_prefix)


def documents(first: int, number: int) -> list[Record]:
    return [document(f"doc-{index}", f"{TEXT} {index} {'x' * (index % 7)}", index % 2) for index in range(first, first + number)]


def test_follow_waits_for_its_topic_and_ends_cleanly_on_sigterm(ingest: Ingest) -> None:
    follower = Ingest(ingest.root, ingest.bootstrap_servers, ingest.prefix, {"ingest.follow_interval_s": 0.2})
    child = follower.start("--follow")
    try:
        with open_admin(ingest.settings) as admin:
            wait_until(lambda: ingest.topic in admin.list_topics(), "the follower to create its topic")
        for first in (0, 30):
            ingest.publish(documents(first, 30))
            wait_until(lambda end=first + 30: _num_records(ingest.root) == end, "the follower to commit")  # type: ignore[misc]
    finally:
        child.send_signal(signal.SIGTERM)
        done = finish(child)
    assert done.returncode == 0, done.stderr
    assert sum(version["num_records"] for version in json.loads(done.stdout)["versions"]) == 60


def test_follow_goes_on_after_its_broker_was_killed(tmp_path: Path) -> None:
    data_dir = tmp_path / "broker"
    with start_broker(Settings(), listen="127.0.0.1:0", root=data_dir) as first:
        address = first.bootstrap_servers
        ingest = Ingest(tmp_path / "data", address, "p", {"ingest.follow_interval_s": 0.2, "kafka.request_timeout_s": 3})
        ingest.publish(documents(0, 30))
        child = ingest.start("--follow")
        try:
            wait_until(lambda: _num_records(ingest.root) == 30, "the first commit")
            first.kill()
            with start_broker(Settings(), listen=address, root=data_dir):
                ingest.publish(documents(30, 30))
                wait_until(lambda: _num_records(ingest.root) == 60, "the commit after the broker's restart")
                child.send_signal(signal.SIGTERM)
                assert finish(child).returncode == 0
        finally:
            child.kill()


def _num_records(root: Path) -> int:
    return Dataset(root).manifest.totals.num_records if latest_version(root) else 0


def test_offsets_below_the_given_ones_are_taken_in_and_no_others(ingest: Ingest) -> None:
    ingest.publish(documents(0, 20))
    ingest.once()
    ingest.publish(documents(20, 20))
    with Stream(ingest.settings) as stream:
        assert stream.commit_next({0: 7, 1: 10}) is None, "all of that is read"
        manifest = stream.commit_next({0: 7, 1: 10**9})
        assert manifest is not None
        assert [(span.start, span.end) for span in manifest.offsets[ingest.topic].values()] == [(10, 10), (10, 20)]
        assert stream.commit_next({1: 10**9}) is None, "a partition that is not named was not there"


@pytest.mark.parametrize(("in_background", "expected"), [(True, 35), (False, 120)])
def test_only_a_follower_keeps_to_its_pace_and_takes_little_more_than_the_version_before_took(
    ingest: Ingest, in_background: bool, expected: int
) -> None:
    hurried = Ingest(ingest.root, ingest.bootstrap_servers, ingest.prefix, {"ingest.target_commit_s": 0.001})
    with Stream(hurried.settings, in_background=in_background) as stream:
        for first, number, taken in ((0, 10, 10), (10, 200, expected)):
            ingest.publish(documents(first, number))
            manifest = stream.commit_next()
            assert manifest is not None and manifest.num_records == taken


def test_a_stream_that_was_fenced_changes_no_file_of_the_other_writer_and_goes_on_behind_its_version(ingest: Ingest) -> None:
    class Overtaken(Progress):
        def started(self, version: int, num_records: int) -> None:
            if version == 1:
                with Stream(ingest.settings) as faster:
                    assert faster.commit_next({0: 10}) is not None

    texts = [" ".join(random.Random(index).choices(ENGLISH.split(), k=60)) for index in range(20)]
    ingest.publish([document(f"doc-{index}", text, index % 2) for index, text in enumerate(texts)])
    with Stream(ingest.settings, Overtaken()) as stream:
        with pytest.raises(CommitConflict):
            stream.commit_next()
        manifest = stream.commit_next()
    assert manifest is not None
    assert (manifest.version, manifest.num_records, manifest.outcomes[Outcome.KEPT]) == (2, 10, 10), "they are no duplicates of themselves"
    assert verify(ingest.root).problems == []


def test_progress_metrics_and_lineage_tell_of_a_version_from_its_plan_to_its_commit(ingest: Ingest) -> None:
    class Asking(Progress):
        def started(self, version: int, num_records: int) -> None:
            told.append((version, num_records))
            told.append(get("/ready"))
            waiting.update(line for line in get("/metrics").splitlines() if line.startswith("headrace_ingest_lag_records{"))

        def advanced(self, num_records: int) -> None:
            told.append(num_records)

    def get(path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as response:
            return str(response.read().decode())

    told: list[object] = []
    waiting: set[str] = set()
    (port,) = free_ports(1)
    asked = Ingest(ingest.root, ingest.bootstrap_servers, ingest.prefix, {"telemetry.metrics_port": port})
    ingest.publish(documents(0, 20))
    ingest_once(asked.settings, Asking())
    assert told == [(1, 20), "ready\n", 20]
    assert waiting == {f'headrace_ingest_lag_records{{partition="{partition}",topic="{ingest.topic}"}} 10.0' for partition in (0, 1)}
    assert {path.stem.rpartition("-")[2] for path in (ingest.root / "lineage").iterdir()} == {"start", "complete"}


def test_a_root_that_cannot_hold_a_dataset_is_refused_before_anything_is_read(ingest: Ingest, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    ingest.publish(documents(0, 20))
    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(SettingsError, match="has no hard links"):
        ingest.once()
    assert list(ingest.root.iterdir()) == []


def test_a_batch_that_is_stopped_half_way_leaves_nothing_and_is_taken_in_from_the_beginning(ingest: Ingest) -> None:
    class Stopping(Progress):
        def started(self, version: int, num_records: int) -> None:
            stop.set()

    stop = threading.Event()
    ingest.publish(documents(0, 20))
    assert ingest_follow(ingest.settings, stop, Stopping()) == []
    assert latest_version(ingest.root) == 0
    (manifest,) = ingest.once()
    assert manifest.num_records == 20


def test_a_follower_that_is_behind_commits_at_once_and_then_waits_for_the_minimum_interval(ingest: Ingest) -> None:
    patient = Ingest(ingest.root, ingest.bootstrap_servers, ingest.prefix, {"ingest.min_commit_interval_s": 600, "ingest.follow_interval_s": 0.01})
    ingest.publish(documents(0, 260))
    with Stream(patient.settings, in_background=True) as stream:
        follower = Follower(stream, patient.settings, threading.Event())
        manifests = [follower.turn() for _ in range(3)]
        assert [manifest.num_records for manifest in manifests if manifest is not None] == [120, 120, 20]
        ingest.publish(documents(260, 1))
        assert follower.turn() is None
