"""The cluster files are what `ray up` of the pinned Ray accepts, and avoid the traps that cost somebody a day."""

import re
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
AWS = REPOSITORY / "cluster.yaml"
ON_PREMISE = REPOSITORY / "ops" / "deploy" / "cluster-onprem.yaml"


def load(path: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(path.read_text(encoding="utf-8")))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("path", [AWS, ON_PREMISE], ids=["aws", "on-premise"])
def test_ray_accepts_the_cluster_file(path: Path) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(load(path)))


@pytest.mark.parametrize("path", [AWS, ON_PREMISE], ids=["aws", "on-premise"])
def test_every_node_gets_the_lock_the_token_and_the_network_interface(path: Path) -> None:
    config = load(path)
    assert any("requirements.lock" in command for command in config["setup_commands"])
    assert any(target.endswith(".ray/auth_token") for target in config["file_mounts"])
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert "RAY_AUTH_MODE=token" in commands[-1] and "GLOO_SOCKET_IFNAME=" in commands[-1] and "--metrics-export-port=8090" in commands[-1]
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]


def test_every_value_to_fill_in_is_marked() -> None:
    lines = AWS.read_text(encoding="utf-8").splitlines()
    marked = [re.sub(r"^[\s-]*(mountpoint|\w+).*", r"\1", line) for line in lines if "# CHANGE" in line]
    assert marked == ["region", "ImageId", "SubnetIds", "SecurityGroupIds", "mountpoint"]
    assert any("the five values marked CHANGE" in line for line in lines)
    node_types = load(AWS)["available_node_types"].values()
    assert all({"ImageId", "SubnetIds", "SecurityGroupIds"} <= node["node_config"].keys() for node in node_types)


def test_ray_up_finds_the_client_of_the_cloud_in_the_lock() -> None:
    lock = (REPOSITORY / "requirements.lock").read_text(encoding="utf-8").splitlines()
    assert any(line.startswith("boto3==") for line in lock)


def test_the_image_has_the_ray_that_the_project_pins() -> None:
    pinned = next(line for line in (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8").splitlines() if '"ray[' in line)
    version = load(AWS)["docker"]["image"].partition(":")[2].partition("-")[0]
    assert f">={version.rpartition('.')[0]}" in pinned


def test_ray_up_reads_and_takes_to_on_premise_nodes_what_they_install_and_nothing_that_changes_by_itself() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    packages = [pattern.rstrip("*") for pattern in project["tool"]["setuptools"]["packages"]["find"]["include"]]
    needed = [*packages, "pyproject.toml", "requirements.lock", project["project"]["readme"], *project["project"]["license-files"]]
    mounts = load(ON_PREMISE)["file_mounts"]
    assert mounts == {f"/opt/headrace/source/{name}": name for name in needed} | {"~/.ray/auth_token": "~/.ray/auth_token"}


def test_spot_nodes_are_asked_for_as_such_for_one_role_and_a_watch_waits_for_the_notice() -> None:
    config = load(AWS)
    spot = {name for name, node in config["available_node_types"].items() if "InstanceMarketOptions" in node["node_config"]}
    assert spot == {"gpu_spot"} and config["head_node_type"] not in spot
    kind = config["available_node_types"]["gpu_spot"]
    assert kind["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    others = [node["resources"] for name, node in config["available_node_types"].items() if name not in spot]
    assert not any(kind["resources"].keys() & has.keys() for has in others), "who does not name it stays on other nodes"
    (command,) = [command for command in config["worker_start_ray_commands"] if "python -m" in command]
    module = re.search(r"python -m (\S+)", command)
    assert module and find_spec(module[1]) is not None and "RAY_AUTH_MODE=token" in command


def test_on_premise_workers_are_started_at_all_and_stopped_too() -> None:
    config = load(ON_PREMISE)
    assert "RAY_enable_autoscaler_v2=0" in config["head_start_ray_commands"][-1]
    assert {"head_ip", "worker_ips"} <= config["provider"].keys() and "available_node_types" not in config
    assert config["min_workers"] == config["max_workers"] == len(config["provider"]["worker_ips"])
    assert any("/usr/local/bin" in command and "bin/ray" in command for command in config["setup_commands"])


def test_a_machine_that_joins_by_hand_gets_what_ray_up_takes_to_the_others() -> None:
    comments = ON_PREMISE.read_text(encoding="utf-8")
    (sources, target), (token, _) = re.findall(r"^#   rsync -aR (.*) NEW:(.*)$", comments, re.MULTILINE)
    named = {f"{target}{name}": name for name in sources.split()} | {token.replace("/./", "/"): token.replace("/./", "/")}
    assert named == load(ON_PREMISE)["file_mounts"]
