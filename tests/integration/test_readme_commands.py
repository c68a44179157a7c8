"""The commands of the README and of the page on use, run as they stand beside a demo that was left running."""

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.documents import shell_blocks
from tests.ingest_harness import wait_until

DEMO_TIMEOUT_S = 900.0
BLOCKS_TIMEOUT_S = 900.0
STOP_TIMEOUT_S = 90.0
ACTIVATE = Path(sys.prefix, "bin", "activate")
API_PORT = 8000
"""The pages name it. A demo that finds it taken uses another, and the pages' commands would not reach its model."""


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def summary(path: Path) -> dict[str, object] | None:
    """What the demo printed at its end; None while it runs."""
    text = path.read_text("utf-8")
    return json.loads(text) if text.endswith("}\n") else None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder as a reader's clone is after ``make demo``: ``.venv``, and a demo that goes on running."""
    if not ACTIVATE.is_file() or shutil.which("curl") is None:
        pytest.skip("needs a virtual environment with the headrace command, and curl")
    if not is_free(API_PORT):
        pytest.skip(f"port {API_PORT}, which the pages name, is taken")
    folder = tmp_path_factory.mktemp("clone")
    (folder / ".venv").symlink_to(sys.prefix)
    with (folder / "summary.json").open("w") as output, (folder / "demo.log").open("w") as log:
        demo = subprocess.Popen([".venv/bin/headrace", "demo", "--json"], cwd=folder, stdout=output, stderr=log)
    try:
        wait_until(lambda: demo.poll() is not None or summary(folder / "summary.json") is not None, "the end of the demo", DEMO_TIMEOUT_S)
        assert demo.poll() is None, (folder / "demo.log").read_text("utf-8")[-3000:]
        yield folder
    finally:
        demo.terminate()
        demo.wait(STOP_TIMEOUT_S)


@pytest.mark.slow
@pytest.mark.timeout(DEMO_TIMEOUT_S + BLOCKS_TIMEOUT_S + STOP_TIMEOUT_S)
@pytest.mark.parametrize("page", ["README.md", "docs/use.md"])
def test_the_pages_commands_run_as_they_stand(folder: Path, page: str) -> None:
    blocks = shell_blocks(page)
    assert blocks
    words = ["bash", "-euxo", "pipefail", "-c", "\n".join(blocks)]
    result = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=BLOCKS_TIMEOUT_S, check=False)
    assert result.returncode == 0, f"{result.stdout[-2000:]}\n{result.stderr[-3000:]}"
    assert '"choices"' in result.stdout, "the model answered"
