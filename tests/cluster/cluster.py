"""A Ray cluster on hosts, started and used with the commands of docs/cluster.md, from a machine of the operator's that is not a node.

``ops/deploy/cluster-onprem.yaml`` is used as it is, except for what ``cluster_file`` replaces: the values that it marks with CHANGE, the
installation of packages (there is no package registry on this network, so nodes use the packages of the machine), and options of ``ray start`` that
keep the nodes small, because they share the cores of one machine. Ray's workers get the keys of an object store as the page says, at ``ray start``.
"""

import json
import os
import re
import shlex
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT, Popen
from typing import Any

import httpx
import yaml

from tests.cluster.hosts import REPOSITORY, SHARED, Host, Site, link_of, packages, pids
from tests.cluster.store import ENVIRONMENT as STORE
from tests.cluster.waiting import until
from tests.processes import command_line

ON_PREMISE = REPOSITORY / "ops" / "deploy" / "cluster-onprem.yaml"
TOKEN = {"RAY_AUTH_MODE": "token"}
DASHBOARD, API = "http://127.0.0.1:8265", "http://127.0.0.1:8000"
UP_TIMEOUT_S = 420.0
NODE_CPUS = 3
"""Logical CPUs of a worker, which Ray only counts. The head has none, so everything except the processes of ``headrace up`` runs on workers."""
STORE_BYTES = 120 * 2**20
NODE_OPTIONS = f"--metrics-export-port=8090 --object-store-memory={STORE_BYTES}"
FILE = "/root/cluster-onprem.yaml"
"""The file, on the operator's machine."""
_ADDS = re.compile(r"^#   ((?:ssh|rsync) .*NEW.*)$", re.MULTILINE)


def installation() -> tuple[str, str]:
    """What replaces the two ``pip install`` lines: the packages of this machine, and Headrace from the source that ``ray up`` has copied."""
    venv, version = "/opt/headrace/venv", sysconfig.get_python_version()
    paths = f"{venv}/lib/python{version}/site-packages"

    def command(name: str, module: str) -> str:
        text = f"#!{venv}/bin/python\\nimport sys\\nfrom {module} import main\\nsys.exit(main())\\n"
        return f"printf '{text}' > {venv}/bin/{name} && chmod +x {venv}/bin/{name}"

    folders = " ".join(str(folder) for folder in packages())
    return (
        f"printf '%s\\n' {folders} > {paths}/packages.pth && {command('ray', 'ray.scripts.scripts')}",
        f"echo /opt/headrace/source > {paths}/headrace.pth && {command('headrace', 'ops.cli.main')}",
    )


def cluster_file(head: str, workers: Sequence[str]) -> str:
    """The on-premise file with this cluster's values."""
    packages_line, headrace_line = installation()
    keys = " ".join(f"{name}={value}" for name, value in STORE.items())
    replaced = {
        "head_ip: 192.0.2.10": f"head_ip: {head}",
        "worker_ips: [192.0.2.11, 192.0.2.12]": f"worker_ips: [{', '.join(workers)}]",
        "min_workers: 2": f"min_workers: {len(workers)}",
        "max_workers: 2": f"max_workers: {len(workers)}",
        "ssh_user: headrace": "ssh_user: root",
        "python3.11 -m venv /opt/headrace/venv": f"python{sysconfig.get_python_version()} -m venv --without-pip /opt/headrace/venv",
        "- /opt/headrace/venv/bin/pip install --quiet -r /opt/headrace/source/requirements.lock": f"- {json.dumps(packages_line)}",
        "- /opt/headrace/venv/bin/pip install --quiet --no-deps /opt/headrace/source": f"- {json.dumps(headrace_line)}",
        "ulimit -n 65536;": f"ulimit -n 65536; export OMP_WAIT_POLICY=passive {keys};",
        "--metrics-export-port=8090 --autoscaling-config": f"{NODE_OPTIONS} --num-cpus=0 --autoscaling-config",
        "--address=$RAY_HEAD_IP:6379 --metrics-export-port=8090": f"--address=$RAY_HEAD_IP:6379 {NODE_OPTIONS} --num-cpus={NODE_CPUS}",
    }
    text = ON_PREMISE.read_text("utf-8")
    for old, new in replaced.items():
        assert old in text, f"{ON_PREMISE.name} does not have: {old}"
        text = text.replace(old, new)
    return text


@dataclass(frozen=True)
class Actor:
    """A living actor of the cluster, and where it runs."""

    name: str
    class_name: str
    pid: int
    host: str


class Cluster:
    """Made of hosts of a site. This thread must be in the operator's network (``network.joined``)."""

    def __init__(self, site: Site, operator: Host, head: Host, workers: Sequence[Host]) -> None:
        self.site = site
        self.operator = operator
        self.head = head
        self.workers = list(workers)
        self._tunnels: dict[str, Popen[str]] = {}
        self._log = site.folder / "commands.log"
        home = operator.folder / "root"
        (home / ".ssh").mkdir(mode=0o700)
        (home / ".ssh" / "id_ed25519").write_bytes((site.keys / "user").read_bytes())
        (home / ".ssh" / "id_ed25519").chmod(0o600)
        (home / ".ssh" / "config").write_text("StrictHostKeyChecking accept-new\n")
        self._write_file()

    def _write_file(self) -> str:
        text = cluster_file(self.head.address, [worker.address for worker in self.workers])
        (self.operator.folder / FILE.strip("/")).write_text(text)
        return text

    def up(self) -> None:
        """Start the cluster, or start it again: ``ray up``, then the tunnel to the dashboard."""
        self.close_all()
        self.type(f"ray up {FILE} -y")
        self.open(f"ray dashboard {FILE}")

    def open_api(self) -> None:
        """The tunnel to the API."""
        self.open(f"ray attach {FILE} -p 8000")

    def add(self, worker: Host) -> None:
        """Let a machine join while the cluster runs, as the comments of the file say."""
        self.workers.append(worker)
        file = yaml.safe_load(self._write_file())
        for line in _ADDS.findall(ON_PREMISE.read_text("utf-8")):
            self.type(line.replace("NEW", f"root@{worker.address}"))
        for command in (*file["setup_commands"], *file["worker_start_ray_commands"]):
            self.type(f"ssh root@{worker.address} {shlex.quote(f'export RAY_HEAD_IP={self.head.address}; {command}')}")

    def wait_nodes(self, timeout_s: float = 400.0) -> None:
        """Until all hosts are nodes."""
        names = {host.name for host in self.hosts}
        until(lambda: True if set(self.nodes().values()) == names else None, "all nodes", timeout_s)

    @property
    def hosts(self) -> list[Host]:
        """Head and workers."""
        return [self.head, *self.workers]

    def type(self, line: str, timeout_s: float = UP_TIMEOUT_S) -> str:
        """Run a line of shell in the repository's folder on the operator's machine; returns what it prints."""
        started = time.monotonic()
        output = self.operator.run(["bash", "-c", line], cwd=str(REPOSITORY), environment=self._environment(), timeout_s=timeout_s)
        with self._log.open("a") as log:
            log.write(f"$ {line}\n{output}\n({time.monotonic() - started:.1f} s)\n")
        return output

    def open(self, line: str) -> None:
        """Start a line that keeps running, such as a tunnel; again if it has ended."""
        self.close(line)
        with self._log.open("a") as log:
            words = ["bash", "-c", f"exec {line}"]
            self._tunnels[line] = self.operator.start(
                words, cwd=str(REPOSITORY), environment=self._environment(), stdin=PIPE, stdout=log, stderr=STDOUT, start_new_session=True
            )

    def close(self, line: str) -> None:
        """End such a line, with all that it started."""
        tunnel = self._tunnels.pop(line, None)
        if tunnel is not None:
            for pid in self.operator.processes(f"-L {'8265' if 'dashboard' in line else '8000'}"):
                os.kill(pid, 9)
            tunnel.kill()
            tunnel.communicate()

    def close_all(self) -> None:
        """End all tunnels."""
        for line in list(self._tunnels):
            self.close(line)

    def _environment(self) -> dict[str, str]:
        return {"PATH": f"{sys.prefix}/bin:/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONUNBUFFERED": "1"}

    def headrace(self, *words: str, host: Host | None = None) -> Any:
        """What ``headrace … --json`` prints on a node."""
        arguments = ["headrace", *words, "--root", SHARED, "--json"]
        done = Popen((host or self.head).command(arguments), stdout=PIPE, stderr=PIPE, stdin=DEVNULL, text=True)
        output, errors = done.communicate(timeout=180)
        assert done.returncode == 0, f"{shlex.join(arguments)} ended with {done.returncode}: {errors[-2000:]}"
        return json.loads(output)

    def ask(self, path: str, **parameters: object) -> Any:
        """An answer of the dashboard's HTTP API, through the tunnel."""
        token = (self.operator.folder / "root/.ray/auth_token").read_text().strip()
        response = httpx.get(f"{DASHBOARD}{path}", params=_texts(parameters), headers={"Authorization": f"Bearer {token}"}, timeout=90.0)
        response.raise_for_status()
        return response.json()

    def nodes(self) -> dict[str, str]:
        """Node id -> name of the host, of the nodes that live."""
        names = self._names()
        return {node["node_id"]: names[node["node_ip"]] for node in self._listed("nodes") if node["state"] == "ALIVE"}

    def _names(self) -> dict[str, str]:
        return {host.address: host.name for host in self.site.hosts.values()}

    def _listed(self, kind: str) -> list[dict[str, Any]]:
        """All nodes, actors or tasks that Ray's state API knows."""
        return list(self.ask(f"/api/v0/{kind}", detail=True, limit=10_000)["data"]["result"]["result"])

    def actors(self) -> list[Actor]:
        """All actors that live."""
        nodes = self.nodes()
        alive = [actor for actor in self._listed("actors") if actor["state"] == "ALIVE"]
        return [Actor(actor["name"] or "", actor["class_name"], actor["pid"], nodes.get(actor["node_id"], "?")) for actor in alive]

    def hosts_of(self, word: str) -> list[str]:
        """Where the living actors run whose class has this word in its name."""
        return [actor.host for actor in self.actors() if word in actor.class_name]

    def running(self, title: str) -> set[str]:
        """Hosts on which a process runs with this title; a worker of Ray has the name of its task."""
        spaces = {link_of(host.pid, "pid"): host.name for host in self.hosts if host.pid}
        return {spaces[link_of(pid, "pid")] for pid in pids() if title in command_line(pid) and link_of(pid, "pid") in spaces}

    def task_hosts(self, word: str) -> Counter[str]:
        """How many tasks with this word in their name have run on each host."""
        nodes = {node["node_id"]: self._names()[node["node_ip"]] for node in self._listed("nodes")}
        return Counter(nodes.get(task["node_id"], "nowhere") for task in self._listed("tasks") if word in task["name"])

    def submit(self, words: str, settings: Mapping[str, object]) -> str:
        """Submit ``headrace up`` as the page says, with these settings; returns the job's id."""
        flags = " ".join(f"--set {name}={value}" for name, value in settings.items())
        output = self.type(f"RAY_AUTH_MODE=token ray job submit --address {DASHBOARD} --no-wait -- {words} {flags}")
        return next(word.strip("'") for word in output.split() if word.strip("'").startswith("raysubmit_"))

    def job(self, job_id: str) -> dict[str, Any]:
        """What Ray says about a job."""
        return dict(self.ask(f"/api/jobs/{job_id}"))

    def job_log(self, job_id: str) -> str:
        """What the job has printed."""
        return str(self.ask(f"/api/jobs/{job_id}/logs")["logs"])


def _texts(parameters: Mapping[str, object]) -> dict[str, str]:
    return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in parameters.items()}


def logs_of(folder: Path) -> str:
    """The ends of the logs of a root, for whoever reads why a test failed."""
    return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in sorted((folder / "logs").glob("*.log")))
