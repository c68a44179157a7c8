"""Reading stops while the committer is behind, and memory does not follow the backlog."""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest

from benchmarks.backlog import memory, publish
from pipelines.dedup.paragraphs import EMPTY
from pipelines.ingest.bootstrap import create_tokenizer
from pipelines.ingest.job import Runner, run_local, run_ray
from pipelines.kafka.planning import plan_ranges
from pipelines.kafka.reading import slices
from pipelines.runtime.cluster import ray_session
from tests.broker_process import BrokerProcess
from tests.ingest_harness import CHILD_TIMEOUT_S, Ingest
from tests.poisoned import poisoned_environment

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated.*:DeprecationWarning")  # Ray Data, about its own defaults
SLICE_RECORDS = 50
QUIET_S: dict[Runner, float] = {run_local: 0.1, run_ray: 3.0}
"""So long without a new block, and reading counts as stopped. The local runner works only while it is asked for a block."""
SIZE_BYTES: dict[Runner, float] = {run_local: 1e6, run_ray: 8e6}
MOST_AHEAD: dict[Runner, int] = {run_local: 0, run_ray: 40}
"""Blocks that may be read before the committer asks for them, of several times as many."""


def settled(count: Callable[[], int], quiet_s: float) -> int:
    """The count once it does not change any more."""
    found, since, deadline = count(), time.monotonic(), time.monotonic() + CHILD_TIMEOUT_S
    while time.monotonic() - since < quiet_s:
        assert time.monotonic() < deadline, "reading does not stop"
        time.sleep(0.05)
        if count() != found:
            found, since = count(), time.monotonic()
    return found


@pytest.mark.parametrize("runner", [run_local, pytest.param(run_ray, marks=pytest.mark.slow)])
def test_reading_stops_while_the_committer_is_behind(
    runner: Runner, broker: BrokerProcess, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest = Ingest(tmp_path / "data", broker.bootstrap_servers, topic_prefix, {"ingest.read_ahead_bytes": 2**20})
    ingest.root.mkdir()
    num_records, _ = publish(ingest.settings, SIZE_BYTES[runner])
    parts = slices(ingest.topic, plan_ranges(ingest.settings, ingest.topic, {}, 10**9), SLICE_RECORDS)
    assert len(parts) > max(5, 1.4 * MOST_AHEAD[runner])
    tokenizer = create_tokenizer(parts, ingest.settings)
    blocks = tmp_path / "blocks"
    blocks.mkdir()

    def num_ahead(num_taken: int) -> int:
        return settled(lambda: sum(1 for _ in blocks.iterdir()), QUIET_S[runner]) - num_taken

    if runner is run_ray:
        for name, value in poisoned_environment(tmp_path, blocks).items():
            monkeypatch.setenv(name, value)
        with ray_session(ingest.settings.ray):
            rows = slow_committer(runner(parts, ingest.settings, tokenizer, EMPTY.hashes), num_ahead, MOST_AHEAD[runner])
    else:
        counted = _Counted(runner(parts, ingest.settings, tokenizer, EMPTY.hashes), blocks)
        rows = slow_committer(counted, num_ahead, MOST_AHEAD[runner])
    assert rows == num_records


class _Counted:
    """Leaves a file for each block that the local runner has prepared."""

    def __init__(self, blocks: Iterator[pa.Table], folder: Path) -> None:
        self._blocks, self._folder, self._number = blocks, folder, 0

    def __iter__(self) -> Iterator[pa.Table]:
        for block in self._blocks:
            self._number += 1
            (self._folder / str(self._number)).touch()
            yield block


def slow_committer(found: "Iterator[pa.Table] | _Counted", num_ahead: Callable[[int], int], most_ahead: int) -> int:
    """Takes three blocks, each only when reading has stopped, then the rest; the number of rows."""
    rows = 0
    for number, block in enumerate(found, start=1):
        rows += len(block)
        if number <= 3:
            assert num_ahead(number) <= most_ahead
    return rows


BATCH_BYTES = {"local": 4 * 2**20, "ray": 12 * 2**20}
"""Of a version; on Ray each costs seconds by itself."""
SMALL_BACKLOG_BYTES = {"local": 8 * 2**20, "ray": 96 * 2**20}
LARGE_BACKLOG_BYTES = {"local": 104 * 2**20, "ray": 384 * 2**20}
"""Workers of Ray hold the most after some eight versions: each has had tasks of all sizes then."""
INDEX_BYTES_PER_DOCUMENT = 400
NOISE_SHARE = 1 / 3
"""Allowed growth: a third of the difference between the two backlogs."""


USUAL = {
    "ingest.max_batch_records": 100_000,
    "ingest.slice_records": 1_000,
    "tokenizer.vocab_size": 2_000,
    "packing.sequence_length": 256,
    "packing.shard_rows": 65_536,
}
"""The harness's tiny shards would make this ten thousand files."""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("runner", ["ray", "local"])
def test_memory_does_not_follow_the_backlog(runner: str, broker: BrokerProcess, topic_prefix: str, tmp_path: Path) -> None:
    """A backlog and one several times as large, in versions of the same size, with the same memory but for the index of kept documents.

    Of the command and everything it started: what they hold for themselves, and Ray's object store. What they hold for less than a twentieth of
    the time does not count: the highest of many such moments is higher than that of few.
    """
    held, num_kept, batch_bytes = [], 0, BATCH_BYTES[runner]
    small_bytes, large_bytes = SMALL_BACKLOG_BYTES[runner], LARGE_BACKLOG_BYTES[runner]
    chosen = {**USUAL, "ingest.runner": runner, "ingest.max_batch_bytes": batch_bytes}
    for name, num_bytes in (("small", small_bytes), ("large", large_bytes)):
        ingest = Ingest(tmp_path / name, broker.bootstrap_servers, f"{topic_prefix}-{name}", chosen)
        publish(ingest.settings, num_bytes)
        child, samples_mb = ingest.start(), [0.0]
        with ThreadPoolExecutor(1) as pool:
            said = pool.submit(child.communicate)  # beside us: a full pipe would hold the child up
            while not said.done():
                sample = memory(child.pid, 0.0)
                samples_mb.append(sample.of("anonymous") + sample.of("shared"))
                time.sleep(0.1)
        assert child.returncode == 0, said.result()
        versions = json.loads(said.result()[0])["versions"]
        assert len(versions) >= num_bytes // (2 * batch_bytes)
        num_kept = sum(version["outcomes"]["kept"] for version in versions)
        held.append(sorted(samples_mb)[len(samples_mb) * 19 // 20] * 2**20)
    assert num_kept > 20_000
    assert held[1] - held[0] < INDEX_BYTES_PER_DOCUMENT * num_kept + NOISE_SHARE * (large_bytes - small_bytes), (held, num_kept)
