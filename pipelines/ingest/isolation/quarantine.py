"""Preparing blocks in a child process, for blocks whose preparation ended its process: a library in C that crashed on one document.

A block gets here only after processes died of it again and again, so good streams pay nothing. On Ray a task that dies is tried again by
Ray, then the rest of its version is prepared here (job.run_ray). Without Ray it is the ingesting process itself that dies, and whoever
restarts it (`headrace up`, systemd, Kubernetes) gives the second try; ``DeathMark`` remembers on disk at which block it died.

Here a crash ends the child and not us, and reads as ``Crashed``; poison.isolated splits the block until the record is alone.
Invariant: the child runs the same step, so the rows are the same. Cost: a start of the child (3 s) for each crash, about four to find one
record among 2,500; blocks are copied through pipes (1 GB/s). The child ends with its parent: its standard input is closed then.
"""

import contextlib
import json
import logging
import os
import pickle
import signal
import struct
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, Self

import pyarrow as pa

from pipelines.ingest.isolation.poison import Step, is_records_fault, isolated
from schemas import errors

WAYS = 16
"""A crash costs a start of the child, a call only itself: few rounds of many parts."""
MARK = "preparing.json"
DEATHS_BEFORE_QUARANTINE = 2
_FRAME = struct.Struct("<cQ")
_ROWS, _ERROR = b"r", b"e"
_log = logging.getLogger(__name__)


class Crashed(Exception):
    """The process that prepared these records died."""


class Quarantine:
    """Runs a step in a child process, which is started when it is first needed and again after a crash."""

    def __init__(self, step: bytes) -> None:
        """``step``: pickled; it comes from this program, never from outside."""
        self._step = step
        self._child: subprocess.Popen[bytes] | None = None

    def __call__(self, records: pa.Table) -> pa.Table:
        """The step's rows; records on which it crashes or raises are dead-lettered."""
        return isolated(self._ask, records, WAYS)

    def _ask(self, records: pa.Table) -> pa.Table:
        try:
            return self._call(records)
        except Crashed:
            if len(records) > 1:
                raise
        return self._call(records)  # the last word on a record: once more, in a fresh process

    def _call(self, records: pa.Table) -> pa.Table:
        child = self._child or self._start()
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            _send(child.stdin, _ROWS, _to_bytes(records))
            kind, body = _receive(child.stdout)
        except (EOFError, BrokenPipeError) as error:
            self._child = None
            raise Crashed(f"the process that prepared it ended with {_ending(child)}") from error
        if kind == _ERROR:
            raise _error_from(json.loads(body))
        return pa.ipc.open_stream(body).read_all()

    def _start(self) -> "subprocess.Popen[bytes]":
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        command = [sys.executable, "-P", "-m", "pipelines.ingest.isolation.quarantine"]
        # A session of its own: a terminal sends Ctrl-C, and SIGHUP when it is closed, to all of a session, and here the parent decides.
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True)
        assert child.stdin is not None
        _send(child.stdin, _ROWS, self._step)
        self._child = child
        return child

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End the child."""
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None


@lru_cache(maxsize=1)
def quarantine(step: bytes) -> Quarantine:
    """The one of this worker process for a pickled step; its child ends with it."""
    return Quarantine(step)


class DeathMark:
    """Which block this process prepares, written down for the process after it; use it in a ``with`` block.

    A block of which enough processes have died stays suspect until the mark is removed.
    """

    def __init__(self, root: Path) -> None:
        self._path = root / MARK
        self._last, self._deaths, self._suspects = _read_mark(self._path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Forget the block and all suspects."""
        self._path.unlink(missing_ok=True)

    def is_suspect(self, records: pa.Table) -> bool:
        """Mark the block as being prepared; whether processes have died of it again and again."""
        if not len(records):
            return False
        block = [records[name][0].as_py() for name in ("topic", "partition", "offset")]
        deaths = self._deaths if block == self._last else 0
        if deaths >= DEATHS_BEFORE_QUARANTINE and block not in self._suspects:
            _log.warning("%d processes ended while they prepared the block at %s; it is prepared in a process of its own", deaths, block)
            self._suspects.append(block)
        self._path.write_text(json.dumps({"block": block, "deaths": deaths + 1, "suspects": self._suspects}))
        return block in self._suspects


class TrainingMark(DeathMark):
    """The same for the tokenizer's training, which reads the blocks before they are prepared: what is suspect stays so for those."""

    def __exit__(self, *_: object) -> None:
        """Forget the block, unless others are suspect."""
        if not self._suspects:
            super().__exit__()


def _read_mark(path: Path) -> tuple[list[Any], int, list[list[Any]]]:
    """A mark that was being written when its process died says nothing."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        mark = json.loads(path.read_text())
        return list(mark["block"]), int(mark["deaths"]), list(mark["suspects"])
    return [], 0, []


def _ending(child: "subprocess.Popen[bytes]") -> str:
    child.communicate()
    code = child.returncode
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"exit code {code}"


def _error_from(told: dict[str, Any]) -> Exception:
    """What the child raised: a record's fault under the name that it had there, one of ours as itself, anything else as an error of ours."""
    if told["is_records_fault"]:
        fault: Exception = type(told["type"], (Exception,), {})(told["message"])
        return fault
    kind = getattr(errors, told["type"], None)
    if isinstance(kind, type) and issubclass(kind, errors.HeadraceError) and kind.__init__ is Exception.__init__:
        return kind(told["message"])
    return errors.HeadraceError(f"{told['type']}: {told['message']}")


def _send(pipe: IO[bytes], kind: bytes, body: bytes | memoryview) -> None:
    pipe.write(_FRAME.pack(kind, len(body)))
    pipe.write(body)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> tuple[bytes, bytes]:
    """Raises EOFError if the other side is gone."""
    header = pipe.read(_FRAME.size)
    if len(header) < _FRAME.size:
        raise EOFError
    kind, size = _FRAME.unpack(header)
    body = pipe.read(size)
    if len(body) < size:
        raise EOFError
    return kind, body


def _to_bytes(table: pa.Table) -> memoryview:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return memoryview(sink.getvalue())


def serve() -> None:
    """The child: a step, then blocks, until the parent closes the pipe. What libraries print goes to standard error."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    step: Step = pickle.loads(_receive(requests)[1])  # noqa: S301 (from the process that started this one)
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            kind, body = _answer(step, pa.ipc.open_stream(_receive(requests)[1]).read_all())
            _send(answers, kind, body)


def _answer(step: Step, records: pa.Table) -> tuple[bytes, bytes | memoryview]:
    try:
        return _ROWS, _to_bytes(step(records))
    except BaseException as error:  # noqa: BLE001 (told to the parent, which raises it)
        told = {"type": type(error).__name__, "message": str(error), "is_records_fault": is_records_fault(error)}
        return _ERROR, json.dumps(told).encode()


if __name__ == "__main__":
    serve()
