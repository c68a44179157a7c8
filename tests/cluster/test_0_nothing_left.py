"""Whatever ends the tests, nothing of their hosts is left on the machine."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.hosts import REPOSITORY, why_no_hosts
from tests.cluster.leftovers import left_in_the_end, leftovers
from tests.cluster.run import sites
from tests.cluster.waiting import until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]
HOSTS = """
import time
from pathlib import Path
import pytest
from tests.cluster.hosts import Site
from tests.cluster.network import joined

@pytest.mark.cluster
def test_hosts(tmp_path: Path) -> None:
    with Site(tmp_path / "site") as site:
        host = site.add("one", 2)
        site.add("two", 3)
        sleeps = host.start(["sleep", "1000"])
        with joined(host):
            Path("up").touch()
            {then}
"""
WAITS, FAILS = "time.sleep(100)", "assert False, 'on purpose'"
"""What the test does when its hosts are up."""


def ctrl_c(run: "subprocess.Popen[str]") -> None:
    """What a terminal does."""
    os.killpg(run.pid, signal.SIGINT)


def terminate(run: "subprocess.Popen[str]") -> None:
    """What a shell's ``kill`` does, or a CI that takes the job back."""
    run.terminate()


def kill(run: "subprocess.Popen[str]") -> None:
    """Nobody can clear up."""
    run.kill()


def fail(_: "subprocess.Popen[str]") -> None:
    """The test does that itself."""


@pytest.mark.parametrize(("then", "end"), [(FAILS, fail), (WAITS, ctrl_c), (WAITS, terminate), (WAITS, kill)])
def test_hosts_leave_nothing_behind(then: str, end: Callable[["subprocess.Popen[str]"], None], tmp_path: Path) -> None:
    if (reason := why_no_hosts()) is not None:
        pytest.skip(reason)
    (tmp_path / "test_hosts.py").write_text(HOSTS.replace("{then}", then).replace('Path("up")', f"Path({str(tmp_path / 'up')!r})"))
    command = [sys.executable, "-m", "tests.cluster.run", "-c", "pyproject.toml", str(tmp_path / "test_hosts.py")]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    ) as run:
        until(lambda: (tmp_path / "up").exists() or None, "hosts", 180)
        (site,) = (site for folder in tmp_path.glob("headrace-cluster-*") for site in sites(folder))
        end(run)
        output, _ = run.communicate(timeout=180)
    assert run.returncode != 0, output
    assert "nothing is left behind" in output or end is kill, output
    assert left_in_the_end(site) == []


def test_what_is_left_is_seen(tmp_path: Path) -> None:
    (tmp_path / "namespaces").write_text("\n".join(str(Path(f"/proc/self/ns/{kind}").readlink()) for kind in ("net", "mnt")))
    assert any(f"process {os.getpid()}:" in line for line in leftovers(tmp_path))
