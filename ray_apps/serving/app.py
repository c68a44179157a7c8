"""The service on Ray Serve: one application per model version, one for the gateway, and the reconciler that follows the rollout.

The rollout log is the only truth: the reconciler deploys the versions that the newest state names and removes the others, the gateway reads
the same log. So a restart of any part, or of all, ends in the same place. A version that is no longer named is removed only after
the gateway has had time to see that, and Serve lets its running requests end.
"""

import logging
import secrets
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ray_apps.models.registry import Registry
from ray_apps.rollout.log import RolloutLog
from ray_apps.rollout.policy import Author, bootstrap
from ray_apps.serving.engine.interface import Events, GenerationRequest
from ray_apps.serving.engines import APPLICATION_PREFIX, GATEWAY, ServeEngines
from ray_apps.serving.following import RolloutFollower, versions_of
from schemas.errors import SettingsError
from schemas.rollout import RolloutState
from schemas.settings import ServingSettings, Settings

_log = logging.getLogger(__name__)
LINGER_POLLS = 6
"""Polls for which a version outlives its place in the rollout: the gateway polls as often, so it has stopped asking by then."""
SPARE_REQUESTS = 8
"""Requests beyond the engine's own limit that reach it, so that the engine refuses with 429 instead of Serve queueing without bound."""
LOGGING = {"log_level": "WARNING", "enable_access_log": False}


def close_internal_port() -> None:
    """Keep Serve's replicas from opening their second way in.

    Ray Serve 2.60 starts in every replica a gRPC server for calls between deployments, on all interfaces, without authentication, that
    unpickles what it is sent. We call replicas through Ray's own authenticated actor calls, so the port is never bound.
    """
    from ray.serve._private import replica

    replica.add_port_to_grpc_server = lambda _server, _address: 0


class ModelReplica:
    """The engine of one model version, as a Serve deployment."""

    def __init__(self, folder: str, settings: ServingSettings) -> None:
        close_internal_port()
        from ray_apps.serving.engine.torch_engine import TorchEngine

        self._engine = TorchEngine(Path(folder), settings)

    async def submit(self, request: GenerationRequest) -> AsyncIterator[Events]:
        """See ``interface.Engine.submit``."""
        async for events in self._engine.submit(request):
            yield events

    def check_health(self) -> None:
        """Serve replaces the replica if this raises."""
        if not self._engine.is_alive:
            raise RuntimeError("the engine's thread has ended")

    def __del__(self) -> None:
        with suppress(AttributeError):  # the engine was never built
            self._engine.close()


class GatewayReplica:
    """The gateway, as a Serve deployment. Serve asks ``__serve_build_asgi_app__`` for the application."""

    def __init__(self, settings: Settings) -> None:
        close_internal_port()
        self._settings = settings

    def __serve_build_asgi_app__(self) -> Any:  # noqa: PLW3201  the name is Serve's
        from ray_apps.serving.gateway import build_gateway

        follower = RolloutFollower(Path(self._settings.root))
        return build_gateway(
            self._settings.serving, ServeEngines(), follower, sink=_open_sink(self._settings), poll_interval_s=self._settings.loop.poll_interval_s
        )


def _open_sink(settings: Settings) -> Any:
    """Where inference.completed events go; None without Kafka."""
    if not settings.kafka.bootstrap_servers:
        return None
    from pipelines.kafka.events import EventProducer

    return EventProducer(settings).__enter__()


def _deploy_model(settings: Settings, version: int) -> None:
    """Start the application of a version; returns at once. Raises ModelNotFound."""
    from ray import serve

    serving = settings.serving
    deployment = serve.deployment(
        ModelReplica,
        name="engine",
        num_replicas=1,
        max_ongoing_requests=serving.max_concurrent_sequences + serving.max_queued_requests + SPARE_REQUESTS,
        graceful_shutdown_timeout_s=serving.request_timeout_s,
        graceful_shutdown_wait_loop_s=0.2,
        ray_actor_options={"num_cpus": serving.threads_per_engine, "num_gpus": 1 if serving.use_gpu else 0},
    )
    folder = Registry(Path(settings.root)).folder(version).resolve()
    application = deployment.bind(str(folder), serving)
    serve.run(application, name=f"{APPLICATION_PREFIX}{version}", route_prefix=None, blocking=False, _local_testing_mode=False)


def _deploy_gateway(settings: Settings) -> None:
    """Start the gateway and wait until it answers."""
    from ray import serve

    deployment = serve.deployment(
        serve.ingress()(GatewayReplica),
        name="gateway",
        num_replicas=1,
        max_ongoing_requests=10_000,
        graceful_shutdown_timeout_s=5,
        graceful_shutdown_wait_loop_s=0.2,
        ray_actor_options={"num_cpus": 0},
    )
    serve.run(deployment.bind(settings), name=GATEWAY, route_prefix="/")
