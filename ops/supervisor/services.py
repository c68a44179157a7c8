"""What ``headrace up`` keeps running, from the settings: broker (unless one is given), Ray (unless one is given), ingest, serve."""

import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from ops.supervisor.ray_head import RayPorts, choose_ports, head_command, head_environment, head_folder
from ops.supervisor.supervisor import Service
from pipelines.ingest.progress import FOLLOWING, WAITING
from pipelines.runtime.ports import free_ports
from pipelines.storage.store import needs_folder
from ray_apps.loop.commands import child_environment, headrace
from schemas.settings import Settings

PROBE_TIMEOUT_S = 1.0
HEALTH_TIMEOUT_S = 2.0
"""The service may ask its engine before it answers."""
STOP_TIMEOUT_S = 15.0
"""For a service to stop after its running work has ended."""


@dataclass(frozen=True)
class Stack:
    """Services in the order in which they start, and where they are."""

    settings: Settings
    """With every address filled in."""
    services: tuple[Service, ...]
    dashboard_url: str | None
    """Ray's dashboard, if we start one."""
    starts_ray: bool
    """Whether Ray is one of the services."""

    @property
    def api_url(self) -> str:
        """Where the HTTP API is."""
        return self.settings.serving.url

    @property
    def names(self) -> list[str]:
        """Names of the services."""
        return [service.name for service in self.services]


def build_stack(settings: Settings) -> Stack:
    """Fill in the addresses and list the services. Ports that are 0 are chosen here, so that they survive a restart of their service."""
    settings = settings.model_copy(update={"root": str(Path(settings.root).resolve())})
    services: list[Service] = []
    if not settings.kafka.bootstrap_servers:
        needs_folder(Path(settings.root), "the embedded broker, which is used where no Kafka is named (--bootstrap-servers),")
        settings, broker = _embedded_broker(settings)
        services.append(broker)
    ports = None
    if settings.ray.address == "local":
        ports = choose_ports(settings.ray)
        services.append(_ray_head(settings, ports))
        settings = settings.model_copy(update={"ray": settings.ray.model_copy(update={"address": ports.address})})
    if settings.serving.port == 0:
        settings = settings.model_copy(update={"serving": settings.serving.model_copy(update={"port": free_ports(1)[0]})})
    names = tuple(service.name for service in services)
    dies_with = ("ray",) if ports else ()
    services += [_ingest(settings, names, dies_with), _serve(settings, names, dies_with)]
    return Stack(settings, tuple(services), dashboard_url=ports.dashboard_url if ports else None, starts_ray=ports is not None)


def _embedded_broker(settings: Settings) -> tuple[Settings, Service]:
    host, _, port = settings.broker.listen.rpartition(":")
    number = int(port) or free_ports(1)[0]
    listen = f"{host}:{number}"
    settings = settings.model_copy(
        update={
            "kafka": settings.kafka.model_copy(update={"bootstrap_servers": listen}),
            "broker": settings.broker.model_copy(update={"listen": listen}),
        }
    )
    command = headrace(settings, "broker", "--listen", listen)
    return settings, Service("broker", command, accepts(host.strip("[]"), number), environment=child_environment(settings))


def _ray_head(settings: Settings, ports: RayPorts) -> Service:
    def is_ready() -> bool:
        return accepts("127.0.0.1", ports.gcs)() and (ports.dashboard_url is None or answers(ports.dashboard_url)())

    command = head_command(settings.ray, ports, head_folder(Path(settings.root)))
    return Service("ray", command, is_ready, environment=head_environment(ports), stop_timeout_s=5.0)  # nothing on it is worth more patience


def _ingest(settings: Settings, needs: tuple[str, ...], dies_with: tuple[str, ...]) -> Service:
    """It listens on no port that must answer: it says when it has taken up its work, or what it waits for. Serving goes on while it fails."""
    return Service(
        "ingest",
        headrace(settings, "ingest", "--follow"),
        is_ready=lambda: False,
        is_alive=lambda: True,
        needs=needs,
        told=WAITING,
        says_ready=(WAITING, FOLLOWING),
        retries_before_ready=True,
        dies_with=dies_with,
        environment=child_environment(settings),
        stop_timeout_s=STOP_TIMEOUT_S,
    )


def _serve(settings: Settings, needs: tuple[str, ...], dies_with: tuple[str, ...]) -> Service:
    health = f"{settings.serving.url}/health"
    return Service(
        "serve",
        headrace(settings, "serve"),
        serves(health),
        is_alive=answers(health),
        needs=needs,
        serves_users=True,
        dies_with=dies_with,
        environment=child_environment(settings),
        stop_timeout_s=STOP_TIMEOUT_S + settings.serving.drain_timeout_s,
    )


def accepts(host: str, port: int) -> Callable[[], bool]:
    """Whether somebody listens there."""

    def probe() -> bool:
        try:
            with socket.create_connection((host, port), timeout=PROBE_TIMEOUT_S):
                return True
        except OSError:
            return False

    return probe


def answers(url: str) -> Callable[[], bool]:
    """Whether somebody speaks HTTP there; what it says is its own affair."""

    def probe() -> bool:
        try:
            httpx.get(url, timeout=PROBE_TIMEOUT_S)
        except httpx.HTTPError:
            return False
        return True

    return probe


def serves(url: str) -> Callable[[], bool]:
    """Whether /health says that a champion answers, or that there is none because no model was registered yet."""

    def probe() -> bool:
        try:
            response = httpx.get(url, timeout=HEALTH_TIMEOUT_S)
            body = response.json()
        except (httpx.HTTPError, ValueError):
            return False
        return response.is_success or (isinstance(body, dict) and "champion" in body and body["champion"] is None)

    return probe
