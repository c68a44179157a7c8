"""The first version waits until there is text enough to train the tokenizer on that the dataset keeps for good."""

import re
import signal
import threading
from pathlib import Path

from pipelines.dataset.dataset import Dataset, latest_version
from pipelines.ingest.following import Follower
from pipelines.ingest.stream import Stream
from tests.broker_process import BrokerProcess
from tests.ingest_harness import CHINESE, ENGLISH, Ingest, Record, document, finish, wait_until

ENOUGH = 20_000
ALL_AT_ONCE: dict[str, object] = {"ingest.max_batch_records": 10_000, "tokenizer.min_training_bytes": ENOUGH}


def documents(first: int, number: int) -> list[Record]:
    return [document(f"doc-{index}", f"{ENGLISH} {index} {CHINESE}{index}", 0) for index in range(first, first + number)]


def test_once_says_that_the_documents_wait_and_takes_all_of_them_in_when_there_are_more(
    broker: BrokerProcess, tmp_path: Path, topic_prefix: str
) -> None:
    ingest = Ingest(tmp_path / "data", broker.bootstrap_servers, topic_prefix, ALL_AT_ONCE)
    ingest.publish(documents(0, 10))
    done = ingest.run()
    assert (done.returncode, latest_version(ingest.root)) == (1, 0)
    assert "Nothing is lost" in done.stderr and "tokenizer.min_training_bytes is 20,000" in done.stderr
    assert "--set tokenizer.min_training_bytes=0" in done.stderr
    assert not (ingest.root / "tokenizer").exists(), "and no tokenizer of ten documents is kept"
    ingest.publish(documents(10, 90))
    assert ingest.run().returncode == 0
    assert Dataset(ingest.root).manifest.num_records == 100
    ingest.publish(documents(100, 1))
    assert ingest.run().returncode == 0, "later versions wait for nothing"


def test_those_who_want_it_at_once_get_it_and_a_full_batch_waits_for_nothing(broker: BrokerProcess, tmp_path: Path, topic_prefix: str) -> None:
    ingest = Ingest(tmp_path / "now", broker.bootstrap_servers, topic_prefix, ALL_AT_ONCE | {"tokenizer.min_training_bytes": 0})
    ingest.publish(documents(0, 10))
    assert ingest.run().returncode == 0
    full = Ingest(tmp_path / "full", broker.bootstrap_servers, topic_prefix, ALL_AT_ONCE | {"ingest.max_batch_records": 6})
    assert full.run().returncode == 0
    assert latest_version(full.root) == 2


def test_a_follower_waits_says_so_and_goes_on_by_itself(broker: BrokerProcess, tmp_path: Path, topic_prefix: str) -> None:
    ingest = Ingest(
        tmp_path / "data", broker.bootstrap_servers, topic_prefix, {**ALL_AT_ONCE, "ingest.follow_interval_s": 0.1, "ingest.max_wait_s": 0}
    )
    ingest.publish([*documents(0, 10), *(Record(b"{" * 3_000) for _ in range(10))])  # large enough as records, but too little text
    child = ingest.start("--follow")
    try:
        said = ingest.root.with_name(f"{ingest.root.name}.output")
        wait_until(lambda: any("Nothing is lost" in path.read_text() for path in said.rglob("stderr")), "the follower to say that it waits")
        assert latest_version(ingest.root) == 0
        ingest.publish(documents(10, 90))
        wait_until(lambda: latest_version(ingest.root) > 0, "the first version")
    finally:
        child.send_signal(signal.SIGTERM)
        done = finish(child)
    assert done.returncode == 0
    assert done.stderr.count("Nothing is lost") <= 2


def test_a_follower_says_once_how_much_there_is_and_which_setting_it_is(broker: BrokerProcess, tmp_path: Path, topic_prefix: str) -> None:
    ingest = Ingest(
        tmp_path / "data", broker.bootstrap_servers, topic_prefix, {**ALL_AT_ONCE, "ingest.follow_interval_s": 0.1, "ingest.max_wait_s": 0}
    )
    ingest.publish(documents(0, 10))
    child = ingest.start("--follow")
    try:
        said = ingest.root.with_name(f"{ingest.root.name}.output")
        wait_until(lambda: any("for more documents" in path.read_text() for path in said.rglob("stderr")), "the follower to say that it waits")
        for number in range(3):
            ingest.publish(documents(10 + number, 1))
        ingest.publish(documents(13, 90))
        wait_until(lambda: latest_version(ingest.root) > 0, "the first version")
    finally:
        child.send_signal(signal.SIGTERM)
        done = finish(child)
    assert done.returncode == 0
    (line,) = [line for line in done.stderr.splitlines() if "for more documents" in line]
    assert re.search(r"10 records with \d,\d{3} bytes", line)
    assert "20,000 bytes of text or more (tokenizer.min_training_bytes)" in line


def test_a_follower_that_has_waited_as_long_as_it_may_trains_on_the_text_that_there_is(
    broker: BrokerProcess, tmp_path: Path, topic_prefix: str
) -> None:
    hasty = {"tokenizer.max_wait_s": 0.01, "ingest.follow_interval_s": 0.01, "ingest.max_wait_s": 0}
    ingest = Ingest(tmp_path / "data", broker.bootstrap_servers, topic_prefix, ALL_AT_ONCE | hasty)
    ingest.publish(documents(0, 10))
    with Stream(ingest.settings) as stream:
        follower = Follower(stream, ingest.settings, threading.Event())
        assert follower.turn() is None
        wait_until(lambda: follower.turn() is not None, "the first version")
    assert Dataset(ingest.root).manifest.num_records == 10
