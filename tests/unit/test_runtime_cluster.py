"""What a command does when the Ray that it started ends before it, and what it repeats of what Ray's processes print."""

import os
import socket
import threading
from typing import Any

import pytest

from pipelines.runtime import cluster
from pipelines.runtime.ports import free_ports


class Exited(Exception):
    pass


@pytest.fixture(autouse=True)
def exits_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def exit_(code: int) -> None:
        raise Exited(code)

    monkeypatch.setattr(os, "_exit", exit_)
    monkeypatch.setattr(cluster, "WATCH_S", 0.01)


def test_a_command_ends_soon_after_the_ray_that_it_started(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Exited):
        cluster._exit_with_ray(f"127.0.0.1:{free_ports(1)[0]}", threading.Event())
    assert "connections in a row, so the command ends" in capsys.readouterr().err


def test_the_watch_does_not_exit_while_ray_listens_or_after_closing() -> None:
    closing = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        watch = threading.Thread(target=cluster._exit_with_ray, args=(f"127.0.0.1:{server.getsockname()[1]}", closing))
        watch.start()
        for _ in range(2 * cluster.MAX_REFUSED):
            server.accept()[0].close()
        closing.set()
        watch.join()


def printed(capsys: pytest.CaptureFixture[str], *lines: str) -> str:
    from ray._private import worker

    cluster._print_to_standard_error()
    data: dict[str, Any] = {"is_err": False, "pid": 7, "actor_name": "RayTrainWorker", "ip": "", "localhost": "", "lines": list(lines)}
    worker.print_to_stdstream(data, False)
    found = capsys.readouterr()
    assert found.out == ""
    return found.err


def test_lines_of_rays_processes_are_repeated_without_colours_and_without_those_that_say_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_COLOR_PREFIX", "0")  # as where standard error is no terminal
    noise = (
        "2026-11-29 16:24:19,914 INFO ray_apps.training.worker [run d00000002-f59a49d4f715, dataset 2 from scratch, worker 0 of 2]: step 50 of 240",
        "/venv/ray/execution_options.py:436: RayDeprecationWarning: `ExecutionOptions.exclude_resources` is deprecated",
        "  self.exclude_resources = exclude_resources",
        "[2026-11-29 16:20:53,923 E 11826 11871] core_worker.cc:2465: Actor with class name: 'PreemptionWatcher' and ID: '15bd' has constructor",
    )
    assert printed(capsys, *noise) == ""
    warning = "2026-11-29 16:24:20,001 WARNING ray_apps.training.checkpoint [run d00000002-f59a49d4f715]: going back to the checkpoint before"
    assert printed(capsys, *noise, warning) == f"(RayTrainWorker pid=7) {warning}\n"


def test_a_process_of_serve_repeats_only_lines_of_its_own_job_and_of_serves_actors() -> None:
    """Without a Ray there is no job to compare with; the test of the dashboard looks at a running one."""
    assert cluster._is_of_this_job({"job": "04000000", "actor_name": "ServeReplica:headrace-wiki-0123abcd-model-1:engine"})
    assert cluster._is_of_this_job({"job": None}) and cluster._is_of_this_job({})
