"""A terminal that is closed stops what runs in it, in order and with exit code 0; what was started with ``nohup`` goes on."""

import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ops.cli.kafka_of_root import kafka_of
from pipelines.runtime.stopping import handle_stops
from tests.broker_process import BrokerProcess

TIMEOUT_S = 60.0
TAKE_TERMINAL = """
import fcntl, os, signal, sys, termios
signal.signal(signal.SIGHUP, signal.SIG_DFL)
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Makes standard input the terminal of this session, so that closing it hangs up the session; becomes the command. The tests may run under nohup."""


@contextmanager
def in_terminal(*words: str) -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    """A command with a terminal of its own, and the file at which that can be read and closed."""
    terminal, own = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", TAKE_TERMINAL, sys.executable, "-P", "-m", "ops.cli.main", *words],
        stdin=own,
        stdout=own,
        stderr=own,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    os.close(own)
    try:
        yield process, terminal
    finally:
        process.kill()
        process.wait()


def read_until(terminal: int, text: bytes) -> None:
    """Read to the end of the line that holds the text: a line is written in parts, and no part can be written to a closed terminal."""
    said = b""
    while b"\n" not in said.partition(text)[2]:
        said += os.read(terminal, 4096)  # raises OSError if the command has ended


def test_a_closed_terminal_stops_the_broker_in_order(tmp_path: Path) -> None:
    with in_terminal("broker", "--listen", "127.0.0.1:0", "--root", str(tmp_path)) as (process, terminal):
        read_until(terminal, b"Kafka broker ready")
        assert kafka_of(tmp_path) is not None
        os.close(terminal)
        assert process.wait(TIMEOUT_S) == 0


def test_a_closed_terminal_stops_a_follower_in_order_though_it_has_something_to_say(broker: BrokerProcess, topic_prefix: str, tmp_path: Path) -> None:
    to_kafka = ("--bootstrap-servers", broker.bootstrap_servers, "--set", f"kafka.topic_prefix={topic_prefix}", "--set", "ingest.runner=local")
    with in_terminal("ingest", "--follow", "--root", str(tmp_path), *to_kafka) as (process, terminal):
        read_until(terminal, b"following")
        os.close(terminal)
        assert process.wait(TIMEOUT_S) == 0


def test_a_hangup_that_is_ignored_at_the_start_stays_ignored() -> None:
    stop = threading.Event()
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert handle_stops(lambda *_: stop.set()) == {}
        signal.raise_signal(signal.SIGHUP)
        assert not stop.is_set()
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_is_asked_to_stop_is_asked_by_a_hangup_too(number: signal.Signals) -> None:
    stop = threading.Event()
    own = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored
    before = handle_stops(lambda *_: stop.set(), signal.SIGTERM)
    try:
        signal.raise_signal(number)
        assert stop.is_set()
    finally:
        for each, handler in (before | {signal.SIGHUP: own}).items():
            signal.signal(each, handler)
