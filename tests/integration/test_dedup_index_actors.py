"""The duplicate index shared out to Ray actors gives the answers of one process, also after an actor has died."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipelines.dedup.base import open_base, write_base
from pipelines.dedup.opening import kept_parts
from pipelines.dedup.resolve import Resolver
from pipelines.runtime.cluster import ray_session
from schemas.arrow import SEGMENT
from schemas.settings import RaySettings
from schemas.settings_dedup import DedupSettings


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    with ray_session(RaySettings(num_cpus=1, dashboard_port=0)):
        yield


def documents(num_rows: int, seed: int) -> pa.Table:
    """Fingerprints around a few hundred centres: many near duplicates."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).integers(0, 2**64, 300, dtype=np.uint64)
    fingerprint = centres[rng.integers(0, 300, num_rows)]
    for _ in range(5):
        fingerprint = fingerprint ^ (np.uint64(1) << rng.integers(0, 64, num_rows, dtype=np.uint64))
    sketch = [bytes(np.where(rng.random(32) < 0.8, 1, rng.integers(1, 256, 32)).astype(np.uint8)) for _ in range(num_rows)]
    columns = [pa.array(fingerprint), [rng.bytes(16) for _ in range(num_rows)], sketch, [f"{seed}/{row}" for row in range(num_rows)]]
    return pa.table(columns, schema=SEGMENT)


@pytest.mark.slow  # starts Ray
def test_two_actors_give_the_verdicts_of_one_process_and_a_killed_one_comes_back(ray: None, tmp_path: Path) -> None:
    import ray as ray_module

    from pipelines.dedup.actors import ActorShards

    options, rows = DedupSettings(), documents(3_000, 1)
    first = Resolver(options, [])
    first.resolve(rows)
    with pa.OSFile(str(tmp_path / "segment"), "wb") as sink, pa.ipc.new_file(sink, SEGMENT) as writer:
        writer.write_table(first.new_segment())
    with (tmp_path / "base").open("x+b") as file:
        write_base(file, kept_parts(None, [tmp_path / "segment"]), options.max_hamming)
    shards = ActorShards(tmp_path / "base", options.max_hamming, 2, "wiki")
    more = documents(1_000, 2)
    alone = Resolver(options, [], base=tmp_path / "base").resolve(more)
    assert alone["reason"].to_pylist().count("near") > 100
    assert Resolver(options, [], base=tmp_path / "base", shards=shards).resolve(more).equals(alone)
    ray_module.kill(shards._actors[0], no_restart=False)
    assert Resolver(options, [], base=tmp_path / "base", shards=shards).resolve(more).equals(alone)
    assert open_base(tmp_path / "base").num_rows == first.num_kept
    shards.close()
