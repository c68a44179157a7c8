"""Putting the first model into service, and ports."""

import inspect
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ops.supervisor.services import build_stack
from ray_apps.rollout.log import RolloutLog
from ray_apps.serving import app
from ray_apps.serving.app import _free_port, start
from ray_apps.serving.deployments import gateway_application, model_application
from ray_apps.serving.environment import SERVE_ENVIRONMENT
from ray_apps.serving.reconciler import bootstrap_newest
from schemas.errors import ServiceFailed, SettingsError
from schemas.rollout import Decision
from schemas.settings import ServingSettings, Settings
from tests.model_factory import make_model
from tests.serving_harness import publish_state


def test_without_models_nothing_is_put_into_service(tmp_path: Path) -> None:
    assert bootstrap_newest(Settings(root=str(tmp_path))) is None
    assert RolloutLog(tmp_path).latest() is None


def test_the_newest_model_becomes_champion_once(tmp_path: Path) -> None:
    make_model(tmp_path, version=1)
    make_model(tmp_path, version=2)
    state = bootstrap_newest(Settings(root=str(tmp_path)))
    assert state is not None and (state.champion, state.decision, state.number) == (2, Decision.BOOTSTRAP, 1)
    assert RolloutLog(tmp_path).latest() == state
    make_model(tmp_path, version=3)
    assert bootstrap_newest(Settings(root=str(tmp_path))) is None


def test_a_rollout_that_a_person_began_is_left_alone(tmp_path: Path) -> None:
    make_model(tmp_path, version=1)
    publish_state(tmp_path, champion=1)
    assert bootstrap_newest(Settings(root=str(tmp_path))) is None


def test_a_port_that_is_taken_is_an_error_that_says_so() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=rf"127.0.0.1:{port} is in use"):
            _free_port("127.0.0.1", port)
    assert _free_port("127.0.0.1", 0) > 0


@pytest.fixture
def slow_serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, str]]]:
    """Ray Serve gives up waiting for its proxy; afterwards its status is each of these in turn, and the last one for good."""
    from ray import serve

    statuses: list[dict[str, str]] = [{}]

    def time_out(**_: object) -> None:
        raise TimeoutError("HTTP proxies not available after 60s.")

    monkeypatch.setattr(serve, "status", lambda: SimpleNamespace(proxies=statuses.pop(0) if len(statuses) > 1 else statuses[0]))
    monkeypatch.setattr(serve, "start", time_out)
    yield statuses


@pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince20")  # Ray Serve's own models, when it is imported
def test_a_proxy_that_needs_more_than_a_minute_is_waited_for(slow_serve: list[dict[str, str]]) -> None:
    slow_serve += [{}, {"node": "STARTING"}, {"node": "HEALTHY"}]
    assert start(Settings(serving=ServingSettings(port=0))).startswith("http://127.0.0.1:")


@pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince20")
def test_a_proxy_that_never_starts_is_one_line(slow_serve: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "PROXIES_START_S", 0.0)
    with pytest.raises(ServiceFailed, match="proxy did not start in 0 s"):
        start(Settings(serving=ServingSettings(port=0)))


@pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince20")
@pytest.mark.parametrize("name", SERVE_ENVIRONMENT)
def test_what_serve_is_told_by_its_environment_is_what_it_reads(name: str) -> None:
    from ray.serve._private import constants

    assert f'"{name}"' in inspect.getsource(constants)


@pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince20")  # Ray Serve's own models, when it is imported
def test_one_setting_says_how_long_everything_that_is_stopped_may_finish_its_answers(tmp_path: Path) -> None:
    make_model(tmp_path, version=1)
    serving = ServingSettings(drain_timeout_s=77.0, request_timeout_s=5.0)
    settings = Settings(root=str(tmp_path), serving=serving)
    applications = [gateway_application(settings), model_application(settings, 1)]
    assert {one.target._bound_deployment._deployment_config.graceful_shutdown_timeout_s for one in applications} == {77.0}
    stops = {service.name: service.stop_timeout_s for service in build_stack(settings).services}
    assert stops["serve"] - stops["ingest"] == 77.0, "the supervisor waits for the answers too"


@pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince20")  # Ray Serve's own models, when it is imported
def test_engines_have_a_number_of_replicas_or_are_scaled_between_two_by_the_requests_that_fill_one(tmp_path: Path) -> None:
    make_model(tmp_path, version=1)

    def deployment(**values: Any) -> Any:
        serving = ServingSettings(max_concurrent_sequences=4, **values)
        return model_application(Settings(root=str(tmp_path), serving=serving), 1).target._bound_deployment._deployment_config

    fixed = deployment(min_engine_replicas=2, max_engine_replicas=2)
    assert (fixed.num_replicas, fixed.autoscaling_config) == (2, None)
    scaled = deployment(max_engine_replicas=3, scale_up_delay_s=1.0, scale_down_delay_s=2.0).autoscaling_config
    assert (scaled.min_replicas, scaled.max_replicas, scaled.target_ongoing_requests) == (1, 3, 4)
    assert (scaled.upscale_delay_s, scaled.downscale_delay_s) == (1.0, 2.0)
    assert deployment(max_engine_replicas=3, target_engine_requests=1.5).autoscaling_config.target_ongoing_requests == 1.5


@pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince20")  # Ray Serve's own models, when it is imported
def test_the_gateway_runs_on_the_head_where_only_the_head_has_a_proxy() -> None:
    def resources(**values: Any) -> Any:
        return gateway_application(Settings(serving=ServingSettings(**values))).target._bound_deployment.ray_actor_options["resources"]

    assert list(resources()) == ["node:__internal_head__"]
    assert not resources(host="0.0.0.0", api_keys=["secret"])


@pytest.mark.parametrize(("host", "url"), [("::1", "http://[::1]:1"), ("127.0.0.1", "http://127.0.0.1:1"), ("localhost", "http://localhost:1")])
def test_the_url_of_an_ipv6_address_has_brackets_and_can_be_asked(host: str, url: str) -> None:
    stack = build_stack(Settings(serving=ServingSettings(host=host, port=1)))
    assert stack.settings.serving.url == stack.api_url == url
    assert stack.services[-1].name == "serve"
    assert not stack.services[-1].is_ready(), "nobody listens there, which is no error"
