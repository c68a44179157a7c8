"""Ports that are chosen before they are used."""

import random
import socket
from pathlib import Path
from typing import Any

import pytest
from ray.scripts.scripts import start

from pipelines.runtime import ports
from pipelines.runtime.ports import free_ports, is_free


def test_ports_are_free_all_different_and_none_that_the_system_gives_out_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given_out = tmp_path / "range"
    given_out.write_text("30000\t40000\n")
    monkeypatch.setattr(ports, "EPHEMERAL", given_out)
    found = free_ports(20)
    assert len(set(found)) == 20
    assert all(ports.LOWEST <= port < 30_000 and is_free(port) for port in found)


def test_no_port_is_one_that_ray_keeps_for_its_workers() -> None:
    defaults: dict[str | None, Any] = {option.name: option.default for option in start.params}
    kept = range(defaults["min_worker_port"], defaults["max_worker_port"] + 1)
    assert not {port for _ in range(50) for port in free_ports(20)} & set(kept)


@pytest.mark.parametrize("says", [None, "1024\t65535\n", "?"])
def test_there_are_ports_where_the_range_begins_low_or_is_unknown(says: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "EPHEMERAL", tmp_path / "range")
    if says is not None:
        (tmp_path / "range").write_text(says)
    assert len(free_ports(3)) == 3


def test_a_port_that_is_taken_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(random, "randrange", lambda *_: port)
        assert not is_free(port)
        with pytest.raises(OSError, match="no 1 free ports"):
            free_ports(1)
