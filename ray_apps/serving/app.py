"""The service on Ray Serve: one application per model version, one for the gateway, and the reconciler that follows the rollout.

The rollout log is the only truth: the reconciler deploys the versions that the newest state names and removes the others, the gateway reads
the same log. So a restart of any part, or of all, ends in the same place. A version that is no longer named is removed only after
the gateway has had time to see that, and Serve lets its running requests end.
"""

import errno
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path

import httpx

from pipelines.runtime.cluster import ray_session
from ray_apps.models.registry import Registry
from ray_apps.rollout.log import RolloutLog
from ray_apps.rollout.policy import Author, bootstrap
from ray_apps.serving.deployments import DRAIN_POLL_S, LOGGING, gateway_application, model_application
from ray_apps.serving.edge import SERVE_PREFIX
from ray_apps.serving.engine_pool import APPLICATION_PREFIX, GATEWAY
from ray_apps.serving.environment import SERVE_ENVIRONMENT
from ray_apps.serving.following import RolloutFollower, versions_of
from schemas.errors import BrokerError, HeadraceError, SettingsError
from schemas.rollout import RolloutState
from schemas.settings import Settings

_log = logging.getLogger(__name__)
LINGER_POLLS = 6
"""Polls for which a version outlives its place in the rollout: the gateway polls as often, so it has stopped asking by then."""
SETTLED_INTERVAL_S = 5.0
"""A look at Serve costs two processes some 10 ms."""
RETRY_S = 30.0
"""Pause before a model that could not be started (Serve tries three times) is started again."""
REMOVAL_S = 10.0
"""For Serve to end a gateway whose time is up."""
EDGE_TIMEOUT_S = 10.0
BOOTSTRAP_GRACE_S = 10.0
"""A first model that appears while we run is left to the loop for this long; where no loop runs, we put it into service."""


class Reconciler:
    """Keeps Serve's applications equal to what the rollout names."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._follower = RolloutFollower(Path(settings.root))
        self._deployed_at_s: dict[int, float] = {}
        self._unwanted_polls: dict[int, int] = {}
        self._modelless_since_s = time.monotonic()
        self._settled_since_s: float | None = None
        """When Serve was asked last, if it was as the rollout wants it then."""

    def poll(self) -> None:
        """Compare and act once. Serve is asked at every poll until it is as the newest state wants it, and every SETTLED_INTERVAL_S from then on."""
        self._follower.poll()
        newest, now_s = self._follower.newest, time.monotonic()
        if self._settled_since_s is not None and newest == self._follower.active and now_s - self._settled_since_s < SETTLED_INTERVAL_S:
            return
        statuses = self._statuses()
        running = frozenset(version for version, status in statuses.items() if status == "RUNNING")
        self._follower.activate(running, now_s)
        if newest is None or newest.champion is None:
            self._bootstrap_later()
        is_settled = newest is not None and newest.champion is not None and statuses.keys() == running == versions_of(newest)
        self._settled_since_s = now_s if is_settled else None
        for version in sorted(versions_of(newest)):
            if self._is_due(version, statuses):
                self._deploy(version)
        # The gateway acts on the active state until the newest one's models are up, by the same rule.
        wanted = versions_of(newest) | versions_of(self._follower.active)
        self._unwanted_polls = {version: self._unwanted_polls.get(version, 0) + 1 for version in statuses.keys() - wanted}
        for version, polls in self._unwanted_polls.items():
            if polls > LINGER_POLLS:
                self._remove(version)

    def _is_due(self, version: int, statuses: Mapping[int, str]) -> bool:
        """Whether a version was not started yet, or could not be started some time ago: what was missing may be there now."""
        if version not in self._deployed_at_s:
            return True
        return statuses.get(version) == "DEPLOY_FAILED" and time.monotonic() - self._deployed_at_s[version] > RETRY_S

    def _deploy(self, version: int) -> None:
        """Start a version's application; does not wait for it."""
        from ray import serve

        self._deployed_at_s[version] = time.monotonic()
        try:
            application = model_application(self._settings, version)
        except HeadraceError as error:
            _log.error("model %d is named by the rollout but cannot be served: %s", version, error)
            return
        serve.run_many([application], wait_for_applications_running=False, wait_for_ingress_deployment_creation=False)

    def _remove(self, version: int) -> None:
        from ray import serve

        serve.delete(f"{APPLICATION_PREFIX}{version}", _blocking=False)
        self._deployed_at_s.pop(version, None)

    def _statuses(self) -> dict[int, str]:
        """Serve's word for the state of each version's application; those that are being removed are left out."""
        from ray import serve

        applications = {name: str(application.status.value) for name, application in serve.status().applications.items()}
        ours = {name: status for name, status in applications.items() if name.startswith(APPLICATION_PREFIX) and status != "DELETING"}
        return {int(name.removeprefix(APPLICATION_PREFIX)): status for name, status in ours.items()}

    def _bootstrap_later(self) -> None:
        if not Registry(Path(self._settings.root)).versions():
            self._modelless_since_s = time.monotonic()
        elif time.monotonic() - self._modelless_since_s > BOOTSTRAP_GRACE_S:
            bootstrap_newest(self._settings)


def bootstrap_newest(settings: Settings) -> RolloutState | None:
    """Make the newest model champion if there are models and no champion; returns the new state, if there is one."""
    versions = Registry(Path(settings.root)).versions()

    def first_champion(state: RolloutState | None) -> RolloutState | None:
        if not versions or (state is not None and state.champion is not None):
            return None
        return bootstrap(state, versions[-1], Author(datetime.now(UTC), automatic=True), secrets.token_hex(4))

    return RolloutLog(Path(settings.root)).transition(first_champion)


def start(settings: Settings) -> str:
    """Start Serve's proxy on the Ray that this process is connected to; returns its URL. It answers 503 until ``deploy_gateway`` has run.

    A Serve that is running is used. Raises SettingsError if the port is taken, or if that Serve listens elsewhere or lacks our edge.
    """
    from ray import serve

    host, port = settings.serving.host, settings.serving.port
    if serve.status().proxies:
        port = _running_port(host, port)
    else:
        port = _free_port(host, port)
        location = "HeadOnly" if _is_loopback(host) else "EveryNode"
        # Serve's actors inherit the controller's environment: so they have ours also where somebody else started Ray.
        environment = None if settings.ray.address == "local" else {"runtime_env": {"env_vars": SERVE_ENVIRONMENT}}
        serve.start(proxy_location=location, http_options={"host": host, "port": port}, logging_config=LOGGING, controller_options=environment)
    url = settings.serving.model_copy(update={"port": port}).url
    _check_edge(url)
    return url


def _check_edge(url: str) -> None:
    """Raise SettingsError if the proxy is another program's, which knows nothing of our ids and errors. One that we cannot reach is taken as ours."""
    try:
        status = httpx.post(f"{url}{SERVE_PREFIX}healthz", timeout=EDGE_TIMEOUT_S, trust_env=False).status_code
    except httpx.HTTPError as error:
        _log.info("the proxy at %s cannot be asked from here: %s", url, error)
        return
    if status != HTTPStatus.METHOD_NOT_ALLOWED:
        raise SettingsError(f"the Ray Serve at {url} was started by another program; end it with `serve shutdown`, then start again")


def deploy_gateway(settings: Settings) -> None:
    """Start the gateway, or replace a running one without losing requests; returns when it answers."""
    from ray import serve

    serve.run_many([gateway_application(settings)])


def stop(settings: Settings) -> None:
    """Let running requests end, for drain_timeout_s at most, then remove our applications, and Serve itself if nobody else uses it."""
    from ray import serve

    names = set(serve.status().applications)
    if GATEWAY in names:
        _drain_gateway(settings.serving.drain_timeout_s)
    ours = {name for name in names if name == GATEWAY or name.startswith(APPLICATION_PREFIX)}
    if names == ours:
        serve.shutdown()  # type: ignore[no-untyped-call]
        return
    for name in sorted(ours - {GATEWAY}):
        serve.delete(name)


def _drain_gateway(timeout_s: float) -> None:
    """Remove the gateway first and alone: it waits for its running requests, and they need their engines."""
    from ray import serve

    serve.delete(GATEWAY, _blocking=False)  # blocking ends with an error after 60 s, whatever the settings say
    deadline_s = time.monotonic() + timeout_s + REMOVAL_S
    while GATEWAY in serve.status().applications and time.monotonic() < deadline_s:
        time.sleep(DRAIN_POLL_S)


def serve_forever(settings: Settings, stopping: threading.Event, on_ready: Callable[[str], None]) -> None:
    """Serve until ``stopping`` is set. ``on_ready`` gets the URL when the gateway answers; models may still be loading."""
    for name, value in SERVE_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    threading.Thread(target=_ensure_topics, args=(settings,), name="topics", daemon=True).start()
    with ray_session(settings.ray):
        url = start(settings)
        try:
            reconciler = Reconciler(settings)
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


def _is_loopback(host: str) -> bool:
    return host in ("127.0.0.1", "::1", "localhost")


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
            probe.bind((host, port))
        except OSError as error:
            problem = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be listened on ({error.strerror})"
            raise SettingsError(f"{host}:{port} {problem}; choose another with --set serving.port=PORT") from error
        bound: int = probe.getsockname()[1]
        return bound
