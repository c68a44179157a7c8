"""The job of one micro-batch: slices of offsets in, prepared blocks out, in the order of the slices.

Two runners give the same rows: ``run_ray`` spreads read -> prepare over a Ray cluster as fused tasks of a few windows of slices each, ``run_local``
does the same work in this process, for small machines and tests. Text stays in the worker that read it; what comes back are verdicts,
fingerprints, token ids, and the bytes of dead records. ``run_ray_apart`` leaves the token ids with the workers too: it gives what the committer
decides by, and a reference to the rest (decisive.py). All are lazy: the local one is never ahead of the committer, and on Ray reading stops
while blocks of ``ingest.read_ahead_bytes`` wait for it.

A document on which a step fails is found and dead-lettered (poison.py), also if it ends the process that works on it (quarantine.py).
"""

import itertools
import logging
import math
import os
import pickle
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.dedup.paragraphs import EMPTY
from pipelines.ingest.apart import NewestGeneration, blocks_apart
from pipelines.ingest.block_counts import SIZE
from pipelines.ingest.decisive import BlockApart
from pipelines.ingest.isolation.poison import Step, isolated
from pipelines.ingest.isolation.quarantine import DeathMark, Quarantine, quarantine
from pipelines.ingest.portions import in_portions
from pipelines.kafka.reading import BLOCK_BYTES, EXPECTED_RECORD_BYTES, Slice, read_slices, windows
from pipelines.kafka.sizes import sizes_of
from pipelines.kernels.ingest import ensure_compiled
from pipelines.runtime.cluster import is_own_machine, node_addresses
from pipelines.runtime.memory import few_arenas, release
from pipelines.runtime.ray_errors import has_cause, original, original_errors
from pipelines.runtime.roles import node_resources, nodes_of
from pipelines.steps.prepare import prepare
from pipelines.storage.mirror import root_name
from pipelines.tokenizers.tokenizer import BatchTokenizer, load_tokenizer
from schemas.errors import SettingsError
from schemas.listen import Listen
from schemas.manifest import TokenizerRef
from schemas.settings import Settings
from schemas.settings_data import IngestSettings, TokenizerSettings

if TYPE_CHECKING:
    import ray.data

_log = logging.getLogger(__name__)
Lines = npt.NDArray[np.uint64]
"""Hashes of the lines that are known as boilerplate, ascending: 8 bytes each, so they go to the workers with the step itself."""
Runner = Callable[[Sequence[Slice], Settings, TokenizerRef, Lines], Iterator[pa.Table]]
"""Prepared blocks (schemas.arrow.prepared, and ``SIZE``) in the order of the slices and their offsets; every offset of the slices is in one row."""
Taken = TypeVar("Taken", pa.Table, BlockApart)
MAX_RETRIES = 1
"""How often Ray repeats a task whose process died, before its records are suspected (Ray's default: 3)."""
MAX_WINDOWS_PER_TASK, LAST_ROUND_WINDOWS = 16, 6
"""Most windows of a task on Ray, and of one of the last tasks: fewer, so that those end at about the same time."""
LIMITS_INTERVAL_S, FIRST_LIMITS_INTERVAL_S = 1.0, 0.05
"""How often Ray Data asks what the cluster has, and until it has prepared a block. The first answer is always "nothing", with which it starts one
task, and left alone it waits 1 s."""


@lru_cache(maxsize=2)
def cached_tokenizer(root: str, sha256: str, ref_json: str, settings_json: str) -> BatchTokenizer:  # noqa: ARG001  (the hash is the key)
    """One tokenizer per worker process: loading takes longer than encoding a small block."""
    return load_tokenizer(Path(root), TokenizerRef.model_validate_json(ref_json), TokenizerSettings.model_validate_json(settings_json))


class Prepare:
    """``prepare`` with its settings bound: picklable, so that Ray can send it to workers."""

    def __init__(self, settings: Settings, tokenizer: TokenizerRef, known: Lines = EMPTY.hashes) -> None:
        self._settings = settings
        self._tokenizer = tokenizer
        self._known = known

    def __call__(self, records: pa.Table) -> Iterator[pa.Table]:
        """One block of schemas.arrow.RECORDS -> blocks of schemas.arrow.prepared with ``SIZE``: several only of records that refer to much.

        Raises what is not a record's fault.
        """
        yield from in_portions(self._isolated, records)

    def in_quarantine(self, records: pa.Table) -> Iterator[pa.Table]:
        """The same in a child of this worker process, for records that may end it."""
        yield from in_portions(partial(sized, quarantine(pickle.dumps(self.prepared))), records)

    def _isolated(self, records: pa.Table) -> pa.Table:
        few_arenas()
        rows = sized(partial(isolated, self.prepared), records)
        release()
        return rows

    def prepared(self, records: pa.Table) -> pa.Table:
        """The steps; raises whatever a record makes them raise."""
        ensure_compiled()
        root = str(Path(self._settings.root).resolve())
        ref, options = self._tokenizer, self._settings.tokenizer
        tokenizer = cached_tokenizer(root, ref.sha256, ref.model_dump_json(), options.model_dump_json())
        return prepare(records, self._settings, tokenizer, self._known)


def sized(step: Step, records: pa.Table) -> pa.Table:
    """The step's rows with ``SIZE``."""
    return step(records).append_column(SIZE, sizes_of(records))


def run_local(parts: Sequence[Slice], settings: Settings, tokenizer: TokenizerRef, known: Lines = EMPTY.hashes) -> Iterator[pa.Table]:
    """Prepares the slices window by window in this process; a block on which this process died twice is prepared in a child process."""
    step = Prepare(settings, tokenizer, known)
    with DeathMark(Path(settings.root)) as mark, Quarantine(pickle.dumps(step.prepared)) as quarantined:
        for records in read_slices(parts, settings):
            yield from in_portions(partial(sized, quarantined), records) if mark.is_suspect(records) else step(records)


def run_ray(parts: Sequence[Slice], settings: Settings, tokenizer: TokenizerRef, known: Lines = EMPTY.hashes) -> Iterator[pa.Table]:
    """Ray tasks of a few windows each. Ray must be running (runtime.cluster.ray_session). Raises what the tasks raised, not Ray's wrapping."""
    return _run_ray(parts, settings, Prepare(settings, tokenizer, known), _whole_blocks)


def run_ray_apart(
    parts: Sequence[Slice], settings: Settings, tokenizer: TokenizerRef, known: Lines, newest: NewestGeneration
) -> Iterator[BlockApart]:
    """The same, but a block stays on the node that prepared it: only what decides comes here, and a reference to the rest. ``newest``: in what
    duplicates are looked up there."""
    resources = ingest_resources(settings)

    def taken(blocks: "ray.data.Dataset") -> Iterator[BlockApart]:
        sources = itertools.chain.from_iterable(bundle.block_refs for bundle in blocks.iter_internal_ref_bundles())
        return blocks_apart(sources, newest, resources)

    return _run_ray(parts, settings, Prepare(settings, tokenizer, known), taken)


def ingest_resources(settings: Settings) -> dict[str, float]:
    """What every task of ingest asks for, so that it runs on the nodes that are ingest's. Ray must be running."""
    return node_resources(settings.ray.ingest_nodes, "ray.ingest_nodes")


def _run_ray(parts: Sequence[Slice], settings: Settings, step: Prepare, taken: Callable[["ray.data.Dataset"], Iterator[Taken]]) -> Iterator[Taken]:
    import ray

    check_reachable(settings.kafka.bootstrap_servers, node_addresses())
    quiet_ray_data()
    _ask_for_limits_every(FIRST_LIMITS_INTERVAL_S)
    num_done = 0
    try:
        for block in taken(_ray_blocks(parts, settings, step)):
            _ask_for_limits_every(LIMITS_INTERVAL_S)
            num_done += len(block)
            yield block
    except ray.exceptions.RayError as error:
        if not has_cause(error, (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError)):
            if (found := original(error)) is error:
                raise
            raise found from error
        _log.warning("worker processes ended again and again on the same task; the rest of this version is prepared in separate processes")
    else:
        return
    with original_errors():
        yield from taken(_ray_blocks(_without_first(parts, num_done), settings, step.in_quarantine))


def check_reachable(servers: str, machines: Collection[str]) -> None:
    """Raise SettingsError if Ray has several machines and Kafka has loopback addresses only: then each task would look for it on its own machine."""
    hosts = [server.strip().rpartition(":")[0].strip("[]") for server in servers.split(",")]
    if len(machines) > 1 and all(Listen(host, 0).is_loopback for host in hosts):
        raise SettingsError(
            f"kafka.bootstrap_servers is {servers}, an address that means another machine on each of the {len(machines)} machines of this Ray; "
            "start a Kafka with an address that all of them reach, and name it with --bootstrap-servers"
        )


def _whole_blocks(blocks: "ray.data.Dataset") -> Iterator[pa.Table]:
    return iter(blocks.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1))


def _ray_blocks(parts: Sequence[Slice], settings: Settings, step: Callable[[pa.Table], Iterator[pa.Table]]) -> "ray.data.Dataset":
    import ray

    from pipelines.kafka.datasource import KafkaDatasource

    at_once, nodes = tasks_at_once(), nodes_of(settings.ray.ingest_nodes)
    groups = grouped(parts, at_once or max(1, nodes.num_cpus), settings.ingest)
    at_once = at_once and min(at_once, max(1, len(groups)))  # for more, Ray would warn
    options: dict[str, Any] = {"max_retries": MAX_RETRIES, "resources": ingest_resources(settings)}
    # Equal options let both steps run as one task. Without the override Ray would split the slices' output again where it has more CPUs than slices.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ray_remote_args is to go, but nothing else sets the retries of these tasks yet
        source = KafkaDatasource(groups, settings)
        records = ray.data.read_datasource(source, override_num_blocks=len(groups), concurrency=at_once, ray_remote_args=options)
        records.context.target_max_block_size = BLOCK_BYTES  # up to which Ray joins a task's blocks
        execution = records.context.execution_options
        execution.preserve_order = True
        execution.resource_limits = ray.data.ExecutionResources(object_store_memory=settings.ingest.read_ahead_bytes * max(1, nodes.number))
        blocks: ray.data.Dataset = records.map_batches(
            step, batch_size=None, batch_format="pyarrow", zero_copy_batch=True, concurrency=at_once, **options
        )
    _under_one_name(blocks, settings.root)
    return blocks


def _under_one_name(blocks: "ray.data.Dataset", root: str) -> None:
    """Give the datasets of all versions one name and id: Ray keeps about 2 MB of statistics for each dataset that it has seen (measured).

    The id is this driver's job id, so another stream of the cluster has another. Ray Data has no public way to set it.
    """
    import ray

    blocks.set_name(f"ingest-{root_name(root)}")
    blocks._set_uuid(ray.get_runtime_context().get_job_id())


def tasks_at_once() -> int | None:
    """On one machine no more than it has cores: the CPUs of a Ray of our own are a setting, and a worker that prepares holds some 400 MB.

    None on a cluster: its nodes report the CPUs that they have, and more nodes may join.
    """
    if not is_own_machine():
        return None
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def grouped(parts: Sequence[Slice], at_once: int, settings: IngestSettings) -> list[Sequence[Slice]]:
    """The slices of each task, whole windows in order: many at first, since Ray Data looks for finished tasks ten times a second only, and
    fewer towards the end.

    What the tasks that run at once prepare fits into what may wait for the committer, so that no later task stands still for an earlier one.
    """
    waiting_bytes = at_once * settings.slice_records * EXPECTED_RECORD_BYTES
    most = max(1, min(MAX_WINDOWS_PER_TASK, settings.read_ahead_bytes // waiting_bytes))
    units = list(windows(parts, settings.slice_records))
    groups: list[Sequence[Slice]] = []
    first = 0
    while first < len(units):
        left = len(units) - first
        size = min(most, math.ceil((left if left <= LAST_ROUND_WINDOWS * at_once else left * 2 / 3) / at_once))
        end = min(len(units), first + size * at_once)
        groups += [list(itertools.chain.from_iterable(units[start : min(end, start + size)])) for start in range(first, end, size)]
        first = end
    return groups


def _without_first(parts: Sequence[Slice], num_records: int) -> list[Slice]:
    """The slices without so many of their first offsets."""
    left: list[Slice] = []
    for part in parts:
        skipped = min(num_records, part.end - part.start)
        num_records -= skipped
        if part.start + skipped < part.end:
            left.append(part._replace(start=part.start + skipped))
    return left


def quiet_ray_data() -> None:
    """Ray Data's own bars and reports off: the command line has its own progress, and errors are raised here with what they say."""
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


def _ask_for_limits_every(seconds: float) -> None:
    """It has no setting of its own."""
    from ray.data._internal.execution.resource_manager import ResourceManager

    ResourceManager.GLOBAL_LIMITS_UPDATE_INTERVAL_S = seconds  # type: ignore[assignment]
