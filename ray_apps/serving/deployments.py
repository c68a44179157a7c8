"""The Serve deployments: an engine per model version, and the gateways.

Every gateway is the same to a client: who answers follows from the rollout's state and the request's key (router.py), which all of them read from
the root, each within one poll. What cannot be the same is divided (shadow copies, seeds) or added up (metrics, by ``MetricsReplica``).
"""

import importlib
import logging
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.runtime.roles import SHARE, node_resources
from pipelines.runtime.tracing import start_tracing, stop_tracing
from pipelines.storage.mirror import root_name
from pipelines.text.log_lines import log_about
from ray_apps.models.registry import Registry
from ray_apps.serving.engine.interface import Engine, EngineHealth, Events, GenerationRequest
from ray_apps.serving.engine_pool import ServeEngines
from ray_apps.serving.following import RolloutFollower
from ray_apps.serving.metrics import Snapshot
from ray_apps.serving.metrics_sum import MetricsSum
from ray_apps.serving.naming import application_names
from ray_apps.serving.scaling import SEQUENCES, engine_replicas
from schemas.settings import ServingSettings, Settings

_log = logging.getLogger(__name__)
SPARE_REQUESTS = 8
"""Requests beyond the engine's own limit that reach it, so that the engine refuses with 429 instead of Serve queueing without bound."""
MAX_GATEWAY_REQUESTS = 10_000
"""HTTP requests under way; engines refuse what they cannot take long before."""
DRAIN_POLL_S = 0.2
HEAD_NODE = "node:__internal_head__"
"""Resource that Ray gives to the head."""
LOGGING = {"log_level": "WARNING", "enable_access_log": False}
"""Serve's own access log repeats every request twice; counts are in the metrics."""


def close_internal_port() -> None:
    """Keep Serve's replicas from opening their second way in.

    Ray Serve 2.60 starts in every replica a gRPC server for calls between deployments, on all interfaces, without authentication, that
    unpickles what it is sent. We call replicas through Ray's own authenticated actor calls, so the port is never bound.
    """
    replica: Any = importlib.import_module("ray.serve._private.replica")
    replica.add_port_to_grpc_server = lambda _server, _address: 0


def load_engine(root: Path, version: int, settings: ServingSettings) -> Engine:
    """The built-in engine of a registered version. Raises ShardCorrupt if its files are not those that were registered."""
    from ray_apps.serving.engine.torch_engine import TorchEngine

    return TorchEngine(Registry(root).verified_folder(version), settings)


class ModelReplica:
    """The engine of one model version, as a Serve deployment."""

    def __init__(self, root: str, version: int, settings: ServingSettings) -> None:
        close_internal_port()
        log_about(f"model {version} of {root_name(root)}")
        started_s = time.monotonic()
        self._engine = load_engine(Path(root), version, settings)
        _log.info("loaded in %.1f s", time.monotonic() - started_s)

    async def submit(self, request: GenerationRequest) -> AsyncIterator[Events]:
        """See ``interface.Engine.submit``."""
        async for events in self._engine.submit(request):
            yield events

    async def health(self) -> EngineHealth:
        """See ``interface.Engine.health``."""
        return self._engine.health()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Serve asks for this every few seconds where engines are scaled; see scaling.py."""
        stats = self._engine.stats()
        return {SEQUENCES: float(stats.num_running + stats.num_waiting)}

    def check_health(self) -> None:
        """Serve replaces the replica if this raises."""
        health = self._engine.health()
        if not health.ok:
            raise RuntimeError(health.reason)

    def __del__(self) -> None:
        with suppress(AttributeError):  # the engine was never built
            self._engine.close()


class GatewayReplica:
    """A gateway, as a Serve deployment. Serve asks ``__serve_build_asgi_app__`` for the application."""

    def __init__(self, settings: Settings, metrics: Any = None) -> None:
        """``metrics``: handle of the MetricsReplica, where there may be several gateways."""
        close_internal_port()
        log_about(f"gateway of {root_name(settings.root)}", settings.telemetry.log_level)
        self._settings = settings
        self._metrics = metrics
        self._sink = _event_sink(settings)
        start_tracing(settings.telemetry, "headrace-gateway")

    def __serve_build_asgi_app__(self) -> Any:
        from ray_apps.serving.gateway import build_gateway

        return build_gateway(
            self._settings.serving,
            ServeEngines(application_names(self._settings.root)),
            RolloutFollower(Path(self._settings.root)),
            sink=self._sink,
            poll_interval_s=self._settings.loop.poll_interval_s,
            behind_edge=True,
            **({} if self._metrics is None else self._one_of_several()),
        )

    def _one_of_several(self) -> dict[str, Any]:
        from ray import serve

        from ray_apps.serving.gateway import Place

        context = serve.get_replica_context()
        place = Place(rank=context.rank.rank, most=self._settings.serving.max_gateway_replicas)
        return {"place": place, "add_up": partial(self._add_up, context.replica_tag)}

    async def _add_up(self, replica: str, snapshot: Snapshot) -> bytes:
        """Tell this gateway's numbers; returns the text that adds up those of all."""
        text: bytes = await self._metrics.add.remote(replica, snapshot)
        return text

    def __del__(self) -> None:
        with suppress(AttributeError):
            if self._sink is not None:
                self._sink.__exit__(None, None, None)
            stop_tracing()


class MetricsReplica:
    """Adds up the numbers of several gateways, as a Serve deployment: a scrape reaches one of them, and is to tell of all."""

    def __init__(self) -> None:
        close_internal_port()
        self._sum = MetricsSum()

    async def add(self, replica: str, snapshot: Snapshot) -> bytes:
        """Take the newest numbers of a gateway; returns the text of all."""
        self._sum.take(replica, snapshot, time.monotonic())
        return self._sum.render(time.monotonic())


def _event_sink(settings: Settings) -> Any:
    """Where inference.completed events go; None without Kafka."""
    if not settings.kafka.bootstrap_servers:
        return None
    from pipelines.kafka.events import EventProducer

    return EventProducer(settings).__enter__()


def model_application(settings: Settings, version: int) -> Any:
    """What to run for a model version, under its name (naming.py). Raises ModelNotFound."""
    from ray import serve
    from ray.serve import RunTarget

    serving = settings.serving
    root = Path(settings.root).resolve()
    Registry(root).folder(version)
    deployment: Any = serve.deployment(
        ModelReplica,
        name="engine",
        **_replicas(serving),
        max_ongoing_requests=serving.max_concurrent_sequences + serving.max_queued_requests + SPARE_REQUESTS,
        graceful_shutdown_timeout_s=serving.drain_timeout_s,
        graceful_shutdown_wait_loop_s=DRAIN_POLL_S,
        ray_actor_options={
            "num_cpus": serving.threads_per_engine,
            "num_gpus": 1 if serving.use_gpu else 0,
            "resources": node_resources(settings.ray.engine_nodes, "ray.engine_nodes"),
        },
    )
    target = deployment.bind(str(root), version, serving)
    return RunTarget(target=target, name=application_names(settings.root).model(version), route_prefix=None, logging_config=LOGGING)


def _replicas(serving: ServingSettings) -> dict[str, Any]:
    """How many replicas an engine has: a fixed number, or Serve's autoscaling between two numbers."""
    policy = {"policy_function": engine_replicas}
    target = serving.target_engine_requests or serving.max_concurrent_sequences
    return _between(serving.min_engine_replicas, serving.max_engine_replicas, serving, target_ongoing_requests=target, policy=policy)


def _between(fewest: int, most: int, serving: ServingSettings, **scaling: Any) -> dict[str, Any]:
    """Options of a deployment for so many replicas."""
    if fewest == most:
        return {"num_replicas": fewest}
    delays = {"upscale_delay_s": serving.scale_up_delay_s, "downscale_delay_s": serving.scale_down_delay_s}
    return {"autoscaling_config": {"min_replicas": fewest, "max_replicas": most} | delays | scaling}


def gateway_application(settings: Settings) -> Any:
    """What to run as the gateway: one process or several, and one that adds up their numbers if there may be several."""
    from ray import serve
    from ray.serve import RunTarget

    serving = settings.serving
    deployment: Any = serve.deployment(
        serve.ingress()(GatewayReplica),
        name="gateway",
        **_between(serving.min_gateway_replicas, serving.max_gateway_replicas, serving, target_ongoing_requests=serving.target_gateway_requests),
        max_ongoing_requests=MAX_GATEWAY_REQUESTS,
        graceful_shutdown_timeout_s=serving.drain_timeout_s,
        graceful_shutdown_wait_loop_s=DRAIN_POLL_S,
        ray_actor_options={"num_cpus": 0, "resources": _gateway_resources(settings)},
    )
    shared = () if serving.max_gateway_replicas == 1 else (_metrics_deployment().bind(),)
    target = deployment.bind(settings, *shared)
    return RunTarget(target=target, name=application_names(settings.root).gateway, route_prefix="/", logging_config=LOGGING)


def _gateway_resources(settings: Settings) -> dict[str, float]:
    """If only the head has a proxy, gateways run there too: then the death of another node does not stop them."""
    return {HEAD_NODE: SHARE} if settings.serving.is_local else node_resources(settings.ray.gateway_nodes, "ray.gateway_nodes")


def _metrics_deployment() -> Any:
    """On the head, which no autoscaler and no spot market takes away."""
    from ray import serve

    options = {"num_cpus": 0, "resources": {HEAD_NODE: SHARE}}
    return serve.deployment(MetricsReplica, name="metrics", num_replicas=1, max_ongoing_requests=MAX_GATEWAY_REQUESTS, ray_actor_options=options)
