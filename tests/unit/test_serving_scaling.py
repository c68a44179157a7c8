"""How many engines and gateways there are to be, and when an engine counts as one that answers."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ray_apps.serving.deployments import gateway_application, model_application
from ray_apps.serving.engine_pool import status_of
from ray_apps.serving.scaling import SEQUENCES, engine_replicas
from schemas.settings import ServingSettings, Settings
from tests.model_factory import make_model

pytestmark = pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince20")  # Ray Serve's own models, when it is imported


def context(requests: float, told: dict[str, float] | None, target: float = 4.0) -> Any:
    metrics = {} if told is None else {SEQUENCES: told}
    return SimpleNamespace(
        total_num_requests=requests, aggregated_metrics=metrics, config=SimpleNamespace(get_target_ongoing_requests=lambda: target)
    )


@pytest.mark.parametrize(
    ("requests", "told", "replicas"),
    [
        (8, {"a": 8.0}, 2.0),
        (2, {"a": 16.0}, 4.0),  # two requests for eight answers each
        (20, {"a": 4.0, "b": 4.0}, 5.0),  # twelve wait in the gateways
        (8, None, 2.0),  # no engine has told anything yet
        (0, {"a": 0.0}, 0.0),
    ],
)
def test_engines_are_scaled_by_sequences_and_by_requests_that_reach_no_engine(
    requests: float, told: dict[str, float] | None, replicas: float
) -> None:
    assert engine_replicas(context(requests, told)) == (replicas, {})


def test_the_policy_is_what_serve_calls_even_where_our_code_is_not_installed(tmp_path: Path) -> None:
    import pickletools

    make_model(tmp_path, version=1)
    settings = Settings(root=str(tmp_path), serving=ServingSettings(max_concurrent_sequences=4, max_engine_replicas=3))
    policy = model_application(settings, 1).target._bound_deployment._deployment_config.autoscaling_config.policy
    assert policy.get_policy()(context(0, {"a": 12.0})) == (3.0, {})
    named = {argument for _, argument, _ in pickletools.genops(policy.get_serialized_policy_def()) if isinstance(argument, str)}
    assert "engine_replicas" in named and not any(name.startswith(("pipelines", "schemas")) for name in named)


@pytest.mark.parametrize(("sequences", "replicas"), [(3.0, 1), (12.0, 3), (0.0, 1)])
def test_serve_makes_as_many_replicas_of_it_as_the_bounds_allow(tmp_path: Path, sequences: float, replicas: int) -> None:
    """Serve's own wrapping, configuration and context; Serve itself applies the bounds."""
    from ray.serve._private.common import DeploymentID, ReplicaID
    from ray.serve.autoscaling_policy import _apply_autoscaling_config
    from ray.serve.config import AutoscalingContext

    make_model(tmp_path, version=1)
    serving = ServingSettings(max_concurrent_sequences=4, max_engine_replicas=3, scale_up_delay_s=0, scale_down_delay_s=0)
    config = model_application(Settings(root=str(tmp_path), serving=serving), 1).target._bound_deployment._deployment_config.autoscaling_config
    deployment = DeploymentID(name="engine", app_name="a")
    seen = AutoscalingContext(
        deployment_id=deployment,
        deployment_name="engine",
        app_name="a",
        current_num_replicas=1,
        target_num_replicas=1,
        running_replicas=[],
        total_num_requests=lambda: 1.0,
        total_queued_requests=None,
        aggregated_metrics=lambda: {SEQUENCES: {ReplicaID("one", deployment): sequences}},
        raw_metrics=None,
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=3,
        policy_state={},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=0.0,
        config=config,
    )
    assert _apply_autoscaling_config(config.policy.get_policy())(seen)[0] == replicas


def test_an_engine_tells_serve_how_many_sequences_run_and_wait(tmp_path: Path) -> None:
    from ray_apps.serving.deployments import ModelReplica

    make_model(tmp_path, version=1)
    replica = ModelReplica(str(tmp_path), 1, ServingSettings())
    assert replica.record_autoscaling_stats() == {SEQUENCES: 0.0}


def gateway(**serving: Any) -> Any:
    return gateway_application(Settings(serving=ServingSettings(**serving))).target


def test_there_are_as_many_gateways_as_the_settings_say_and_one_deployment_that_adds_up_the_numbers_of_several() -> None:
    one = gateway()
    assert one._bound_deployment._deployment_config.num_replicas == 1 and len(one._bound_deployment.init_args) == 1
    three = gateway(min_gateway_replicas=3, max_gateway_replicas=3)
    assert three._bound_deployment._deployment_config.num_replicas == 3
    assert three._bound_deployment.init_args[1]._bound_deployment.name == "metrics"
    scaled = gateway(max_gateway_replicas=4, target_gateway_requests=50.0, scale_up_delay_s=1.0, scale_down_delay_s=2.0)
    scaling = scaled._bound_deployment._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (1, 4, 50)
    assert (scaling.upscale_delay_s, scaling.downscale_delay_s) == (1.0, 2.0)


@pytest.mark.parametrize("part", ["engine", "gateway"])
def test_a_maximum_below_the_minimum_is_refused(part: str) -> None:
    with pytest.raises(ValueError, match=f"max_{part}_replicas is 1, below min_{part}_replicas, which is 2"):
        ServingSettings.model_validate({f"min_{part}_replicas": 2})


STATUS = {"RUNNING": "HEALTHY", "DEPLOYING": "UPDATING", "UNHEALTHY": "UNHEALTHY", "DEPLOY_FAILED": "DEPLOY_FAILED", "DELETING": "HEALTHY"}


@pytest.mark.parametrize(
    ("status", "replicas", "seen"),
    [
        ("RUNNING", {"RUNNING": 2}, "RUNNING"),
        ("UNHEALTHY", {"RUNNING": 1, "STARTING": 1}, "RUNNING"),  # one of two has died
        ("UNHEALTHY", {"RUNNING": 0, "STARTING": 1}, "UNHEALTHY"),
        ("DEPLOYING", {"RUNNING": 1, "STARTING": 1}, "RUNNING"),  # the second waits for a node
        ("DEPLOYING", {"STARTING": 2}, "DEPLOYING"),
        ("UNHEALTHY", {"PENDING_MIGRATION": 1, "STARTING": 1}, "RUNNING"),  # its node is drained
        ("DELETING", {"RUNNING": 1}, "DELETING"),
        ("DEPLOY_FAILED", {}, "DEPLOY_FAILED"),
    ],
)
def test_an_engine_answers_as_long_as_one_of_its_replicas_does(status: str, replicas: dict[str, int], seen: str) -> None:
    from ray.serve._private.common import DeploymentStatus, DeploymentStatusTrigger, ReplicaState
    from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, DeploymentStatusOverview

    states = {ReplicaState(state): count for state, count in replicas.items()}
    deployment = DeploymentStatusOverview(DeploymentStatus(STATUS[status]), DeploymentStatusTrigger.UNSPECIFIED, states, "")
    assert status_of(ApplicationStatusOverview(ApplicationStatus(status), "", 0.0, {"engine": deployment})) == seen
