"""A Ray head of our own, for one machine: its command line, its environment, its folder.

Token authentication is on: Ray binds all interfaces whatever its options say, so without a token everyone on the network could run code
here. The token is the user's (``~/.ray/auth_token``), made if there is none; other Ray commands find it by themselves when they are run
with ``RAY_AUTH_MODE=token``. ``--block`` ties Ray's processes to the one that we watch: it ends when one of them dies, and they
end with it. All ports are given, so that two heads on one machine do not meet on Ray's defaults.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pipelines.runtime.cluster import OWN_RAY, RAY_ENVIRONMENT, WITHOUT_DASHBOARD
from pipelines.runtime.ports import free_ports, is_free
from ray_apps.serving.environment import SERVE_ENVIRONMENT
from schemas.errors import ServiceFailed
from schemas.settings import RaySettings

AUTHENTICATED = {"RAY_AUTH_MODE": "token"}
KEPT_SESSIONS = 3
"""Folders of former sessions (Ray's own logs) that are kept."""
_RAY = (sys.executable, "-P", "-m", "ray.scripts.scripts")


@dataclass(frozen=True)
class RayPorts:
    """Where a head listens."""

    gcs: int
    client_server: int
    dashboard: int | None
    """None: there is no dashboard."""
    dashboard_agent: int
    metrics: int

    @property
    def address(self) -> str:
        """For ``ray.address``."""
        return f"127.0.0.1:{self.gcs}"

    @property
    def dashboard_url(self) -> str | None:
        """For people and ``ray job submit``."""
        return None if self.dashboard is None else f"http://127.0.0.1:{self.dashboard}"


def choose_ports(settings: RaySettings) -> RayPorts:
    """The dashboard where the settings want it, or on a free port if that one is taken, or nowhere; the rest on free ports."""
    gcs, client_server, dashboard, agent, metrics = free_ports(5)
    wanted = settings.dashboard_port
    chosen = None if not wanted else wanted if is_free(wanted) else dashboard
    return RayPorts(gcs, client_server, chosen, agent, metrics)


def head_folder(root: Path) -> Path:
    """Ray's folder for this root: short, because its sockets' names must stay under 108 bytes."""
    name = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:8]
    return Path(tempfile.gettempdir()) / f"headrace-{os.getuid()}-{name}"


def head_command(settings: RaySettings, ports: RayPorts, folder: Path) -> tuple[str, ...]:
    """Command that runs a head until it is stopped."""
    options = {
        "node-ip-address": "127.0.0.1",
        "port": ports.gcs,
        "ray-client-server-port": ports.client_server,
        "dashboard-agent-listen-port": ports.dashboard_agent,
        "metrics-export-port": ports.metrics,
        "num-cpus": settings.num_cpus,
        "resources": json.dumps({OWN_RAY: 1}),
        "object-store-memory": settings.object_store_bytes,
        "temp-dir": folder,
    }
    if ports.dashboard is None:
        options["include-dashboard"] = "false"
    else:
        options |= {"dashboard-host": settings.dashboard_host, "dashboard-port": ports.dashboard}
    return (*_RAY, "start", "--head", "--block", "--disable-usage-stats", *(f"--{name}={value}" for name, value in options.items()))


def head_environment(ports: RayPorts) -> dict[str, str]:
    """Environment of the head, and so of every worker that it starts. The address: Ray Train's helpers look for it when two heads run here."""
    ray = RAY_ENVIRONMENT if ports.dashboard is not None else RAY_ENVIRONMENT | WITHOUT_DASHBOARD
    return ray | SERVE_ENVIRONMENT | AUTHENTICATED | {"PYTHONUNBUFFERED": "1", "RAY_ADDRESS": ports.address}


def prepare(folder: Path) -> None:
    """Make the user's token if there is none, and drop the folders of old sessions. Raises ServiceFailed."""
    if not _has_token():
        result = subprocess.run((*_RAY, "get-auth-token", "--generate"), capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise ServiceFailed(f"Ray cannot make its authentication token: {result.stderr.strip()[-300:]}; is the home folder writable?")
    sessions = sorted(entry for entry in folder.glob("session_2*") if entry.is_dir() and not entry.is_symlink())
    for session in sessions[:-KEPT_SESSIONS]:
        shutil.rmtree(session, ignore_errors=True)


def _has_token() -> bool:
    """Whether Ray will find a token where it looks for one; asking Ray itself takes seconds."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return bool(os.environ.get("RAY_AUTH_TOKEN")) or (path.is_file() and path.stat().st_size > 0)
