"""Machines for tests of a cluster: each one is a set of Linux namespaces with an address, an sshd on port 22, and folders of its own.

A host has its own network, processes, mounts, name, shared memory, and folders (COVERED). What it has in common with the machine is the rest of the
file system, and with the other hosts the folder that all of them mount at SHARED. A switch, which is a network namespace too, connects them. So
nothing of a host is visible outside: two runs on one machine can use the same addresses and ports, and what the hosts leave behind is the folder
that was given for them.

A host ends when its first process is killed, and then the kernel ends everything that runs on it. That process is bound to the test run, so a
test run that is killed leaves nothing running. A host that is started again has the disk that it had, and an empty ``/tmp`` and shared memory.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.runtime.bound import bound
from tests.cluster.waiting import until
from tests.processes import command_line

REPOSITORY = Path(__file__).parents[2]
SHARED = "/mnt/headrace"
"""Where hosts mount the folder that they share."""
NETWORK = "10.77.0"
START_TIMEOUT_S = 60.0
SPACES = ("net", "pid", "mnt", "uts", "ipc")
NAMESPACES = "namespaces"
"""File in a site's folder with the names of all its namespaces, one a line."""
TOOLS = {
    "ip": "iproute2",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "rsync": "rsync",
    "ssh": "openssh-client",
    "/usr/sbin/sshd": "openssh-server",
}
"""Command -> Debian's package that has it."""
COVERED = ("/mnt", "/opt", "/root", "/usr/local/bin", "/tmp")
"""Folders that each host has for itself; the last one may hold the folders of the hosts."""
SSHD = """\
Port 22
HostKey {keys}/host
AuthorizedKeysFile {keys}/user.pub
PidFile none
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
MaxSessions 100
MaxStartups 100
AllowTcpForwarding yes
PrintMotd no
"""


def why_no_hosts() -> str | None:
    """Why hosts cannot be made here; None where they can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "the hosts of these tests are Linux namespaces, which need root"
    missing = sorted({package for tool, package in TOOLS.items() if shutil.which(tool) is None})
    if missing:
        return f"hosts need commands of these packages, which are not installed: {', '.join(missing)}"
    if subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], capture_output=True, check=False).returncode != 0:
        return "this machine does not let root make namespaces (a container without CAP_SYS_ADMIN?)"
    return None


def packages() -> list[Path]:
    """Folders from which this Python imports what is installed."""
    return [Path(entry) for entry in sys.path if Path(entry).name == "site-packages"]


@dataclass
class Switch:
    """What the hosts' cables end in."""

    process: "subprocess.Popen[bytes]"

    def ip(self, *arguments: str) -> None:
        """Run ``ip`` in the switch."""
        _run("nsenter", "--net", "--target", str(self.process.pid), "ip", *arguments)


@dataclass
class Host:
    """A machine. Made by ``Site.add``."""

    name: str
    address: str
    folder: Path
    """Its disk, as seen from outside."""
    visible: tuple[Path, ...]
    """Folders of the machine that it sees although they lie in covered ones."""
    hidden: tuple[Path, ...]
    """Folders of the machine that it must not see."""
    process: "subprocess.Popen[bytes] | None" = field(default=None, repr=False)
    pid: int = 0
    """Its first process, as seen from outside; 0 while it is off."""

    def command(self, words: Sequence[str], *, cwd: str = "/root", environment: Mapping[str, str] | None = None) -> list[str]:
        """The command line that runs ``words`` on the host, for whoever is on the machine."""
        assert self.pid, f"{self.name} is off"
        home = {"HOME": "/root", "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
        variables = [f"{name}={value}" for name, value in (home | dict(environment or {})).items()]
        spaces = ["--mount", "--net", "--pid", "--uts", "--ipc"]
        return ["nsenter", "--target", str(self.pid), *spaces, "--", "env", "-i", "-C", cwd, *variables, *words]

    def start(self, words: Sequence[str], **options: Any) -> "subprocess.Popen[str]":
        """Start a command on the host; ``options`` are those of ``command`` and of Popen."""
        placed = {name: options.pop(name) for name in ("cwd", "environment") if name in options}
        return subprocess.Popen(self.command(words, **placed), text=True, **options)

    def run(self, words: Sequence[str], *, timeout_s: float = 60.0, **placed: Any) -> str:
        """What a command prints. Fails the test, with what it wrote, if the command fails."""
        return _run(*self.command(words, **placed), timeout_s=timeout_s)

    def processes(self, word: str) -> list[int]:
        """Processes with this word in their command line, by their numbers on the machine."""
        space = link_of(self.pid, "pid")
        return [pid for pid in pids() if word in command_line(pid) and link_of(pid, "pid") == space]


class Site:
    """A switch and the hosts at it; use it in a ``with`` block."""

    def __init__(self, folder: Path) -> None:
        """``folder``: for everything that the hosts write; it stays."""
        self.folder = folder
        self.shared = folder / "shared"
        self.keys = folder / "keys"
        self.hosts: dict[str, Host] = {}
        self._switch: Switch | None = None

    def __enter__(self) -> "Site":
        for path in (self.shared, self.keys):
            path.mkdir(parents=True)
        for key in ("host", "user"):
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.keys / key))
        self._switch = Switch(subprocess.Popen(bound(["unshare", "--net", "sleep", "infinity"])))
        _until_in_other_space(self._switch.process.pid, "net")
        self._note(self._switch.process.pid)
        self._switch.ip("link", "add", "switch", "type", "bridge")
        self._switch.ip("link", "set", "switch", "up")
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.hosts.values():
            self.kill(host)
        if self._switch is not None:
            _end(self._switch.process)

    def add(self, name: str, number: int, *, visible: Sequence[Path] = (), sees_repository: bool = False) -> Host:
        """A new host with an address that ends in ``number``, switched on."""
        address = f"{NETWORK}.{number}"
        folder = self.folder / name
        seen = (Path(sys.base_prefix), *packages(), *visible)
        host = Host(name, address, folder, (REPOSITORY, *seen) if sees_repository else seen, () if sees_repository else (REPOSITORY,))
        self.hosts[name] = host
        _write_disk(host, self.keys)
        self.boot(host)
        return host

    def boot(self, host: Host) -> None:
        """Switch a host on that is off."""
        assert not host.pid and self._switch is not None
        script = _boot_script(host, self.shared, self.keys)
        spaces = ["--net", "--pid", "--fork", "--kill-child=KILL", "--mount", "--mount-proc", "--uts", "--ipc"]
        host.process = subprocess.Popen(bound(["unshare", *spaces, "bash", "-c", script]), stdin=subprocess.DEVNULL)
        _until_in_other_space(host.process.pid, "net")
        host.pid = _first_child(host.process)
        self._note(host.pid)
        self._plug_in(host)
        _until(lambda: _accepts_ssh(host), f"the sshd of {host.name}")

    def kill(self, host: Host) -> None:
        """End everything that runs on the host at once, as a power cut does."""
        if host.process is not None:
            _end(host.process)
            _until(lambda: not Path(f"/proc/{host.pid}").exists(), f"the end of {host.name}")
            host.process, host.pid = None, 0

    def _note(self, pid: int) -> None:
        """Write down which namespaces a process of the site is in, so that ``leftovers`` finds whatever is still in them."""
        own = {link_of(os.getpid(), kind) for kind in SPACES}
        with (self.folder / NAMESPACES).open("a") as file:
            file.writelines(f"{name}\n" for name in sorted({link_of(pid, kind) for kind in SPACES} - own))

    def link_down(self, host: Host) -> None:
        """Pull the host's network cable."""
        self._port(host, "down")

    def link_up(self, host: Host) -> None:
        """Plug the cable in again."""
        self._port(host, "up")

    def _port(self, host: Host, state: str) -> None:
        assert self._switch is not None
        self._switch.ip("link", "set", host.name, state)

    def _plug_in(self, host: Host) -> None:
        """Connect the switch to the host's ``eth0``."""
        assert self._switch is not None
        self._switch.ip("link", "add", host.name, "type", "veth", "peer", "name", "eth0", "netns", str(host.pid))
        self._switch.ip("link", "set", host.name, "master", "switch", "up")
        for words in (
            f"addr add {host.address}/24 dev eth0",
            "link set lo up",
            "link set eth0 up",
            f"route add default via {NETWORK}.1",  # nobody is there: it names the interface, and nothing leaves the machine
        ):
            _run("nsenter", "--net", "--target", str(host.pid), "ip", *words.split())


def _write_disk(host: Host, keys: Path) -> None:
    """The folders that only this host has, with a ``python3.11`` and, if the machine has none, a ``sudo``, as a machine of an operator has them."""
    for covered in COVERED:
        (host.folder / covered.strip("/")).mkdir(parents=True, exist_ok=True)
    tools = host.folder / "usr/local/bin"
    version = sysconfig.get_python_version()
    (tools / f"python{version}").write_text(f'#!/bin/sh\nexec {Path(sys.base_prefix, "bin", f"python{version}")} "$@"\n')
    if shutil.which("sudo") is None:
        (tools / "sudo").write_text('#!/bin/sh\nexec "$@"\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    (host.folder / "root/.bashrc").touch()
    (host.folder / "hosts").write_text(f"127.0.0.1 localhost\n{host.address} {host.name}\n")
    (host.folder / "sshd_config").write_text(SSHD.format(keys="/run/keys"))
    (keys / "host").chmod(0o600)


def _boot_script(host: Host, shared: Path, keys: Path) -> str:
    """What the host's first process does before it is the sshd."""
    lines = ["set -e", f"hostname {host.name}", "mount -t tmpfs tmpfs /run", "mkdir -p /run/sshd /run/keys /run/shared /run/disk"]
    # Step 1: keep at hand what the next step covers.
    lines += [f"mount --bind {folder} /run/{name}" for folder, name in ((keys, "keys"), (shared, "shared"), (host.folder, "disk"))]
    for number, path in enumerate(host.visible):
        lines += [f"mkdir /run/seen{number}", f"mount --bind {path} /run/seen{number}"]
    # Step 2: cover what the host has for itself, or must not see.
    lines += ["mount -t tmpfs -o size=2g tmpfs /dev/shm", "mount --bind /run/disk/hosts /etc/hosts"]
    lines += [f"mount -t tmpfs tmpfs {path}" for path in host.hidden]
    lines += [f"mount --bind /run/disk{path} {path}" for path in COVERED]
    lines += ["rm -rf /tmp/* /tmp/.[!.]*"]
    # Step 3: show again what lies below.
    for number, path in enumerate(host.visible):
        if any(path.is_relative_to(covered) for covered in (*map(Path, COVERED), *host.hidden)):
            lines += [f"mkdir -p {path}", f"mount --bind /run/seen{number} {path}"]
    lines += [f"mkdir -p {SHARED}", f"mount --bind /run/shared {SHARED}"]
    return "\n".join([*lines, "exec /usr/sbin/sshd -D -f /run/disk/sshd_config -E /run/disk/sshd.log"])


def _accepts_ssh(host: Host) -> bool:
    words = ["nsenter", "--net", "--target", str(host.pid), "bash", "-c", f"exec 3<>/dev/tcp/{host.address}/22 && read -r -t 1 line <&3"]
    assert host.process is not None and host.process.poll() is None, f"{host.name} did not start"
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def _first_child(process: "subprocess.Popen[bytes]") -> int:
    """The process that ``unshare --fork`` has started."""
    path, found = Path(f"/proc/{process.pid}/task/{process.pid}/children"), list[int]()

    def look() -> bool:
        found[:] = [int(word) for word in path.read_text().split()]
        return bool(found)

    _until(look, "the first process of a host")
    return found[0]


def _until_in_other_space(pid: int, kind: str) -> None:
    """Until a process that we have started is in a namespace of its own."""
    _until(lambda: link_of(pid, kind) not in ("", link_of(os.getpid(), kind)), f"the {kind} namespace of process {pid}")


def link_of(pid: int, kind: str) -> str:
    """Name of the namespace that a process is in; empty for a process that is gone."""
    try:
        return str(Path(f"/proc/{pid}/ns/{kind}").readlink())
    except OSError:
        return ""


def pids() -> list[int]:
    """All processes of the machine."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()


def _until(holds: Callable[[], bool], what: str) -> None:
    until(lambda: holds() or None, what, START_TIMEOUT_S, pause_s=0.02)


def _run(*words: str, timeout_s: float = 60.0) -> str:
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout_s, check=False)
    assert done.returncode == 0, f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout[-6000:]}"
    return done.stdout
