"""``headrace broker``: one line when it is ready, a clean end on SIGTERM and Ctrl-C, errors in one line."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contract.wire import Wire

PROGRAM = """
import argparse, sys
from ops.cli import broker
from ops.cli.main import common_flags, settings_from
from schemas.errors import HeadraceError
parser = argparse.ArgumentParser()
broker.add_parser(parser.add_subparsers(), common_flags())
args = parser.parse_args()
try:
    sys.exit(args.run(args, settings_from(args)))
except HeadraceError as error:
    sys.exit(str(error))
"""


def start(*arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", PROGRAM, "broker", *arguments]
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
