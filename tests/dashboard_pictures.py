"""Takes the pictures of docs/dashboard.md: ``python -m tests.dashboard_pictures docs/img``. Needs Chromium; takes some five minutes.

One loop runs as a submitted job on this machine. Each picture is taken while the page shows what the document says about it.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ray_apps.serving.naming import application_names
from schemas.settings import Settings
from tests.broker_process import start_broker
from tests.chromium import Chromium, find_chromium
from tests.cluster.loop import LONG, documents
from tests.commands import run_command
from tests.submitted_loop import SubmittedLoop

WIDTH = 1_500
WAIT_S = 400.0
"""Longest time for a phase of the loop."""
DRAWN_S = 30.0
CLICK = """
(found => found && (found.dispatchEvent(new MouseEvent("click", {bubbles: true})), true))
([...document.querySelectorAll("h3, h4, button, a, svg")].find(element => element.textContent.trim() == %s))
"""
RENAME = """
for (const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT); walker.nextNode();)
  walker.currentNode.textContent = walker.currentNode.textContent.replaceAll(%s, %s)
"""


class Camera:
    """A browser that is logged in."""

    def __init__(self, browser: Chromium, loop: SubmittedLoop, folder: Path) -> None:
        self._browser = browser
        self._loop = loop
        self._folder = folder
        cookie = {"name": "ray-authentication-token", "value": loop.token, "domain": urlsplit(loop.url).hostname, "path": "/"}
        browser.call("Network.setCookie", **cookie)

    def take(self, name: str, page: str, *words: str, clicks: tuple[str, ...] = (), height: int = 2_000) -> None:
        """Open a page, click on what has these texts, wait until it shows all the words, and keep a picture of its upper part.

        The folder of this machine's Python is shown as the one of docs/cluster.md.
        """
        self._browser.open("about:blank", width=WIDTH)
        self._browser.open(f"{self._loop.url}/#{page}", width=WIDTH)
        for text in clicks:
            self._until(CLICK % json.dumps(text))
        for word in words:
            self._until(f"document.body.innerText.includes({json.dumps(word)})")
        self._browser.evaluate(RENAME % (json.dumps(sys.prefix), json.dumps("/opt/headrace/venv")))
        self._browser.screenshot(self._folder / f"{name}.png", height=height)

    def _until(self, expression: str) -> None:
        deadline = time.monotonic() + DRAWN_S
        while not self._browser.evaluate(expression):
            assert time.monotonic() < deadline, f"{expression}\n{self._browser.evaluate('document.body.innerText')}"
            time.sleep(0.1)


def take_pictures(folder: Path) -> None:
    """All of them."""
    program = find_chromium()
    if program is None:
        sys.exit("no Chromium is installed")
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as work,
        start_broker(Settings(), root=Path(work, "broker")) as broker,
        SubmittedLoop(Path(work, "wiki"), broker.bootstrap_servers) as loop,
        Chromium(program) as browser,
    ):
        camera = Camera(browser, loop, folder)
        _produce(Path(work), broker.bootstrap_servers, range(1, 9))
        _ingest(camera, loop)
        _training(camera, loop)
        _serving(camera, loop)


def _produce(folder: Path, servers: str, rounds: range) -> None:
    file = folder / f"round-{rounds[0]}.jsonl"
    file.write_text("".join(documents(number, LONG) for number in rounds))
    done = run_command(["produce", str(file), "--bootstrap-servers", servers, "--root", str(folder / "operator")], folder)
    assert done.returncode == 0, done.stderr


def _ingest(camera: Camera, loop: SubmittedLoop) -> None:
    """While a version is being made."""

    def running() -> dict[str, Any] | None:
        job = loop.jobs()["ingest wiki"]
        datasets = loop.ask(f"/api/data/datasets/{job['job_id']}")["datasets"]
        return job if datasets and datasets[0]["state"] == "RUNNING" and datasets[0]["progress"] else None

    job = loop.wait(running, "a version that is being made", WAIT_S)
    camera.take("dashboard-ingest", f"/jobs/{job['job_id']}", "ReadKafka", clicks=("Ray Data Overview",))


def _training(camera: Camera, loop: SubmittedLoop) -> None:
    """While a model is being trained."""

    def stepping() -> str | None:
        workers = [actor["actor_id"] for actor in loop.listed("actors") if actor["class_name"] == "RayTrainWorker"]
        return next((actor for actor in workers if "step 30 of" in loop.log(actor_id=actor)), None)

    actor = loop.wait(stepping, "a training run", WAIT_S)
    camera.take("dashboard-jobs", "/jobs", "train wiki")
    camera.take("dashboard-train-log", f"/actors/{actor}", "step 30 of")


def _serving(camera: Camera, loop: SubmittedLoop) -> None:
    """With an engine."""
    engine = application_names(loop.root).model(1)

    def is_running() -> bool | None:
        application = loop.ask("/api/serve/applications/")["applications"].get(engine)
        return True if application is not None and application["status"] == "RUNNING" else None

    loop.wait(is_running, "the engine of model 1", WAIT_S)
    camera.take("dashboard-serve", "/serve", engine)
    camera.take("dashboard-actors", "/actors", engine)
    print(loop.job_log())


if __name__ == "__main__":
    take_pictures(Path(sys.argv[1]))
