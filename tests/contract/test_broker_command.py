"""``headrace broker``: one line when it is ready, a clean end on SIGTERM and Ctrl-C, errors in one line."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contract.wire import Wire, eventually


def start(*arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "ops.cli.main", "broker", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).resolve().parents[2])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_where_it_listens_and_ends_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    with start("--listen", "127.0.0.1:0", "--root", str(tmp_path), "--json") as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert ready["pid"] == process.pid
        with Wire(ready["bootstrap_servers"]) as wire:
            wire.create_topic("hello")
        process.send_signal(number)
        rest, log = process.communicate(timeout=20)
        assert (process.returncode, rest) == (0, "")
        assert "Traceback" not in log
    assert (tmp_path / "broker" / "catalogue.json").is_file()


def test_an_interrupt_is_heard_where_the_shell_that_started_it_in_the_background_had_it_ignored(tmp_path: Path) -> None:
    script = f"{sys.executable} -m ops.cli.main ingest --follow --root {tmp_path} --set tokenizer.min_training_bytes=1 & echo $!; wait $!; echo $?"
    shell = ["sh", "-c", script]
    with subprocess.Popen(shell, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).resolve().parents[2]) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        status = Path(f"/proc/{pid}/status")

        def is_heard() -> bool:
            ignored = next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("SigIgn"))
            return not int(ignored, 16) & 1 << (signal.SIGINT - 1)

        eventually(is_heard, "SIGINT stays ignored")
        os.kill(pid, signal.SIGINT)
        rest, log = process.communicate(timeout=60)
        assert rest.strip() in {"0", "130"}
        assert "Traceback" not in log


def test_an_address_that_cannot_be_had_is_named_in_one_line(tmp_path: Path) -> None:
    with start("--listen", "127.0.0.1:0", "--root", str(tmp_path / "a"), "--json") as first:
        assert first.stdout is not None
        taken = json.loads(first.stdout.readline())["bootstrap_servers"]
        with start("--listen", taken, "--root", str(tmp_path / "b")) as second:
            _, log = second.communicate(timeout=20)
            assert second.returncode == 1
            assert f"cannot listen on {taken}" in log
            assert "Traceback" not in log
        first.terminate()
        first.communicate(timeout=20)


@pytest.mark.parametrize("listen", ["9092", ":9092", "127.0.0.1:99999", "localhost"])
def test_an_address_without_a_host_or_with_no_possible_port_is_wrong_usage(tmp_path: Path, listen: str) -> None:
    with start("--listen", listen, "--root", str(tmp_path)) as process:
        out, log = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert repr(listen) in log.splitlines()[-1]
    assert not (tmp_path / "broker").exists()


def test_localhost_is_one_address_with_one_port(tmp_path: Path) -> None:
    with start("--listen", "localhost:0", "--root", str(tmp_path), "--json") as process:
        assert process.stdout is not None
        with Wire(json.loads(process.stdout.readline())["bootstrap_servers"]) as wire:
            assert wire.metadata("x").error_code == 3
        process.terminate()
        assert (process.communicate(timeout=20), process.returncode)[1] == 0


def test_a_root_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with start("--listen", "127.0.0.1:0", "--root", str(tmp_path / "file")) as process:
        _, log = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "another --root" in log.splitlines()[-1]
    assert "Traceback" not in log
