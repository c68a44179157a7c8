"""Reading stops while the committer is behind, and memory does not follow the backlog."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from benchmarks.backlog import memory, publish
from ops.broker.app import BrokerProcess
from pipelines.bootstrap import create_tokenizer
from pipelines.cluster import ray_session
from pipelines.job import run_local, run_ray
from pipelines.kafka.planning import plan_ranges
from pipelines.kafka.reading import slices
from tests.ingest_harness import CHILD_TIMEOUT_S, Ingest
from tests.poisoned import poisoned_environment

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated.*:DeprecationWarning")  # Ray Data, about its own defaults
SLICE_RECORDS = 50
QUIET_S = 3.0
"""So long without a new block, and reading counts as stopped."""


def settled(count: Callable[[], int]) -> int:
    """The count once it does not change any more."""
    found, since, deadline = count(), time.monotonic(), time.monotonic() + CHILD_TIMEOUT_S
    while time.monotonic() - since < QUIET_S:
        assert time.monotonic() < deadline, "reading does not stop"
        time.sleep(0.1)
        if count() != found:
            found, since = count(), time.monotonic()
    return found


@pytest.mark.parametrize(("runner", "most_ahead"), [(run_local, 0), pytest.param(run_ray, 40, marks=pytest.mark.slow)])
def test_reading_stops_while_the_committer_is_behind(  # type: ignore[no-untyped-def]
    runner, most_ahead: int, broker: BrokerProcess, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest = Ingest(tmp_path / "data", broker.bootstrap_servers, topic_prefix, {"ingest.read_ahead_bytes": 2**20})
    ingest.root.mkdir()
    num_records, _ = publish(ingest.settings, 8e6)
    parts = slices(ingest.topic, plan_ranges(ingest.settings, ingest.topic, {}, 10**9), SLICE_RECORDS)
    assert len(parts) > 80
    tokenizer = create_tokenizer(parts, ingest.settings)
    blocks = tmp_path / "blocks"
    blocks.mkdir()

    def num_read() -> int:
        return sum(1 for _ in blocks.iterdir())

    if runner is run_ray:
        for name, value in poisoned_environment(tmp_path, blocks).items():
            monkeypatch.setenv(name, value)
        with ray_session(ingest.settings.ray):
            rows = slow_committer(runner(parts, ingest.settings, tokenizer), num_read, most_ahead)
    else:
        counted = _Counted(runner(parts, ingest.settings, tokenizer), blocks)
        rows = slow_committer(counted, num_read, most_ahead)
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


def slow_committer(found: "Iterator[pa.Table] | _Counted", num_read: Callable[[], int], most_ahead: int) -> int:
    """Takes three blocks, each only when reading has stopped, then the rest; the number of rows."""
    rows = 0
    for number, block in enumerate(found, start=1):
        rows += len(block)
        if number <= 3:
            assert settled(num_read) - number <= most_ahead
    return rows


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_memory_does_not_follow_the_backlog(broker: BrokerProcess, topic_prefix: str, tmp_path: Path) -> None:
    limits = {"ingest.max_batch_records": 4_000, "ingest.max_batch_bytes": 4 * 2**20, "ingest.slice_records": 1_000, "tokenizer.vocab_size": 2_000}
    peaks_mb = []
    for name, num_bytes in (("one", 12e6), ("four", 48e6)):
        ingest = Ingest(tmp_path / name, broker.bootstrap_servers, f"{topic_prefix}-{name}", limits)
        publish(ingest.settings, num_bytes)
        child, peak_mb = ingest.start(), 0.0
        while child.poll() is None:
            peak_mb = max(peak_mb, memory(child.pid, 0.0).pss_mb)
            time.sleep(0.1)
        assert child.returncode == 0
        child.communicate()
        peaks_mb.append(peak_mb)
    assert peaks_mb[1] < 1.15 * peaks_mb[0] + 50, peaks_mb
