"""A cluster whose nodes are taken away by SIGTERM, and whose engines are scaled: training, serving and ingest go on. On nodes of one machine."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from pipelines.runtime.crash import VARIABLE
from ray_apps.serving.naming import application_names
from ray_apps.training.run import plan_run
from tests.broker_process import BrokerProcess
from tests.ingest_harness import Ingest, sample_records, state
from tests.model_factory import make_model
from tests.processes import command_line, parents, read_proc
from tests.ray_nodes import Nodes, run_cluster
from tests.serving_harness import publish_state
from tests.training_runs import curve, run_together, tiny_dataset, tiny_settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
REPOSITORY = Path(__file__).parents[2]
WAIT_S = 400.0


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = WAIT_S) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"waited {timeout_s:g} s for: {what}"
        time.sleep(0.05)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    with run_cluster(monkeypatch) as nodes:
        yield nodes


@contextmanager
def headrace(log: Path, *arguments: str, **environment: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A command as a child; killed at the end of the block if it still runs."""
    command = [sys.executable, "-m", "ops.cli.main", *arguments]
    with log.open("wb") as output, subprocess.Popen(command, cwd=REPOSITORY, env=os.environ | environment, stdout=output, stderr=output) as process:
        try:
            yield process
        finally:
            process.kill()


def settings(values: Mapping[str, object]) -> list[str]:
    return [f"--set={name}={value}" for name, value in values.items()]


STEPS, HEARD_AT = 400, 220
TRAINING = {"max_steps": STEPS, "checkpoint_every_steps": 1_000, "num_workers": 2}


def workers_of_training(cluster: Nodes) -> list[int]:
    return [pid for pid in parents() if "RayTrainWorker" in command_line(pid) and any(node.has(pid) for node in cluster.nodes)]


def is_stopped(pid: int) -> bool:
    return read_proc(pid, "stat").rpartition(b")")[2].split()[:1] == [b"T"]


def test_a_node_of_training_that_is_taken_away_costs_no_step_and_counts_as_no_failure(cluster: Nodes, tmp_path: Path) -> None:
    root = tmp_path / "taken"
    for each in (root, tmp_path / "undisturbed"):
        tiny_dataset(each)
    nodes = [cluster.add({"training_node": 1}, grace_s=20) for _ in range(3)]
    run_together([tmp_path / "undisturbed"], [None], num_processes=2, max_steps=STEPS, checkpoint_every_steps=1_000)
    undisturbed = tmp_path / "undisturbed", plan_run(tiny_settings(tmp_path / "undisturbed", **TRAINING))
    run = plan_run(tiny_settings(root, **TRAINING))
    told = tiny_settings(root, **TRAINING).training.model_dump(exclude_unset=True)
    values = {f"training.{name}": value for name, value in told.items()} | {"training.max_failures": 0}
    values |= {"ray.address": cluster.address, "ray.training_nodes": "training_node", "ray.dashboard_port": 0}
    arguments = ("train", "--json", "--root", str(root), *settings(values))
    log = tmp_path / "train.log"
    with headrace(log, *arguments, **{VARIABLE: f"stop@step_taken:{HEARD_AT}"}) as command:
        # Step 1: in the middle of the run, one of its nodes is told to go.
        wait_for(lambda: command.poll() is not None or sum(map(is_stopped, workers_of_training(cluster))) == 2, "both workers to stop")
        assert command.poll() is None, log.read_text()
        first = workers_of_training(cluster)
        taken = next(node for node in nodes if any(node.has(pid) for pid in first))
        taken.take_away()
        wait_for(lambda: cluster.logs("preemption detected"), "Ray Train to hear of it")
        # Step 2: the first worker saves at the next step; the worker on the node gets no further.
        for pid in first:
            os.kill(pid, signal.SIGCONT)
        wait_for(lambda: bool(run.checkpoints(root).steps()), "a checkpoint")
        (saved,) = run.checkpoints(root).steps()
        for pid in first:
            if taken.has(pid):
                os.kill(pid, signal.SIGSTOP)
        try:
            # Step 3: Ray starts the workers on the nodes that are left, and they finish the run.
            wait_for(lambda: command.poll() is not None, "the command to end")
        finally:
            for pid in first:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    assert command.returncode == 0, log.read_text()
    assert HEARD_AT <= saved < STEPS
    assert curve(root, run) == curve(*undisturbed), f"saved at step {saved}"
    taken.wait_until_gone(60)


class Users:
    """Clients that ask one question after the other until the block ends; what went wrong is kept."""

    def __init__(self, url: str, number: int, max_tokens: int) -> None:
        self._body = {"model": "headrace", "prompt": "water", "max_tokens": max_tokens, "stream": True}
        self._url = url
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(number)]
        self.answers: Counter[str] = Counter()

    def _ask(self) -> None:
        with httpx.Client(timeout=120, trust_env=False) as client:
            while not self._over.is_set():
                try:
                    answer = client.post(f"{self._url}/v1/completions", json=self._body)
                    whole = answer.status_code == 200 and answer.text.rstrip().endswith("data: [DONE]")
                    self.answers["whole" if whole else f"{answer.status_code} {answer.text[-300:]}"] += 1
                except httpx.HTTPError as error:
                    self.answers[repr(error)] += 1

    def __enter__(self) -> "Users":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def answered(url: str) -> float:
    """Answers of engines to clients, as the gateways count them together."""
    lines = httpx.get(f"{url}/metrics", timeout=60, trust_env=False).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("headrace_answers_total") and 'outcome="ok"' in line)


def test_load_adds_engines_idleness_removes_them_a_node_that_goes_moves_its_engine_and_no_answer_is_lost(cluster: Nodes, tmp_path: Path) -> None:
    root = tmp_path / "served"
    make_model(root, version=1)
    publish_state(root, champion=1)
    for _ in range(2):
        cluster.add({"engine_node": 1}, num_cpus=2, grace_s=120)
    values: dict[str, object] = {
        "ray.address": cluster.address,
        "ray.engine_nodes": "engine_node",
        "serving.port": 0,
        "serving.max_concurrent_sequences": 2,
        "serving.max_engine_replicas": 3,
        "serving.min_gateway_replicas": 2,
        "serving.max_gateway_replicas": 2,
        "serving.scale_up_delay_s": 0.5,
        "serving.scale_down_delay_s": 2,
        "serving.drain_timeout_s": 15,
        "loop.poll_interval_s": 0.2,
    }
    log = tmp_path / "serve.log"

    def replicas(part: str) -> list[int]:
        wanted = f"ray::ServeReplica:{application_names(root).prefix}-{part}:"
        return [pid for pid in parents() if command_line(pid).startswith(wanted)]

    with headrace(log, "serve", "--json", "--root", str(root), *settings(values)) as service:
        wait_for(lambda: service.poll() is not None or '"url"' in log.read_text(), "the service")
        text = log.read_text()
        assert '"url"' in text, text
        url = json.JSONDecoder().raw_decode(text, text.index("{\n"))[0]["url"]
        wait_for(lambda: httpx.get(f"{url}/health", timeout=60, trust_env=False).status_code == 200, "the champion")
        # Step 1: ten clients for two places.
        with Users(url, 10, max_tokens=100) as many:
            wait_for(lambda: len(replicas("model-1")) >= 2, "a second engine")
            assert len(replicas("gateway")) >= 2
        # Step 2: one client is left.
        with Users(url, 1, max_tokens=20) as one:
            wait_for(lambda: len(replicas("model-1")) == 1, "one engine to be left")
            # Step 3: the node of the engine that is left is told to go.
            (engine,) = replicas("model-1")
            next(node for node in cluster.nodes if node.has(engine)).take_away()
            wait_for(lambda: replicas("model-1") not in ([], [engine]) and engine not in replicas("model-1"), "the engine to have moved")
            before = sum(one.answers.values())
            wait_for(lambda: sum(one.answers.values()) > before + 3, "answers of the engine that has moved")
        assert set(many.answers) | set(one.answers) == {"whole"}, (many.answers, one.answers)
        asked = sum(sum(users.answers.values()) for users in (many, one))
        wait_for(lambda: answered(url) >= asked, "the numbers of both gateways")
        assert {answered(url) for _ in range(6)} == {asked}, "whichever gateway is asked"
        service.terminate()
        assert service.wait(90) == 0


def test_documents_that_a_node_was_reading_when_it_was_taken_away_are_read_again(
    cluster: Nodes, broker: BrokerProcess, topic_prefix: str, tmp_path: Path
) -> None:
    on_cluster = {"ingest.runner": "ray", "ray.address": cluster.address, "ray.ingest_nodes": "ingest_node", "ingest.slice_records": 5}
    ingest = Ingest(tmp_path / "data", broker.bootstrap_servers, topic_prefix, on_cluster)
    ingest.publish(sample_records(400))
    log = tmp_path / "ingest.log"
    with headrace(log, "ingest", "--once", *settings(ingest.values)) as command:
        # Step 1: it has joined the head; the nodes have its address, because it would refuse a broker on loopback on several machines.
        wait_for(lambda: command.poll() is not None or "no node of the cluster has the resource" in log.read_text(), "the command to join")
        nodes = [cluster.add({"ingest_node": 1}, grace_s=3, host="127.0.0.1") for _ in range(2)]

        def reads(pid: int) -> bool:
            title = command_line(pid)
            return title.startswith("ray::") and "IDLE" not in title and any(node.has(pid) for node in nodes)

        # Step 2: a node that has a task is told to go.
        wait_for(lambda: command.poll() is not None or any(map(reads, parents())), "a task")
        reader = next((pid for pid in parents() if reads(pid)), None)
        taken = next((node for node in nodes if reader is not None and node.has(reader)), None)
        assert taken is not None, log.read_text()
        taken.take_away()
        wait_for(lambda: command.poll() is not None, "the command to end")
    assert command.returncode == 0, log.read_text()
    taken.wait_until_gone(60)
    reference = Ingest(tmp_path / "local", broker.bootstrap_servers, topic_prefix)
    reference.once()
    assert state(ingest.root) == state(reference.root)
