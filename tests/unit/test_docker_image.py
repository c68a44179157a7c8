"""The image's recipe agrees with the lock, the Makefile and the command. It is linted here, and built nowhere in the tests: that takes a registry."""

import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ops.cli.main import GROUPS
from ops.docker import health
from pipelines.runtime.cluster import RAY_ENVIRONMENT
from schemas.settings import ServingSettings
from tests.deploy_files import DOCKER, REPOSITORY, documents, settings_of
from tests.dockerfile import defaults, environment, instructions, parents

DOCKERFILE = DOCKER / "Dockerfile"


def values(stage: str, name: str) -> list[str]:
    return [instruction.value for instruction in instructions(DOCKERFILE) if (instruction.stage, instruction.name) == (stage, name)]


def test_the_linter_of_dockerfiles_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    found = str(hadolint) if hadolint.exists() else shutil.which("hadolint")
    if found is None:
        pytest.skip("hadolint is not installed (requirements-peers.lock)")
    done = subprocess.run([found, "--no-color", str(DOCKERFILE)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


def test_the_image_has_the_python_of_cluster_files_and_project() -> None:
    series = re.search(r"py(\d)(\d+)", documents(REPOSITORY / "cluster.yaml")[0]["docker"]["image"])
    assert series and defaults(DOCKERFILE)["PYTHON_IMAGE"].startswith(f"python:{series[1]}.{series[2]}.")
    assert [f"python{series[1]}.{series[2]}" in value for value in values("built", "WORKDIR")] == [True]


def test_torch_is_installed_first_and_alone_then_the_lock_then_headrace_and_its_kernels() -> None:
    torch, lock, headrace = values("built", "RUN")
    assert torch.count("pip install") == torch.count('"$torch" ;;') == 2 and "grep '^torch==' /build/requirements.lock" in torch
    assert re.search(r"cpu\) pip install [^;]*--index-url", torch) and not re.search(r"gpu\) pip install [^;]*--index-url", torch)
    assert lock.endswith("-r /build/requirements.lock") and "--no-deps" in headrace
    assert headrace.index("pip install") < headrace.index("touch --date") < headrace.index("compileall") < headrace.index("pipelines.kernels.setup")
    assert not any("requirements-" in instruction.value for instruction in instructions(DOCKERFILE))


def test_the_variables_of_the_image_are_rays_and_the_root() -> None:
    assert parents(DOCKERFILE)["headrace"] == parents(DOCKERFILE)["built"] == "base"
    variables = environment(DOCKERFILE, "headrace", **defaults(DOCKERFILE))
    assert RAY_ENVIRONMENT.items() <= variables.items()
    assert settings_of({name: value for name, value in variables.items() if name.startswith("HEADRACE_")}).root == "/data"


def test_the_kernels_of_the_build_are_those_that_the_image_looks_for() -> None:
    variables = environment(DOCKERFILE, "headrace", **defaults(DOCKERFILE))
    assert variables["NUMBA_CPU_NAME"] and variables["NUMBA_CPU_FEATURES"] == ""
    copies = [value.split() for value in values("headrace", "COPY")]
    assert ["--from=built", "--chown=1000:1000", *[variables["NUMBA_CACHE_DIR"]] * 2] in copies


def test_the_image_runs_the_command_as_a_user_without_rights() -> None:
    names = [instruction.name for instruction in instructions(DOCKERFILE)]
    assert values("headrace", "USER") == ["1000:1000"] and names.count("USER") == 1
    assert json.loads(values("headrace", "ENTRYPOINT")[0])[-1] == "headrace"
    (command,) = json.loads(values("headrace", "CMD")[0])
    assert command in GROUPS["start"]
    assert str(ServingSettings().port) in values("headrace", "EXPOSE")[0].split()


def test_the_context_has_all_that_setuptools_reads_and_nothing_of_a_working_copy() -> None:
    lines = (DOCKER / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    sent = {rule[1:] for rule in rules if rule.startswith("!")}
    assert rules[0] == "*" and sent == {"LICENSE", "README.md", "pyproject.toml", "requirements.lock", "schemas", "pipelines", "ray_apps", "ops"}
    assert all((REPOSITORY / name).exists() for name in sent)


class _Answers(BaseHTTPRequestHandler):
    status, body = 200, b"{}"

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/health" else 404)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    handler = type("Handler", (_Answers,), {"status": status, "body": body})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/health"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "body", "healthy"),
    [
        (200, b'{"champion": 3}', True),
        (503, b'{"champion": null}', True),
        (503, b'{"champion": 3}', False),
        (503, b"not JSON", False),
        (500, b"[]", False),
    ],
)
def test_a_container_is_healthy_while_its_api_answers_or_waits_for_the_first_model(status: int, body: bytes, healthy: bool) -> None:
    with answering(status, body) as url:
        assert health.answers(url) is healthy
    assert not health.answers(url)


def test_the_health_check_asks_where_the_api_is() -> None:
    assert int(health.PORT) == ServingSettings().port
    (check,) = values("headrace", "HEALTHCHECK")
    assert json.loads(check.partition("CMD ")[2]) == ["python", "-m", health.__name__]
