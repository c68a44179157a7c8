"""Children of the loop read exactly the settings of the loop."""

import argparse
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from pydantic import SecretStr

from ops.cli import train
from ops.cli.main import common_flags, settings_from
from ops.supervisor.services import answers, build_stack, serves
from ray_apps.loop.commands import child_environment, headrace
from ray_apps.loop.jobs import parse_evaluation, train_arguments
from ray_apps.loop.plan import TrainingOrder
from schemas.settings import Settings
from schemas.settings_sources import load_settings


def test_the_environment_carries_every_setting_over_whatever_the_file_says() -> None:
    settings = load_settings(
        "", {}, {"root": "/data/数据", "training.learning_rate": 1e-4, "quality.languages": ("en", "zh"), "kafka.sasl_plain_password": "a=b,c"}
    )
    file = '[training]\nlearning_rate = 0.5\n[dedup]\nnear = false\n[quality]\nlanguages = ["de"]\n'
    assert load_settings(file, child_environment(settings)) == settings


def test_defaults_survive_the_way_through_the_environment() -> None:
    assert load_settings("", child_environment(Settings())) == Settings()


def test_secrets_stand_in_the_environment_and_not_on_the_command_line() -> None:
    settings = load_settings("", {}, {"serving.api_keys": (SecretStr("geheim"),), "kafka.bootstrap_servers": "h:1"})
    assert "geheim" in child_environment(settings).values()
    assert not any("geheim" in word for word in headrace(settings, "serve"))


def test_without_a_broker_and_ray_both_are_started_and_their_addresses_are_handed_on() -> None:
    stack = build_stack(load_settings("", {}, {"broker.listen": "127.0.0.1:0", "serving.port": 0, "ray.dashboard_port": 0}))
    assert stack.names == ["broker", "ray", "ingest", "serve"]
    assert stack.settings.kafka.bootstrap_servers == stack.settings.broker.listen != "127.0.0.1:0"
    assert stack.settings.serving.port > 0 and stack.settings.ray.address.startswith("127.0.0.1:")
    assert stack.dashboard_url is None and stack.starts_ray and "--include-dashboard=false" in stack.services[1].command
    assert stack.services[2].needs == ("broker", "ray") and stack.services[2].dies_with == ("ray",)


def test_a_dashboard_is_opened_where_the_settings_want_one() -> None:
    stack = build_stack(load_settings("", {}, {"broker.listen": "127.0.0.1:0", "serving.port": 0}))
    assert stack.dashboard_url is not None and "--include-dashboard=true" in stack.services[1].command
    assert f"--dashboard-port={stack.dashboard_url.rpartition(':')[2]}" in stack.services[1].command


@pytest.mark.parametrize(
    ("status", "body", "is_ready"),
    [
        (200, b'{"champion": 1}', True),
        (503, b'{"champion": null, "missing": "a champion"}', True),
        (503, b'{"champion": 1, "missing": "the engine of champion 1"}', False),
        (503, b'{"error": {"message": "starting"}}', False),
        (404, b"Path not found", False),
    ],
    ids=["answers", "no-model-yet", "engine-loads", "gateway-starts", "proxy-only"],
)
def test_serve_is_ready_once_the_champion_answers_or_there_is_no_model_to_answer(status: int, body: bytes, is_ready: bool) -> None:
    class Health(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Health) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/health"
        try:
            assert serves(url)() is is_ready and answers(url)()
        finally:
            server.shutdown()
            thread.join()
    assert not serves(url)()


def test_a_given_broker_and_a_given_ray_are_used() -> None:
    stack = build_stack(load_settings("", {}, {"kafka.bootstrap_servers": "kafka:9092", "ray.address": "auto"}))
    assert stack.names == ["ingest", "serve"] and stack.services[0].dies_with == ()
    assert stack.dashboard_url is None


def test_an_order_is_a_command_that_the_command_line_takes() -> None:
    settings = load_settings("", {}, {"root": "/data", "kafka.bootstrap_servers": "h:1", "ray.address": "h:2"})
    arguments = train_arguments(TrainingOrder(dataset_version=3, parent_model=2))
    words = headrace(settings, "train", *arguments, "--json")
    parser = argparse.ArgumentParser()
    train.add_parser(parser.add_subparsers(), common_flags())
    args = parser.parse_args(words[words.index("ops.cli.main") + 1 :])
    assert (args.dataset, args.parent, args.json) == (3, "2", True)
    read = settings_from(args)
    assert (read.root, read.kafka.bootstrap_servers, read.ray.address) == ("/data", "h:1", "h:2")


def test_only_an_evaluation_is_taken_for_one() -> None:
    assert parse_evaluation(b'{"model": 1, "dataset_version": 2, "loss": 3.0, "perplexity": 20.1, "num_tokens": 5}') is not None
    for output in (b"", b"[]", b"null", b'{"loss": 1}', b"\xff", b'{"dataset_version": 2, "loss": "x", "perplexity": 1, "num_tokens": 1}'):
        assert parse_evaluation(output) is None
