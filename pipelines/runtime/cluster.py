"""Joining or starting Ray: one way for every command.

``ray.address = "local"`` starts a private Ray that ends with this process; ``auto`` or ``host:port`` joins a running cluster. A private Ray has
sessions of its own, so Ctrl-C and a closed terminal reach this process alone. If a private Ray ends all the same, this process exits with code 1,
which is safe at any moment, as SIGKILL is: each call of Ray would wait a minute for it. A private Ray's processes get its address (``RAY_ADDRESS``):
helpers of Ray Train ask for "the" Ray of the machine, and fail where two run.
"""

import contextlib
import functools
import json
import logging
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.runtime.ports import free_ports, is_free
from schemas.settings import RaySettings

CODE = Path(__file__).parents[2]
"""Where our packages lie."""
RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing leaves the machine unasked
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # the controller's poll; at its default of 2 s the newest checkpoint is missed after a kill
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",  # 5 by default: of the 30 s that a node may have, few should pass before its workers save
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",  # train runs are listed by the dashboard's API
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # leave CUDA_VISIBLE_DEVICES alone for tasks without GPUs; silences a warning
    "RAY_DEDUP_LOGS": "1",
    "PYTHONWARNINGS": "ignore::DeprecationWarning",  # Ray, about its own calls
}
"""Environment of every process of a Ray that Headrace starts; a variable that is set already wins."""
WITHOUT_DASHBOARD = {"RAY_TRAIN_ENABLE_STATE_TRACKING": "0"}
"""Ray Train's tracker asks the dashboard what lives, and prints pages of traceback where there is none."""
OWN_RAY = "headrace_own_ray"
"""A resource that marks a Ray which Headrace has started for one machine: its number of CPUs is a setting, not the number of cores."""
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Variable with which `ray job submit` tells the command that it runs what that job is."""
JOB_NAME = "job_name"
"""Ray's key for the name of a job."""
WATCH_S = 1.0
MAX_REFUSED = 3
SILENT = re.compile(
    r"^\d{4}-\d\d-\d\d [\d:,]+ (INFO|DEBUG) "  # progress of our workers: the command tells its own
    r"|RayDeprecationWarning: |^  self\.exclude_resources = "  # Ray, about its own calls
    r"|Actor with class name: 'PreemptionWatcher'"  # the same
)
"""Lines of Ray's processes that are not repeated here; they stay in Ray's own files and its dashboard."""


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Variables that are set inside the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def ray_session(settings: RaySettings, job_name: str = "", worker_environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """Be connected to Ray inside the block; yields the cluster's address (``host:port`` of its GCS).

    ``job_name``: of this process on the Jobs page of Ray's dashboard. ``worker_environment``: variables for workers on other hosts; the dashboard
    shows them, so they must not be secret. A connection that is already open is used and left open.
    """
    has_dashboard = settings.dashboard_port > 0
    for name, value in (RAY_ENVIRONMENT if has_dashboard else RAY_ENVIRONMENT | WITHOUT_DASHBOARD).items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield ray.get_runtime_context().gcs_address
        return
    _print_to_standard_error()
    on_sigterm = signal.getsignal(signal.SIGTERM)
    with contextlib.chdir(CODE):  # Ray puts the working folder before everything else that its workers import from
        _connect(settings, job_name, worker_environment or {}, has_dashboard=has_dashboard)
    if callable(on_sigterm) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray has put its own in its place, which ends the process at once
    address, closing = ray.get_runtime_context().gcs_address, threading.Event()
    if settings.address == "local":
        threading.Thread(target=_exit_with_ray, args=(address, closing), name="ray-watch", daemon=True).start()
    try:
        yield address
    finally:
        closing.set()
        ray.shutdown()


def is_own_machine() -> bool:
    """Whether the Ray that runs is one that Headrace has started, and no other machine has joined it."""
    import ray

    return OWN_RAY in ray.cluster_resources() and num_nodes() == 1  # type: ignore[no-untyped-call]


def num_nodes() -> int:
    """Nodes of the Ray that runs."""
    import ray

    return sum(node["Alive"] for node in ray.nodes())  # type: ignore[no-untyped-call]


def node_addresses() -> set[str]:
    """Addresses of the machines of the Ray that runs."""
    import ray

    return {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call]


@contextmanager
def _in_sessions_of_their_own() -> Iterator[None]:
    """Start Ray's processes in new sessions inside the block; Ray has no setting for that. The kernel still ends them with this process."""
    from ray._private import services

    start = services.ConsolePopen
    services.ConsolePopen = functools.partial(start, start_new_session=True)  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        services.ConsolePopen = start  # type: ignore[misc]


def _exit_with_ray(address: str, closing: threading.Event) -> None:
    """Exit with code 1 once a private Ray has refused MAX_REFUSED connections in a row."""
    host, _, port = address.rpartition(":")
    refused = 0
    while refused < MAX_REFUSED and not closing.wait(WATCH_S):
        try:
            socket.create_connection((host, int(port)), timeout=WATCH_S).close()
            refused = 0
        except ConnectionRefusedError:
            refused += 1
        except OSError:  # it is busy, or so are we
            refused = 0
    if not closing.is_set():
        sys.stderr.write(
            f"Ray at {address}, which this command started, refused {MAX_REFUSED} connections in a row, so the command ends; start it again\n"
        )
        sys.stderr.flush()
        os._exit(1)


def _connect(settings: RaySettings, job_name: str, worker_environment: Mapping[str, str], *, has_dashboard: bool) -> None:
    import ray
    from ray.job_config import JobConfig

    common: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": True, "namespace": "headrace"}
    common["job_config"] = JobConfig(metadata={JOB_NAME: job_name} if job_name else {})
    if settings.address == "local":
        (port,) = free_ports(1)
        with _environment({"RAY_GCS_SERVER_PORT": str(port), "RAY_ADDRESS": f"127.0.0.1:{port}"}), _in_sessions_of_their_own():
            ray.init(
                address="local",
                num_cpus=settings.num_cpus,
                resources={OWN_RAY: 1},
                object_store_memory=settings.object_store_bytes,
                include_dashboard=has_dashboard,
                dashboard_host="127.0.0.1",
                dashboard_port=settings.dashboard_port if is_free(settings.dashboard_port) else None,  # None: the next free one
                **common,
            )
    else:
        ray.init(address=settings.address, runtime_env=_runtime_env(worker_environment), **common)


def _runtime_env(variables: Mapping[str, str]) -> dict[str, Any] | None:
    """Ray refuses a variable that the job was submitted with; this process has read that one, as its workers will."""
    submitted = json.loads(os.environ.get(JOB_VARIABLE, "{}")).get("runtime_env", {}).get("env_vars", {})
    left = {name: value for name, value in variables.items() if name not in submitted}
    return {"env_vars": left} if left else None


def own_job() -> dict[str, str]:
    """Environment in which a child of a submitted job is a job of its own for Ray, which otherwise shows only the last of a job's processes."""
    submitted = json.loads(os.environ.get(JOB_VARIABLE, "{}"))
    return {JOB_VARIABLE: json.dumps(submitted | {"metadata": {}})} if submitted else {}


@functools.cache
def _print_to_standard_error() -> None:
    """Standard output is for results. Ray prints there what its processes print there, and that one of them died; it has no setting for that.

    So the function that prints is told that everything is of standard error. It gets no lines that say nothing to a person (``SILENT``), and
    colours its prefixes on a terminal only.
    """
    from ray._private import worker

    if not sys.stderr.isatty():
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    printed = worker.print_to_stdstream

    def to_standard_error(data: Any, ignore_prefix: bool) -> None:
        lines = [line for line in data.get("lines", ()) if not SILENT.search(line)]
        if lines and _is_of_this_job(data):
            printed({**data, "lines": lines, "is_err": True}, ignore_prefix)

    worker.print_to_stdstream = to_standard_error


def _is_of_this_job(data: Mapping[str, Any]) -> bool:
    """Ray Serve makes its process repeat the lines of all jobs, because its actors may be of an earlier one: only of these it does."""
    import ray

    if not data.get("job") or not ray.is_initialized() or str(data.get("actor_name") or "").startswith(("Serve", "ProxyActor")):
        return True
    return bool(data["job"] == ray.get_runtime_context().get_job_id())
