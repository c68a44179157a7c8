"""The service on Ray Serve: one application per model version, one for the gateway, and the reconciler that follows the rollout.

The rollout log is the only truth: the reconciler (reconciler.py) starts the versions that it names and removes the others, the gateway reads
the same log. So a restart of any part, or of all, ends in the same place.
"""

import errno
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx

from pipelines.runtime.cluster import ray_session
from pipelines.runtime.ports import free_ports
from pipelines.storage.mirror import root_name
from ray_apps.serving.deployments import DRAIN_POLL_S, LOGGING, gateway_application
from ray_apps.serving.edge import SERVE_PREFIX
from ray_apps.serving.environment import SERVE_ENVIRONMENT
from ray_apps.serving.naming import application_names, is_gateway
from ray_apps.serving.reconciler import Reconciler, ServeApplications
from schemas.errors import BrokerError, ServiceFailed, SettingsError
from schemas.settings import Settings

_log = logging.getLogger(__name__)
REMOVAL_S = 10.0
"""For Serve to end a gateway whose time is up."""
EDGE_TIMEOUT_S = 10.0
PROXIES_START_S = 300.0


def start(settings: Settings) -> str:
    """Start Serve's proxy on the Ray that this process is connected to; returns its URL. It answers 503 until ``deploy_gateway`` has run.

    A Serve that is running is used. Raises SettingsError if the port is taken, or if that Serve listens elsewhere or lacks our edge, and
    ServiceFailed if the proxy does not start.
    """
    from ray import serve

    host, port = settings.serving.host, settings.serving.port
    if serve.status().proxies:
        port = _running_port(host, port)
    else:
        port = _free_port(host, port)
        location = "HeadOnly" if settings.serving.is_local else "EveryNode"
        # Serve's actors inherit the controller's environment: so they have ours also where somebody else started Ray.
        environment = None if settings.ray.address == "local" else {"runtime_env": {"env_vars": SERVE_ENVIRONMENT}}
        _start_proxies(
            {"proxy_location": location, "http_options": {"host": host, "port": port}, "logging_config": LOGGING, "controller_options": environment}
        )
    url = settings.serving.model_copy(update={"port": port}).url
    _check_edge(url)
    return url


def _start_proxies(options: dict[str, Any]) -> None:
    """Serve itself waits for its proxies for a minute only, and on a busy machine they come up later. Raises ServiceFailed."""
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.schema import ProxyStatus

    deadline_s = time.monotonic() + PROXIES_START_S
    try:
        serve.start(**options)
    except TimeoutError:
        _log.warning("Ray Serve's HTTP proxy takes longer than a minute to start: this machine is busy")
        while set(serve.status().proxies.values()) != {ProxyStatus.HEALTHY}:
            if time.monotonic() > deadline_s:
                raise ServiceFailed(f"Ray Serve's HTTP proxy did not start in {PROXIES_START_S:g} s; is this machine too busy? Start again") from None
            time.sleep(DRAIN_POLL_S)
    except RayError as error:
        raise ServiceFailed(f"Ray Serve's HTTP proxy did not start: {_first_line(error)}; start again") from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _check_edge(url: str) -> None:
    """Raise SettingsError if the proxy is another program's, which knows nothing of our ids and errors. One that we cannot reach is taken as ours."""
    try:
        status = httpx.post(f"{url}{SERVE_PREFIX}healthz", timeout=EDGE_TIMEOUT_S, trust_env=False).status_code
    except httpx.HTTPError as error:
        _log.info("the proxy at %s cannot be asked from here: %s", url, error)
        return
    if status != HTTPStatus.METHOD_NOT_ALLOWED:
        raise SettingsError(f"the Ray Serve at {url} was not started by this version of Headrace; end it with `serve shutdown`, then start again")


def deploy_gateway(settings: Settings) -> None:
    """Start the gateway, or replace a running one without losing requests; returns when it answers.

    Raises SettingsError if another root is served on this Ray: Serve has one address, and it is that root's.
    """
    from ray import serve

    ours = application_names(settings.root).gateway
    others = [name for name in serve.status().applications if is_gateway(name) and name != ours]
    if others:
        raise SettingsError(f"another root is served on this Ray already (application {others[0]}); stop that service, or use another Ray")
    serve.run_many([gateway_application(settings)])


def stop(settings: Settings) -> None:
    """Let running requests end, for drain_timeout_s at most, then remove this root's applications, and Serve itself if nobody else uses it."""
    from ray import serve

    names, present = application_names(settings.root), set(serve.status().applications)
    if names.gateway in present:
        _drain(names.gateway, settings.serving.drain_timeout_s)
    ours = {name for name in present if names.is_ours(name)}
    if present == ours:
        serve.shutdown()  # type: ignore[no-untyped-call]
        return
    for name in sorted(ours - {names.gateway}):
        serve.delete(name)


def _drain(gateway: str, timeout_s: float) -> None:
    """Remove the gateway first and alone: it waits for its running requests, and they need their engines."""
    from ray import serve

    serve.delete(gateway, _blocking=False)  # blocking ends with an error after 60 s, whatever the settings say
    deadline_s = time.monotonic() + timeout_s + REMOVAL_S
    while gateway in serve.status().applications and time.monotonic() < deadline_s:
        time.sleep(DRAIN_POLL_S)


def serve_forever(settings: Settings, stopping: threading.Event, on_ready: Callable[[str], None]) -> None:
    """Serve until ``stopping`` is set. ``on_ready`` gets the URL when the gateway answers; models may still be loading."""
    settings = settings.model_copy(update={"root": str(Path(settings.root).resolve())})  # Ray's workers may run in another folder
    for name, value in SERVE_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    threading.Thread(target=_ensure_topics, args=(settings,), name="topics", daemon=True).start()
    with ray_session(settings.ray, f"serve {root_name(settings.root)}"):
        url = start(settings)
        try:
            reconciler = Reconciler(settings, ServeApplications(settings))
            reconciler.poll()  # the models load while the gateway starts
            deploy_gateway(settings)
            on_ready(url)
            _reconcile_until(stopping, reconciler, settings.loop.poll_interval_s)
        finally:
            stop(settings)


def _reconcile_until(stopping: threading.Event, reconciler: Reconciler, interval_s: float) -> None:
    while not stopping.wait(interval_s):
        try:
            reconciler.poll()
        except Exception:  # noqa: BLE001  Ray's controller may be restarting; the service goes on, and the next poll finds out
            _log.exception("the rollout could not be reconciled; trying again")


def _ensure_topics(settings: Settings) -> None:
    """Create the topic of the events where it is missing; beside the service, which does not need a broker to answer."""
    if not settings.kafka.bootstrap_servers:
        return
    from pipelines.kafka.topics import ensure_topics

    try:
        ensure_topics(settings)
    except BrokerError as error:
        _log.warning("the topics were not checked, events may be lost: %s", error)


def _running_port(host: str, port: int) -> int:
    """The port of the Serve that runs on this Ray. Raises SettingsError if it is not the one that the settings name."""
    from ray.serve.context import _get_global_client

    client = _get_global_client()
    assert client is not None
    options = client.http_config
    if options.host != host or port not in (0, options.port):
        raise SettingsError(
            f"Ray Serve is running on this Ray already, at {options.host}:{options.port}, not at {host}:{port}; "
            f"set serving.host and serving.port to that, or end it with `serve shutdown`"
        )
    running: int = options.port
    return running


def _free_port(host: str, port: int) -> int:
    """The port itself, or a free one for 0. Raises SettingsError if somebody listens there: Serve would only say that a proxy is unhealthy."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port or free_ports(1)[0]))
        except OSError as error:
            problem = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be listened on ({error.strerror})"
            address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            raise SettingsError(f"{address} {problem}; choose another with --set serving.port=PORT") from error
        bound: int = probe.getsockname()[1]
        return bound
