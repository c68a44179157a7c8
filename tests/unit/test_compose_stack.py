"""The compose file keeps to the compose specification, publishes nothing beyond this machine, and names settings that exist.

No container is started here: there is no registry to take the other images from.
"""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from ops.supervisor.ray_head import RayPorts, head_command, head_folder
from pipelines.runtime.ports import free_ports
from schemas.settings import Settings
from tests.apache_kafka import QUICK_JAVA, require_kafka
from tests.deploy_files import DOCKER, documents, settings_of
from tests.dockerfile import defaults

COMPOSE, GPU = DOCKER / "compose.yaml", DOCKER / "compose.gpu.yaml"
(STACK,) = documents(COMPOSE)
SERVICES: dict[str, dict[str, Any]] = STACK["services"]
OURS = SERVICES["headrace"]["environment"]


def settings() -> Settings:
    return settings_of({name: value.replace("${API_KEY:", "") for name, value in OURS.items() if name.startswith("HEADRACE_")})


@pytest.mark.parametrize("path", [COMPOSE, GPU], ids=lambda path: path.name)
def test_the_file_keeps_to_the_compose_specification(path: Path) -> None:
    compose_spec = pytest.importorskip("compose_spec", reason="compose-spec is not installed (requirements-peers.lock)")
    compose_spec.PyCompose.from_yaml(yaml.safe_dump(documents(path)[0]))


def test_every_port_is_published_on_the_loopback_interface() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert len(published) == 5 and all(re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port) for port in published)


def test_no_secret_stands_in_the_file() -> None:
    assert OURS["HEADRACE_SERVING__API_KEYS"].startswith("${API_KEY:?") and STACK["secrets"] == {"api_key": {"environment": "API_KEY"}}
    assert not re.search(r"(?i)(password|token|secret)\w*\s*[:=]\s*\S", COMPOSE.read_text("utf-8").replace("secrets:", ""))


@pytest.mark.parametrize("name", SERVICES)
def test_every_container_is_pinned_bounded_and_without_rights(name: str) -> None:
    service = SERVICES[name]
    assert re.search(r":v?\d+\.\d+\.\d+(-cpu)?$", service["image"])
    assert service["mem_limit"] and service["cpus"] and service["restart"] == "unless-stopped"
    assert service["cap_drop"] == ["ALL"] and "no-new-privileges:true" in service["security_opt"] and "privileged" not in service
    assert "healthcheck" in service or name in ("headrace", "collector")  # the image's own; an image without a shell


def test_what_lasts_is_in_named_volumes() -> None:
    named = {volume.partition(":")[0] for service in SERVICES.values() for volume in service["volumes"] if not volume.startswith(".")}
    assert named == STACK["volumes"].keys()
    bound = [volume.split(":") for service in SERVICES.values() for volume in service["volumes"] if volume.startswith(".")]
    assert bound and all(mode == "ro" and (DOCKER / source).exists() for source, _, mode in bound)


def test_headrace_understands_its_environment() -> None:
    found = settings()
    assert found.kafka.bootstrap_servers == "kafka:29092" and found.serving.host == found.ray.dashboard_host == "0.0.0.0"
    listeners = SERVICES["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"].split(",")
    assert f"INTERNAL://{found.kafka.bootstrap_servers}" in listeners and "HOST://127.0.0.1:9092" in listeners
    published = {int(port.rpartition(":")[2]) for port in SERVICES["headrace"]["ports"]}
    assert {found.serving.port, found.ray.dashboard_port} < published
    seconds = int(SERVICES["headrace"]["stop_grace_period"].removesuffix("s"))
    assert seconds > found.serving.drain_timeout_s + 15


def test_the_dashboard_of_rays_head_listens_where_the_settings_say() -> None:
    ports = RayPorts(gcs=1, client_server=2, dashboard=8265, dashboard_agent=3, metrics=4)
    for chosen, host in ((settings(), "0.0.0.0"), (Settings(), "127.0.0.1")):
        assert f"--dashboard-host={host}" in head_command(chosen.ray, ports, Path("/tmp/ray"))


def test_the_gpu_variant_changes_what_a_gpu_needs() -> None:
    (service,) = (documents(GPU)[0]["services"]["headrace"],)
    assert service["build"] == SERVICES["headrace"]["build"] | {"args": {"FLAVOR": "gpu"}}
    assert SERVICES["headrace"]["build"]["args"] == {"FLAVOR": defaults(DOCKER / "Dockerfile")["FLAVOR"]}
    found = settings_of(service["environment"])
    assert found.training.use_gpu and found.training.num_workers == 1


def test_traces_go_to_the_collector_that_listens_for_them() -> None:
    (config,) = documents(DOCKER / "collector.yaml")
    endpoint = config["receivers"]["otlp"]["protocols"]["http"]["endpoint"]
    assert settings().telemetry.otlp_endpoint == f"http://collector:{endpoint.rpartition(':')[2]}"
    pipeline = config["service"]["pipelines"]["traces"]
    for kind in ("receivers", "processors", "exporters"):
        assert set(pipeline[kind]) == config[kind].keys()


def test_prometheus_asks_ray_the_gateway_and_ingest_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = {job["job_name"]: job for job in documents(DOCKER / "prometheus.yaml")[0]["scrape_configs"]}
    found = settings()
    assert jobs["gateway"]["static_configs"] == [{"targets": [f"127.0.0.1:{found.serving.port}"]}]
    assert jobs["gateway"]["authorization"]["credentials_file"] == f"/run/secrets/{SERVICES['prometheus']['secrets'][0]}"
    assert jobs["ingest"]["static_configs"] == [{"targets": [f"127.0.0.1:{found.telemetry.metrics_port}"]}]
    assert SERVICES["prometheus"]["network_mode"] == "service:headrace"
    monkeypatch.setattr("tempfile.gettempdir", lambda: OURS["TMPDIR"])
    monkeypatch.setattr("os.getuid", lambda: 1000)
    folder = head_folder(Path("/data"))
    assert jobs["ray"]["file_sd_configs"] == [{"files": [f"{folder}/prom_metrics_service_discovery.json"]}]


def test_grafana_finds_prometheus_and_the_dashboards_that_ray_writes() -> None:
    (source,) = documents(DOCKER / "grafana" / "datasources" / "prometheus.yaml")[0]["datasources"]
    assert source["url"] == "http://headrace:9090" and source["type"] == "prometheus"
    (provider,) = documents(DOCKER / "grafana" / "dashboards" / "ray.yaml")[0]["providers"]
    assert provider["options"]["path"] == OURS["RAY_METRICS_GRAFANA_DASHBOARD_OUTPUT_DIR"]
    mounts = [name for name, service in SERVICES.items() if any(volume.startswith("ray:/ray") for volume in service["volumes"])]
    assert mounts == ["headrace", "prometheus", "grafana"]


def broker_properties(ports: dict[str, int], data: Path) -> str:
    """What the image makes of its variables (``KAFKA_NODE_ID`` is ``node.id``), with addresses of this machine instead of a container's."""
    lines = []
    for name, value in SERVICES["kafka"]["environment"].items():
        if name == "KAFKA_HEAP_OPTS":
            continue
        here = re.sub(r"(\w+)://[^:,]*:(\d+)", lambda found: f"{found[1]}://127.0.0.1:{ports[found[2]]}", value)
        here = here.replace("1@kafka:9093", f"1@127.0.0.1:{ports['9093']}").replace("/var/lib/kafka/data", str(data))
        lines.append(f"{name.removeprefix('KAFKA_').lower().replace('_', '.')}={here}")
    return "\n".join(lines)


@pytest.mark.slow
def test_apache_kafka_starts_with_the_settings_of_the_stack(tmp_path: Path) -> None:
    from confluent_kafka.admin import AdminClient

    java = ["java", "-Xmx512m", "-cp", f"{require_kafka() / 'lib'}/*"]
    ports = dict(zip(("29092", "9092", "9093"), free_ports(3), strict=True))
    config = tmp_path / "server.properties"
    config.write_text(broker_properties(ports, tmp_path / "data"))
    form = [*java, "kafka.tools.StorageTool", "format", "-t", "5L6g3nShT-eMCtK--X86sw", "-c", str(config)]
    subprocess.run(form, env=QUICK_JAVA, check=True, capture_output=True, timeout=120)
    with subprocess.Popen([*java, "kafka.Kafka", str(config)], env=QUICK_JAVA, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as broker:
        try:
            for listener in ("29092", "9092"):
                metadata = AdminClient({"bootstrap.servers": f"127.0.0.1:{ports[listener]}", "log_level": 0}).list_topics(timeout=120)
                assert [f"{one.host}:{one.port}" for one in metadata.brokers.values()] == [f"127.0.0.1:{ports[listener]}"]
        finally:
            broker.terminate()
            broker.wait(60)
