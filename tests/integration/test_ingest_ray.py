"""The same rows, the same bytes: ingest on Ray Data and in one process, undisturbed and with everything killed under it."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import ray
from ray.data._internal.stats import get_or_create_stats_actor

from pipelines.dataset.dataset import Dataset, latest_version
from pipelines.dataset.verify import verify
from pipelines.dedup import index
from pipelines.ingest.bootstrap import create_tokenizer
from pipelines.ingest.job import grouped, run_local, run_ray, tasks_at_once
from pipelines.ingest.stream import Stream
from pipelines.kafka.planning import plan_ranges
from pipelines.kafka.reading import Slice, slices
from pipelines.runtime.cluster import ray_session
from schemas.errors import OffsetsLost
from tests.broker_process import BrokerProcess
from tests.ingest_harness import CHILD_TIMEOUT_S, Ingest, finish, sample_records, state, wait_until, wait_until_stopped
from tests.processes import command_line, descendants

ON_RAY = {"ingest.runner": "ray"}
pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated.*:DeprecationWarning")  # Ray Data, about its own defaults


@pytest.fixture(scope="module")
def source(broker: BrokerProcess, tmp_path_factory: pytest.TempPathFactory) -> Ingest:
    ingest = Ingest(tmp_path_factory.mktemp("local"), broker.bootstrap_servers, "on-ray")
    ingest.publish(sample_records(300))
    ingest.once()
    return ingest


def on_ray(source: Ingest, root: Path) -> Ingest:
    return Ingest(root, source.bootstrap_servers, source.prefix, ON_RAY)


@pytest.fixture(scope="module")
def cluster(source: Ingest) -> Iterator[None]:
    """Ray, started once for the tests that run in this process."""
    with ray_session(source.settings.ray):
        yield


@pytest.mark.usefixtures("cluster")
def test_ray_gives_the_rows_of_a_local_run_in_the_order_of_the_slices_and_raises_what_tasks_raise(source: Ingest) -> None:
    settings = source.settings
    parts = slices(source.topic, plan_ranges(settings, source.topic, {}, 10**6), 20)
    tokenizer = create_tokenizer(parts, settings)
    tasks = tasks_at_once()
    assert tasks is not None
    blocks = list(run_ray(parts, settings, tokenizer))
    lost = Slice(source.topic, 0, 10**6, 10**6 + 5)
    with pytest.raises(OffsetsLost, match="no longer holds offsets 1000000") as caught:
        list(run_ray([*parts[:2], lost], settings, tokenizer))
    assert "\n" not in str(caught.value)
    firsts = {(group[0].partition, group[0].start) for group in grouped(parts, tasks, settings.ingest)}
    assert [(block["partition"][0].as_py(), block["offset"][0].as_py()) for block in blocks] == sorted(firsts)
    assert pa.concat_tables(blocks).equals(pa.concat_tables(run_local(parts, settings, tokenizer)))
    seen: Any = ray.get(get_or_create_stats_actor().get_datasets.remote())
    assert len(seen) == 1  # Ray never forgets the figures of a dataset, and a stream makes thousands of versions


@pytest.mark.usefixtures("cluster")
def test_what_tasks_write_after_looking_duplicates_up_is_the_dataset_of_a_local_run(
    source: Ingest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With retractions, dead letters and duplicates within a version and across versions, a compaction, and a stream that is opened again."""
    monkeypatch.setattr(index, "GROWING_ROWS", 10)
    monkeypatch.setattr(index, "LARGE_TIER_ROWS", 1)
    alone = Ingest(tmp_path / "alone", source.bootstrap_servers, source.prefix, {"dedup.compact_segments": 2})
    tasks = Ingest(tmp_path / "tasks", source.bootstrap_servers, source.prefix, {**alone.overrides, **ON_RAY, "ingest.writer": "tasks"})
    with Stream(tasks.settings) as stream:
        assert stream.commit_next() is not None
    for ingest in (alone, tasks):
        ingest.once()
    assert state(tasks.root) == state(alone.root)
    assert hashes_of_fingerprints(tasks.root) == hashes_of_fingerprints(alone.root)
    assert verify(tasks.root).problems == []


def hashes_of_fingerprints(root: Path) -> list[list[str]]:
    """SHA-256 of the segments and bases of all versions: no name of an attempt stands in them."""
    newest = latest_version(root)
    assert newest is not None
    versions = [Dataset(root, newest).read(version) for version in range(1, newest + 1)]
    assert any(version.dedup_base for version in versions)
    return [[entry.sha256 for entry in [*version.dedup_segments, *version.dedup_base]] for version in versions]


@pytest.mark.usefixtures("cluster")
def test_a_signal_to_our_process_group_does_not_reach_a_private_ray() -> None:
    children = {int(pid) for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()}
    groups = {Path(f"/proc/{pid}/comm").read_text().strip(): os.getpgid(pid) for pid in children}
    assert groups["gcs_server"] != os.getpgrp() and groups["raylet"] != os.getpgrp()


@pytest.mark.usefixtures("cluster")
def test_ray_takes_the_known_lines_out_and_reports_the_same_ones(source: Ingest) -> None:
    settings = source.settings.model_copy(update={"dedup": source.settings.dedup.model_copy(update={"boilerplate": True})})
    parts = slices(source.topic, plan_ranges(settings, source.topic, {}, 10**6), 50)
    tokenizer = create_tokenizer(parts, settings)
    untouched = pa.concat_tables(run_local(parts, settings, tokenizer))
    known = np.unique(pc.list_flatten(untouched["paragraphs"]).to_numpy())[::2]
    assert len(known) > 0
    on_ray = pa.concat_tables(run_ray(parts, settings, tokenizer, known))
    assert on_ray.equals(pa.concat_tables(run_local(parts, settings, tokenizer, known)))
    assert pc.sum(on_ray["num_chars"]).as_py() < pc.sum(untouched["num_chars"]).as_py()


def shadow_our_packages(folder: Path) -> None:
    """Modules of a person, in the folder where the command runs, that have the names of ours."""
    folder.mkdir(exist_ok=True)
    for name in ("schemas", "pipelines", "ray_apps", "ops"):
        (folder / f"{name}.py").write_text(f"raise SystemExit('{name} of the working folder was imported')")


@pytest.mark.slow
def test_ingest_on_ray_survives_a_crash_in_the_middle_of_a_job_and_makes_the_dataset_of_a_local_run(source: Ingest, tmp_path: Path) -> None:
    ingest = on_ray(source, tmp_path / "data")
    shadow_our_packages(ingest.root)
    assert ingest.run(crash_at="block_taken:3").returncode == -signal.SIGKILL
    assert len(state(ingest.root)) == 1
    child = ingest.start("--follow")
    try:
        wait_until(lambda: latest_version(ingest.root) == latest_version(source.root), "the follower to have everything", timeout_s=CHILD_TIMEOUT_S)
    finally:
        child.send_signal(signal.SIGTERM)
        done = finish(child)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "SIGTERM" not in done.stderr  # which Ray's own handler would say, and end the process at once
    assert state(ingest.root) == state(source.root)
    assert verify(ingest.root).problems == []


@pytest.mark.slow
def test_killed_ray_workers_are_made_good(source: Ingest, tmp_path: Path) -> None:
    ingest = on_ray(source, tmp_path / "data")
    child = ingest.start(crash_at="stop@block_taken")
    wait_until_stopped(child)
    # The node itself ends with its agents; what runs tasks and actors are the other processes that carry Ray's title.
    workers = [pid for pid in descendants(child.pid) if command_line(pid).startswith("ray::") and "Agent" not in command_line(pid)]
    assert workers
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    child.send_signal(signal.SIGCONT)
    done = finish(child)
    assert done.returncode == 0, done.stderr
    assert state(ingest.root) == state(source.root)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kills_at_random_moments_on_ray_change_nothing(source: Ingest, tmp_path: Path) -> None:
    ingest = on_ray(source, tmp_path / "data")
    rng = random.Random(seed := time.time_ns())
    print(f"seed {seed}")
    killed: list[int] = []
    while len(killed) < 4 and len(state(ingest.root)) < len(state(source.root)):
        child = ingest.start()
        try:
            child.wait(timeout=rng.uniform(4, 20))
        except subprocess.TimeoutExpired:
            child.kill()
        killed.append(finish(child).returncode)
    assert -signal.SIGKILL in killed, "no kill landed"
    assert set(killed) <= {0, -signal.SIGKILL}
    assert ingest.run().returncode == 0
    assert state(ingest.root) == state(source.root)
