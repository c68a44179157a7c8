"""Real object stores on loopback: moto's server and alocals3, both from PyPI, behind a proxy of our own that answers badly when it is told to.

moto looks whether an object is there and writes it in two steps, so two conditional writes at once could both succeed there, which no real store
does: the proxy lets one PUT through at a time. alocals3 knows no uploads in parts.
"""

import http.client
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import pytest

from pipelines.runtime.bound import bound
from pipelines.storage.mirror import mirror_of

Kind = Literal["moto", "alocals3"]
KINDS: tuple[Kind, ...] = ("moto", "alocals3")
Fault = Literal["500", "503", "lost", "done_500", "half", "stuck", "not_sent"]
"""500 and 503: refused. lost, done_500: done, and the connection cut or a 500 answered. half: half of the answer's body. stuck: done, and no answer
before the proxy ends. not_sent: the connection is cut and nothing done."""
SECRET = "wJalrXUtnFEMI-K7MDENG-bPxRfiCYEXAMPLEKEY"
START_TIMEOUT_S = 60.0


@dataclass
class Planned:
    """Faults that wait for requests of a method on keys that match."""

    method: str
    key: re.Pattern[str]
    fault: Fault
    times: int


@dataclass
class Proxy:
    """Between the client and the store; counts requests, and answers badly what was planned."""

    upstream: tuple[str, int]
    port: int = 0
    requests: Counter[str] = field(default_factory=Counter)
    paths: list[str] = field(default_factory=list)
    random_faults: Callable[[str], Fault | None] | None = None
    _planned: list[Planned] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    puts: threading.Lock = field(default_factory=threading.Lock)
    ending: threading.Event = field(default_factory=threading.Event)

    def plan(self, method: str, key: str, fault: Fault, times: int = 1) -> None:
        """Answer the next requests of that method, on paths that contain the pattern, with the fault."""
        self._planned.append(Planned(method, re.compile(key), fault, times))

    def take(self, method: str, path: str) -> Fault | None:
        """The fault for a request."""
        with self._lock:
            self.requests[method] += 1
            self.paths.append(f"{method} {path}")
            for planned in self._planned:
                if planned.times and planned.method == method and planned.key.search(path):
                    planned.times -= 1
                    return planned.fault
            return self.random_faults(method) if self.random_faults else None

    @property
    def left(self) -> int:
        """Planned faults that no request has met."""
        return sum(planned.times for planned in self._planned)


def seeded_faults(seed: int, share: float) -> Callable[[str], Fault | None]:
    """Every kind of fault at random, for this share of the requests."""
    rng = random.Random(seed)
    kinds: dict[str, list[Fault]] = {"GET": ["500", "503", "half", "not_sent"], "PUT": ["500", "503", "lost", "done_500", "not_sent"]}
    return lambda method: rng.choice(kinds.get(method, ["500", "503", "lost"])) if rng.random() < share else None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.proxy.take(self.command, self.path)
        if fault in ("500", "503", "not_sent"):
            self._refuse(fault)
            return
        status, headers, data = self._forward(body)
        if fault == "stuck":
            self.proxy.ending.wait()
        if fault in ("lost", "stuck"):
            self._cut()
        elif fault == "done_500":
            self._refuse("500")
        else:
            self._answer(status, headers, data, half=fault == "half")

    def __getattr__(self, name: str) -> Any:
        """Every method is served the same way: http.server looks for ``do_GET`` and the like."""
        if name.startswith("do_"):
            return self._serve
        raise AttributeError(name)

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        with self.proxy.puts if self.command == "PUT" else threading.Lock():
            connection = http.client.HTTPConnection(*self.proxy.upstream, timeout=30)
            headers = {name: value for name, value in self.headers.items() if name.lower() not in ("connection", "accept-encoding")}
            connection.request(self.command, self.path, body or None, headers)
            response = connection.getresponse()
            data = response.read()
            connection.close()
            return response.status, response.getheaders(), data

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes, *, half: bool) -> None:
        self.send_response(status)
        length = next((value for name, value in headers if name.lower() == "content-length"), str(len(data)))
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        self.send_header("Content-Length", length if self.command == "HEAD" else str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if half else data)
        if half:
            self._cut()

    def _refuse(self, fault: str) -> None:
        if fault == "not_sent":
            self._cut()
            return
        body = f"<Error><Code>{'SlowDown' if fault == '503' else 'InternalError'}</Code><Message>{SECRET}</Message></Error>".encode()
        self.send_response(int(fault))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body)

    def _cut(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def proxy_before(port: int) -> Iterator[Proxy]:
    """A proxy on a free port."""
    proxy = Proxy(("127.0.0.1", port))
    handler = type("Handler", (_Handler,), {"proxy": proxy})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    proxy.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.ending.set()
        server.shutdown()
        server.server_close()


@dataclass(frozen=True)
class Store:
    """A running store with a bucket, reached through the proxy."""

    kind: Kind
    proxy: Proxy

    @property
    def environment(self) -> Mapping[str, str]:
        """What a process needs to use it."""
        path = "/s3" if self.kind == "alocals3" else ""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.proxy.port}{path}",
            "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }

    def use(self, monkeypatch: pytest.MonkeyPatch) -> "Store":
        """For this process, and those that it starts."""
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)
        return self

    def url(self, prefix: str) -> str:
        """A root."""
        return f"s3://bucket/{prefix}"


@contextmanager
def running_store(kind: Kind, folder: Path) -> Iterator[Store]:
    """Start the server as a child process, and the proxy before it; skips where it is not installed."""
    if find_spec(kind) is None:
        pytest.skip(f"{kind} is not installed (requirements-peers.lock lists it; `make test` installs it)")
    port = _free_port()
    command = bound([sys.executable, "-P", "-m", *_arguments(kind, port, folder)])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    with (folder / f"{kind}.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=environment) as server:
        try:
            _make_bucket(f"http://127.0.0.1:{port}{'/s3' if kind == 'alocals3' else ''}/bucket", server)
            with proxy_before(port) as proxy:
                yield Store(kind, proxy)
        finally:
            server.kill()


def _arguments(kind: Kind, port: int, folder: Path) -> list[str]:
    if kind == "moto":
        return ["moto.server", "-H", "127.0.0.1", "-p", str(port)]
    return ["alocals3.server", "--port", str(port), "--storage-root", str(folder / "data"), "--database-url", f"sqlite:///{folder}/alocals3.db"]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


def _make_bucket(url: str, server: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="PUT"), timeout=10).close()
        except OSError:
            assert server.poll() is None, f"the store ended with {server.returncode}"
            assert time.monotonic() < deadline, "the store does not answer"
            time.sleep(0.05)
        else:
            return


def put_root(folder: Path, root: Path) -> None:
    """Copy a root in a folder to one on an object store, as a person would."""
    mirror = mirror_of(root)
    assert mirror is not None
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            mirror.objects.put(path.relative_to(folder).as_posix(), path)
