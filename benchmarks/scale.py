"""How many cores one ingesting process keeps busy: durations measured on this machine, then a simulation of clusters that are not here.

    python -m benchmarks.scale [--megabytes 60] [--cores 16,64,256,1024] [--save FILE | --from FILE]

Measured, as processor time: for each block of ``ingest.slice_records`` documents what tasks do with it (prepare it, look its documents up and make
what decides, settle it, and its share of a shard and of a file of the audit trail), in this process; and what the ingesting process does for each
block and for each version, on Ray (benchmarks/driver.py).

The simulation is of one version. A core does one thing at a time. Tasks prepare the blocks in order, and a block is prepared only while what waits
for the ingesting process fits into ``ingest.read_ahead_bytes`` per node of CORES_PER_NODE cores. The ingesting process decides blocks in order, one
at a time: all its processor time counts as serial, though Ray's threads can use a second core. Then tasks settle and write. Assumed: every core is as
fast as this one; Kafka, the network and the root deliver in time; no two tasks disturb each other; nothing fails. Nothing is random.
"""

import argparse
import heapq
import json
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypeVar

import numpy as np

from benchmarks.corpus import CORPUS, num_megabytes, read_documents, say
from benchmarks.driver import further_gb
from benchmarks.driver import measure as measure_driver
from benchmarks.machine import machine
from benchmarks.pipeline_headrace import records_of
from pipelines.dataset.duplicates import Duplicates
from pipelines.dataset.packing import Packing
from pipelines.dataset.retractions.retractions import Retractions
from pipelines.dataset.settling import Decision, Layout, Piece, settle, write_shard_of, write_trail_file
from pipelines.ingest.deciding import decided
from pipelines.ingest.decisive import BlockApart, MadeOf, decisive_of
from pipelines.ingest.job import Prepare
from pipelines.tokenizers.tokenizer import write_tokenizer
from schemas.arrow import Split
from schemas.settings import Settings
from schemas.settings_sources import load_settings

CORES_PER_NODE = 16
DEFAULT_VERSION_MB = 268
"""``ingest.max_batch_bytes``."""
VERSIONS_MB = (DEFAULT_VERSION_MB, 10_000, 100_000)
Given = TypeVar("Given")


class Durations(NamedTuple):
    """Seconds of one core, for a block unless it says otherwise."""

    block_mb: float
    prepared_mb: float
    """What waits for the ingesting process."""
    prepare_s: float
    look_s: float
    settle_s: float
    write_s: float
    ingesting_process_s: float
    version_s: float
    """Of the ingesting process, for a version of no blocks."""


class Simulated(NamedTuple):
    """One version on a cluster."""

    wall_s: float
    busy: float
    """Share of the cores' time that was used."""
    ingesting_process: float
    """Share of the time in which the ingesting process worked."""


def simulate(durations: Durations, cores: int, num_blocks: int, read_ahead_bytes: int) -> Simulated:
    """The version from its plan to its commit."""
    ahead = max(1, int(read_ahead_bytes / 1e6 * math.ceil(cores / CORES_PER_NODE) / durations.prepared_mb))
    before_s, after_s = durations.prepare_s + durations.look_s, durations.settle_s + durations.write_s
    free = [0.0] * cores
    decided_at: list[float] = []
    process_s, last_s = durations.version_s / 2, 0.0
    waiting: list[float] = []
    """When each block was decided that nobody has settled yet."""
    for number in range(num_blocks):
        may_begin = decided_at[number - ahead] if number >= ahead else durations.version_s / 2
        while waiting and waiting[0] <= max(free[0], may_begin):
            last_s = max(last_s, _taken(free, waiting.pop(0), after_s))
        prepared_at = _taken(free, may_begin, before_s)
        process_s = max(process_s, prepared_at) + durations.ingesting_process_s
        decided_at.append(process_s)
        waiting.append(process_s)
    for each in waiting:
        last_s = max(last_s, _taken(free, each, after_s))
    wall_s = max(last_s, process_s) + durations.version_s / 2
    worked_s = num_blocks * durations.ingesting_process_s + durations.version_s
    return Simulated(wall_s, num_blocks * (before_s + after_s) / cores / wall_s, worked_s / wall_s)


def _taken(free: list[float], not_before: float, seconds: float) -> float:
    """The core that is free first does it; returns when it is done."""
    done = max(heapq.heappop(free), not_before) + seconds
    heapq.heappush(free, done)
    return done


def measure(corpus: Path, megabytes: float) -> Durations:
    """On this machine."""
    result = measure_driver(corpus, megabytes, rounds=1, writers=("tasks",))
    per_gb = further_gb(result, "tasks")["driver_cpu_s"]
    with tempfile.TemporaryDirectory() as name:
        settings = load_settings("", {}, {"root": name, "tokenizer.vocab_size": 8192})
        durations = _of_tasks(corpus, settings)
    of_block = per_gb * durations.block_mb / 1000
    whole = result["whole"]
    of_version = result["runs"]["tasks"]["whole"]["driver_cpu_s"] - per_gb * whole["megabytes"] / 1000
    return durations._replace(ingesting_process_s=of_block, version_s=max(0.0, of_version))


def _of_tasks(corpus: Path, settings: Settings, num_blocks: int = 8) -> Durations:
    """Medians over some blocks, after one that loads everything."""
    size = settings.ingest.slice_records
    documents = read_documents(corpus, number=size * (num_blocks + 1))
    records = records_of(documents)
    ref = write_tokenizer(Path(settings.root), [document["text"] for document in documents], settings.tokenizer)
    step = Prepare(settings, ref)
    duplicates, retractions = Duplicates(settings.dedup), Retractions()
    duplicates.open(None)
    retractions.open(None)
    layout = Layout(settings.root, 1, "0" * 12, ref, settings.packing.sequence_length)
    seconds: dict[str, list[float]] = {"prepare": [], "look": [], "settle": [], "write": []}
    for first in range(0, len(records), size):
        (block,) = _timed(seconds["prepare"], lambda first=first: list(step(records.slice(first, size))))
        generation = duplicates.generation()
        decisive, ids = _timed(seconds["look"], lambda block=block, generation=generation: decisive_of(block, generation))
        found = decided(BlockApart(decisive, block, MadeOf(decisive, ids)), retractions, duplicates, {})
        is_kept = np.ones(len(found.num_tokens), np.bool_)
        is_kept[found.duplicates["position"].to_numpy()] = False
        tokens = found.num_tokens
        lengths = [np.where(tokens < 0, -tokens, tokens + 1)[is_kept & ((tokens < 0) == (split == Split.VALIDATION))] for split in Split]
        packing = [Packing(settings.packing.sequence_length, 10**9) for _ in Split]
        runs = [each.place(of_split.astype(np.int64)) for each, of_split in zip(packing, lengths, strict=True)]
        decision = Decision(None, found.duplicates, runs, lengths)
        names = list(found.names)
        settled = _timed(seconds["settle"], lambda block=block, decision=decision, names=names: settle(block, decision, layout, names))
        _timed(seconds["write"], lambda settled=settled, number=first // size: _write(layout, number, settled))
    middle = {name: median(found[1:]) for name, found in seconds.items()}
    prepared_mb = block.nbytes / 1e6
    block_mb = num_megabytes(documents) / (num_blocks + 1)
    return Durations(block_mb, prepared_mb, middle["prepare"], middle["look"], middle["settle"], middle["write"], 0.0, 0.0)


def _write(layout: Layout, number: int, settled: Any) -> None:
    """A shard for each split and a file of the trail for one block: its share of larger ones, and more."""
    rows, *packed, _ = settled
    for split, part in zip(Split, packed, strict=True):
        if len(part.lengths):
            write_shard_of(layout, split, number, [Piece(0, len(part.lengths))], [part])
    write_trail_file(layout, number, [Piece(0, len(rows))], [rows])


def _timed(found: list[float], call: Callable[[], Given]) -> Given:
    start = time.process_time()
    result = call()
    found.append(time.process_time() - start)
    return result


def show(durations: Durations, cores: list[int], read_ahead_bytes: int) -> list[dict[str, float]]:
    """Print a line for each size of version and number of cores."""
    rows = []
    print("  ".join(f"{name} {value:.4g}" for name, value in durations._asdict().items()))
    for version_mb in VERSIONS_MB:
        num_blocks = max(1, round(version_mb / durations.block_mb))
        for number in cores:
            found = simulate(durations, number, num_blocks, read_ahead_bytes)
            gb_per_hour = num_blocks * durations.block_mb / 1000 / found.wall_s * 3600
            rows.append({"version_mb": version_mb, "cores": number, "gb_per_hour": gb_per_hour, **found._asdict()})
            print(
                f"versions of {version_mb:7,} MB on {number:5,} cores: {gb_per_hour:8,.0f} GB an hour, cores {100 * found.busy:5.1f} % busy, "
                f"ingesting process {100 * found.ingesting_process:5.1f} %"
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--corpus", type=Path, default=CORPUS)
    parser.add_argument("--megabytes", type=float, default=60)
    parser.add_argument("--cores", default="1,2,16,64,256,1024")
    parser.add_argument("--save", type=Path, help="write the durations to this file")
    parser.add_argument("--from", type=Path, dest="saved", help="take the durations from such a file")
    args = parser.parse_args()
    durations = Durations(**json.loads(args.saved.read_text())) if args.saved else measure(args.corpus, args.megabytes)
    if args.save:
        args.save.write_text(json.dumps(durations._asdict()))
    rows = show(durations, [int(number) for number in args.cores.split(",")], Settings().ingest.read_ahead_bytes)
    say({"machine": machine(), "durations": durations._asdict(), "simulated": rows})


if __name__ == "__main__":
    main()
