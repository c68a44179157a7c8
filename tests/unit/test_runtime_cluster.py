"""What a command does when the Ray that it started ends before it."""

import os
import socket
import threading

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
