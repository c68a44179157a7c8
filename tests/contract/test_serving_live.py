"""``headrace serve`` as a user meets it: a real process, Ray Serve, the openai client, a broker. One instance serves all tests, in order.

The order matters: the rollout moves from A/B over shadow to promotion, and a replica is killed on the way.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx
import openai
import pytest

from pipelines.kafka.events import read_events
from pipelines.runtime.ports import free_ports
from ray_apps.serving.naming import application_names
from schemas.events import InferenceCompleted
from schemas.settings import KafkaSettings, Settings
from tests.model_factory import make_model
from tests.serving_harness import publish_state

START_TIMEOUT_S = 180
TIMEOUT_S = 120
pytestmark = pytest.mark.timeout(600)


@dataclass
class Live:
    """A running service."""

    root: Path
    url: str
    bootstrap_servers: str
    client: openai.OpenAI
    process: "subprocess.Popen[bytes]"
    first_answers: list[httpx.Response]
    """What GET /health said from the first moment until the service was ready."""

    def replicas(self, application: str) -> list[int]:
        """Process ids of the replicas of ``gateway`` or ``model-N``: Ray puts their names into the process title."""
        application = f"{application_names(self.root).prefix}-{application}"
        return [pid for pid, title in processes() if title.startswith(f"ray::ServeReplica:{application}:") and is_below(pid, os.getpid())]

    def metric(self, name: str) -> float:
        lines = [line for line in httpx.get(f"{self.url}/metrics", timeout=TIMEOUT_S).text.splitlines() if line.startswith(name)]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def processes() -> list[tuple[int, str]]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                found.append((int(folder.name), (folder / "cmdline").read_bytes().split(b"\0")[0].decode()))
            except OSError:
                continue  # it ended while we looked
    return found


def is_below(pid: int, ancestor: int) -> bool:
    while pid > 1:
        if pid == ancestor:
            return True
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            return False
    return False


def wait_for(condition: Callable[[], bool], timeout_s: float = TIMEOUT_S) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "the condition did not come true in time"
        time.sleep(0.05)


@contextmanager
def headrace(log: IO[bytes], *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A headrace command as a child; ended with SIGTERM, which it must obey with exit code 0."""
    process = subprocess.Popen([sys.executable, "-m", "ops.cli.main", *arguments], stdout=subprocess.PIPE, stderr=log)
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT_S) == 0
    finally:
        process.kill()
        process.wait()
        assert process.stdout
        process.stdout.close()


def first_document(process: "subprocess.Popen[bytes]") -> dict[str, str]:
    """The JSON document that the command prints when it is ready."""
    assert process.stdout
    text = b""
    while True:
        line = process.stdout.readline()
        assert line, f"the command ended with {process.wait()} before it was ready"
        text += line
        try:
            document: dict[str, str] = json.loads(text)
        except json.JSONDecodeError:
            continue
        return document


def openai_error(response: httpx.Response) -> str:
    """The code of an answer that must be an OpenAI error, and must say when to come back if it is a 503."""
    assert ("retry-after" in response.headers) == (response.status_code == 503), response.headers
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert response.headers["x-request-id"].startswith("req_")
    code: str = error["code"]
    return code


@contextmanager
def watched(url: str) -> Iterator[list[httpx.Response]]:
    """Ask for the health, over and over, until the block ends; refused connections are left out."""
    seen: list[httpx.Response] = []
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            try:
                seen.append(httpx.get(f"{url}/health", timeout=TIMEOUT_S))
            except httpx.HTTPError:
                time.sleep(0.02)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    root = tmp_path_factory.mktemp("live")
    make_model(root, version=1, seed=1)
    make_model(root, version=2, seed=2)
    publish_state(root, champion=1, challenger=2, canary_fraction=0.5)
    common = ["--json", "--root", str(root)]
    (port,) = free_ports(1)
    small = ["ray.dashboard_port=0", f"ray.object_store_bytes={80 * 2**20}", "serving.max_completion_tokens=200"]
    flags = [word for assignment in (f"serving.port={port}", *small) for word in ("--set", assignment)]
    with (
        (root / "log").open("wb") as log,
        headrace(log, "broker", "--listen", "127.0.0.1:0", *common) as broker,
    ):
        bootstrap_servers = first_document(broker)["bootstrap_servers"]
        with headrace(log, "serve", *common, "--bootstrap-servers", bootstrap_servers, *flags) as serve:
            with watched(f"http://127.0.0.1:{port}") as first_answers:
                url = first_document(serve)["url"]
            wait_for(lambda: len(httpx.get(f"{url}/v1/models", timeout=TIMEOUT_S).json().get("data", [])) == 3, START_TIMEOUT_S)
            with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
                yield Live(root, url, bootstrap_servers, client, serve, first_answers)


def test_while_it_starts_every_answer_is_an_openai_error_that_says_when_to_come_back(live: Live) -> None:
    early = [response for response in live.first_answers if response.status_code != 200]
    assert {openai_error(response) for response in early} >= {"gateway_unavailable"}
    assert {response.status_code for response in early} == {503}


def raw(url: str, data: bytes) -> bytes:
    """What comes back for these bytes, until the server closes the connection."""
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as connection:
        connection.sendall(data)
        received = b""
        while part := connection.recv(2**16):
            received += part
    return received


def test_no_header_steers_or_breaks_serves_proxy(live: Live) -> None:
    names = ("X-Request-Id", "serve_multiplexed_model_id", "X-Session-Id", "X-Request-Timeout-Seconds", "X-Request-Disconnect-Disabled")
    for name in names:
        for value in (b"\xff\xfe", b"0.000001"):
            body = {"model": "headrace-v1", "prompt": "x", "max_tokens": 1}
            response = httpx.post(f"{live.url}/v1/completions", json=body, headers=[(name.encode(), value)], timeout=TIMEOUT_S)
            assert response.status_code == 200, (name, value, response.text)


def test_serves_own_answers_are_openai_errors_too(live: Live) -> None:
    for path in ("/-/routes", "/-/healthz"):
        assert openai_error(httpx.delete(f"{live.url}{path}", timeout=TIMEOUT_S)) == "method_not_allowed"
    head, _, body = raw(live.url, b"GARBAGE\r\n\r\n").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400") and json.loads(body)["error"]["code"] == "invalid_http"


def test_a_body_that_is_too_large_ends_its_connection(live: Live) -> None:
    request = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000\r\nExpect: 100-continue\r\n\r\n"
    head, _, body = raw(live.url, request).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 413") and b"connection: close" in head.lower()
    assert json.loads(body)["error"]["code"] == "request_too_large"


def test_the_openai_client_lists_models(live: Live) -> None:
    assert [model.id for model in live.client.models.list()] == ["headrace", "headrace-v1", "headrace-v2"]
    assert live.client.models.retrieve("headrace-v2").owned_by == "headrace"


def test_the_openai_client_completes_and_streams_the_same_text(live: Live) -> None:
    def ask(model: str) -> str:
        return live.client.completions.create(model=model, prompt="水渠", max_tokens=30, seed=4, temperature=1).choices[0].text

    whole = ask("headrace-v1")
    parts = live.client.completions.create(model="headrace-v1", prompt="水渠", max_tokens=30, seed=4, temperature=1, stream=True)
    assert "".join(part.choices[0].text for part in parts) == whole == ask("headrace-v1")


def test_the_openai_client_chats_and_streams_the_same_text(live: Live) -> None:
    messages: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "你好"}]
    answer = live.client.chat.completions.create(model="headrace-v1", messages=messages, max_tokens=20, seed=9)
    stream = live.client.chat.completions.create(
        model="headrace-v1", messages=messages, max_tokens=20, seed=9, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == answer.choices[0].message.content
    assert chunks[-1].usage == answer.usage


def test_the_openai_client_raises_its_own_errors(live: Live) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        live.client.completions.create(model="headrace", prompt="x", logprobs=3)
    assert (bad.value.param, bad.value.code) == ("logprobs", "unsupported_parameter")
    assert bad.value.request_id and "," not in bad.value.request_id
    with pytest.raises(openai.BadRequestError) as long:
        live.client.completions.create(model="headrace", prompt="x " * 3000)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError) as missing:
        live.client.completions.create(model="gpt-4", prompt="x")
    assert missing.value.code == "model_not_found"


def test_many_requests_at_once_are_all_answered(live: Live) -> None:
    async def main() -> list[int]:
        async with openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
            work = [client.completions.create(model="headrace", prompt=f"{n}", max_tokens=20 + n, extra_body={"top_k": 20}) for n in range(24)]
            return [answer.usage.completion_tokens for answer in await asyncio.gather(*work) if answer.usage]

    assert len(asyncio.run(main())) == 24


def test_traffic_is_split_and_a_users_variant_stays(live: Live) -> None:
    def variant(user: str) -> str:
        raw = live.client.completions.with_raw_response.create(model="headrace", prompt="x", max_tokens=1, user=user)
        return raw.headers["x-headrace-variant"]

    first = [variant(f"user-{n}") for n in range(20)]
    assert set(first) == {"champion", "challenger"}
    assert [variant(f"user-{n}") for n in range(20)] == first


def test_a_client_that_disconnects_cancels_the_generation(live: Live) -> None:
    cancelled, running = 'headrace_answers_total{outcome="cancelled"', "headrace_answers_running"
    body = {"model": "headrace-v1", "prompt": ["x"] * 100, "max_tokens": 200}
    before = live.metric(cancelled)
    with httpx.stream("POST", f"{live.url}/v1/completions", json=body | {"stream": True}, timeout=TIMEOUT_S) as response:
        assert response.status_code == 200
        next(response.iter_bytes())
    wait_for(lambda: live.metric(cancelled) == before + 1)
    asyncio.run(leave_when(lambda: live.metric(running) > 0, f"{live.url}/v1/completions", body))
    wait_for(lambda: live.metric(cancelled) == before + 2)


async def leave_when(condition: Callable[[], bool], url: str, body: dict[str, object]) -> None:
    """Ask for an answer in one piece, and hang up as soon as ``condition()`` holds."""
    async with httpx.AsyncClient(timeout=TIMEOUT_S) as client:
        task = asyncio.create_task(client.post(url, json=body))
        await asyncio.to_thread(wait_for, condition)
        task.cancel()
        await asyncio.wait([task])


def test_shadow_answers_reach_kafka_and_not_the_client(live: Live) -> None:
    state = publish_state(live.root, champion=1, challenger=2, shadow_fraction=1.0)
    wait_for(lambda: httpx.get(f"{live.url}/health", timeout=TIMEOUT_S).json()["rollout_number"] == state.number)
    raws = [live.client.completions.with_raw_response.create(model="headrace", prompt="水渠", max_tokens=5) for _ in range(5)]
    assert {raw.headers["x-headrace-model-version"] for raw in raws} == {"1"}
    wanted = {(raw.headers["x-request-id"], shadow) for raw in raws for shadow in (False, True)}
    told: dict[tuple[str, bool], InferenceCompleted] = {}
    settings = Settings(root=str(live.root), kafka=KafkaSettings(bootstrap_servers=live.bootstrap_servers))
    with read_events(settings, "headrace.inference") as reader:
        deadline_s = time.monotonic() + TIMEOUT_S
        while not wanted <= set(told) and time.monotonic() < deadline_s:
            data = [event.data for event in reader.poll(0.5)]
            told |= {(item.request_id, item.shadow): item for item in data if isinstance(item, InferenceCompleted)}
    assert wanted <= set(told)
    assert {told[key].model_version for key in wanted if key[1]} == {2}
    assert {told[key].rollout_number for key in wanted} == {state.number}


def test_replicas_listen_on_rays_own_port_only(live: Live) -> None:
    for application in ("gateway", "model-1", "model-2"):
        (pid,) = live.replicas(application)
        inodes = {link.readlink().name for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}
        listening = set()
        for table in ("tcp", "tcp6"):
            rows = [line.split() for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]]
            listening |= {row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes}
        assert len(listening) == 1, "Ray's authenticated worker port, and not Serve's unauthenticated one"


def test_a_killed_champion_is_replaced_and_requests_go_on(live: Live) -> None:
    (pid,) = live.replicas("model-1")
    body = {"model": "headrace", "prompt": ["x"] * 16, "max_tokens": 200, "stream": True}
    with httpx.stream("POST", f"{live.url}/v1/completions", json=body, timeout=TIMEOUT_S) as response:
        events = response.iter_text()
        next(events)
        os.kill(pid, signal.SIGKILL)
        rest = "".join(events)
    assert '"error"' in rest and "[DONE]" not in rest
    health = httpx.get(f"{live.url}/health", timeout=TIMEOUT_S)
    assert (health.status_code, openai_error(health)) == (503, "unavailable"), "at once, not when Serve finds out"
    deadline_s = time.monotonic() + TIMEOUT_S
    statuses: list[int] = []
    while not statuses or statuses[-1] != 200:
        assert time.monotonic() < deadline_s
        answer = httpx.post(f"{live.url}/v1/completions", json={"model": "headrace", "prompt": "x", "max_tokens": 2}, timeout=TIMEOUT_S)
        assert answer.status_code == 200 or answer.json()["error"]["code"] == "engine_unavailable"
        statuses.append(answer.status_code)
        time.sleep(0.05)
    assert live.replicas("model-1") != [pid]
    wait_for(lambda: httpx.get(f"{live.url}/health", timeout=TIMEOUT_S).status_code == 200)


def test_a_champion_that_is_stopped_is_not_healthy_until_it_goes_on(live: Live) -> None:
    (pid,) = live.replicas("model-1")
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_for(lambda: httpx.get(f"{live.url}/health", timeout=TIMEOUT_S).status_code == 503)
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_for(lambda: httpx.get(f"{live.url}/health", timeout=TIMEOUT_S).status_code == 200)


def test_a_gateway_that_is_killed_ends_its_streams_with_an_error_event(live: Live) -> None:
    (pid,) = live.replicas("gateway")
    body = {"model": "headrace", "prompt": ["x"] * 16, "max_tokens": 200, "stream": True}
    with httpx.stream("POST", f"{live.url}/v1/completions", json=body, timeout=TIMEOUT_S) as response:
        events = response.iter_text()
        next(events)
        os.kill(pid, signal.SIGKILL)
        *_, last, end = "".join(events).split("\n\n")
    assert end == "" and json.loads(last.removeprefix("data: "))["error"]["code"] == "gateway_unavailable"
    while (health := httpx.get(f"{live.url}/health", timeout=TIMEOUT_S)).status_code != 200:
        assert (health.status_code, bool(openai_error(health))) == (503, True)


def test_a_champion_that_was_not_even_loaded_takes_over_without_a_lost_request(live: Live) -> None:
    make_model(live.root, version=3, seed=3)
    publish_state(live.root, champion=3)
    seen: list[str] = []
    while seen[-1:] != ["3"] or len(httpx.get(f"{live.url}/v1/models", timeout=TIMEOUT_S).json()["data"]) > 2:
        raw = live.client.completions.with_raw_response.create(model="headrace", prompt="x", max_tokens=2)
        seen.append(raw.headers["x-headrace-model-version"])
    assert seen == sorted(seen), "once the new champion answers, the old one does not"
    assert set(seen) == {"1", "3"}
    assert [model.id for model in live.client.models.list()] == ["headrace", "headrace-v3"]
    wait_for(lambda: not live.replicas("model-1") and not live.replicas("model-2"))


def test_a_service_that_is_stopped_finishes_what_it_began(live: Live) -> None:
    body = {"model": "headrace", "prompt": ["x"] * 16, "max_tokens": 200, "stream": True}
    with httpx.stream("POST", f"{live.url}/v1/completions", json=body, timeout=TIMEOUT_S) as response:
        events = response.iter_text()
        next(events)
        with watched(live.url) as seen:
            live.process.send_signal(signal.SIGTERM)
            wait_for(lambda: any(answer.status_code != 200 for answer in seen))
            assert "".join(events).endswith("data: [DONE]\n\n")
    assert {openai_error(answer) for answer in seen if answer.status_code != 200} == {"gateway_unavailable"}
    assert live.process.wait(TIMEOUT_S) == 0
