"""``make test-cluster``: runs the tests of this folder, and says at the end what they left on the machine, however they ended.

The tests are a child process, bound to this one. Ctrl-C reaches both; this one lets the tests clear up, then looks. So does SIGTERM, which is
passed on as Ctrl-C. After SIGKILL the kernel clears up: all processes of the hosts are bound to the tests.
Exit code: pytest's; 1 if something is left; 2 where hosts cannot be made. The hosts' disks are removed if the tests passed, else kept.
"""

import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import mkdtemp
from types import FrameType

from pipelines.runtime.bound import bound
from tests.cluster.hosts import NAMESPACES, why_no_hosts
from tests.cluster.leftovers import left_in_the_end


def main(arguments: Sequence[str]) -> int:
    """Run pytest with these arguments. It stops at the first failure: every test goes on from where the one before has left the cluster."""
    if (reason := why_no_hosts()) is not None:
        print(f"test-cluster cannot run: {reason}", file=sys.stderr)
        return 2
    folder = Path(mkdtemp(prefix="headrace-cluster-"))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "cluster",
        "-x",
        "-s",
        "-r",
        "fEs",
        "--durations",
        "20",
        "--basetemp",
        str(folder / "pytest"),
        *arguments,
    ]
    code = _to_its_end(bound(command))
    left = [line for site in sites(folder) for line in left_in_the_end(site)]
    for line in left:
        print(f"left behind: {line}")
    print("nothing is left behind: no process, no mount, no network link of the hosts" if not left else f"{len(left)} things are left behind")
    if code or left:
        print(f"the hosts' disks: {folder}")
        return code or 1
    shutil.rmtree(folder)
    return 0


def sites(folder: Path) -> list[Path]:
    """Folders below this one that a site has used."""
    return sorted({path.parent.resolve() for depth in ("*", "*/*") for path in folder.glob(f"pytest/{depth}/{NAMESPACES}")})


def _to_its_end(command: Sequence[str]) -> int:
    """Exit code of a command that gets every signal to stop as SIGINT, and is waited for whatever comes."""
    children: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        if number != signal.SIGINT:  # Ctrl-C goes to all processes of the terminal's foreground by itself
            for child in children:
                child.send_signal(signal.SIGINT)

    # Before the child starts: a shell starts what it runs in the background with SIGINT ignored, and a child would inherit that.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, pass_on)
    children.append(subprocess.Popen(command))
    code = children[0].wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
