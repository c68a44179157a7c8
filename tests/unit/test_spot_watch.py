"""When a node is told to go: AWS's notice, SIGTERM, and what is no notice."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ops.spot import watch
from ops.spot.watch import aws_notice, wait_for_notice
from pipelines.runtime.ports import free_ports


@contextmanager
def metadata(answers: list[tuple[int, str]]) -> Iterator[str]:
    """An instance's metadata service, version 2: it refuses whoever brings no token. It gives these answers, and the last one for good."""

    class Service(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            assert self.path == "/latest/api/token" and self.headers["x-aws-ec2-metadata-token-ttl-seconds"]
            self.answer(200, "a-token")

        def do_GET(self) -> None:
            if self.headers["x-aws-ec2-metadata-token"] != "a-token":
                self.answer(401, "")
            elif self.path == "/latest/meta-data/spot/instance-action":
                self.answer(*(answers.pop(0) if len(answers) > 1 else answers[0]))

        def answer(self, status: int, text: str) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def notice(seconds: float) -> tuple[int, str]:
    taken_at = datetime.now(UTC) + timedelta(seconds=seconds)
    return 200, json.dumps({"action": "terminate", "time": taken_at.strftime("%Y-%m-%dT%H:%M:%SZ")})


def test_the_notice_of_aws_says_how_much_time_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "POLL_S", 0.01)
    with metadata([(404, ""), (404, ""), notice(120)]) as url:
        assert 60 < wait_for_notice(url, threading.Event(), grace_s=30.0) <= 120


@pytest.mark.parametrize(
    "answer", [(404, ""), (500, ""), (200, "no JSON"), (200, "{}"), (200, '{"time": 3}'), (200, '{"time": "soon"}'), (200, "[]")]
)
def test_what_is_not_the_notice_of_aws_is_no_notice(answer: tuple[int, str]) -> None:
    with metadata([answer]) as url:
        assert aws_notice(url) is None


def test_a_machine_without_a_metadata_service_is_told_by_its_own_signal() -> None:
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    assert aws_notice(url) is None
    stopping = threading.Event()
    stopping.set()
    began_s = time.monotonic()
    assert wait_for_notice(url, stopping, grace_s=30.0) == 30.0 and time.monotonic() - began_s < watch.POLL_S
