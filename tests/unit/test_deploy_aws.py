"""What `ray up cluster.yaml` asks of AWS: moto's EC2 and IAM stand for it, as a server on the loopback interface.

`ray up` goes as far as the head's launch, and would then wait for ssh to an address that moto has invented: a program called ssh that refuses is
first on its PATH, so no packet leaves this machine.
"""

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
import yaml

from pipelines.runtime.ports import free_ports
from tests.deploy_files import DOCKER, REPOSITORY

REGION = "eu-central-1"
LAUNCH_S = 480.0
"""A head is there after 15 s on a quiet machine, most of it Ray's import."""
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}


@contextmanager
def aws() -> Iterator[str]:
    """A server that answers as AWS does, with the policies that AWS manages; its URL."""
    port = free_ports(1)[0]
    command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)]
    environment = os.environ | CREDENTIALS | {"MOTO_IAM_LOAD_MANAGED_POLICIES": "true"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            url, deadline_s = f"http://127.0.0.1:{port}", time.monotonic() + 60
            while not answers(f"{url}/moto-api/"):
                assert server.poll() is None and time.monotonic() < deadline_s, "moto does not start"
                time.sleep(0.1)
            yield url
        finally:
            server.kill()


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def filled_in(client: Any) -> tuple[str, dict[str, str]]:
    """cluster.yaml with the marked values, all of which exist; and these values."""
    values = {
        "ami-00000000000000000": client.describe_images()["Images"][0]["ImageId"],
        "subnet-00000000000000000": (subnet := client.describe_subnets()["Subnets"][0])["SubnetId"],
        "sg-00000000000000000": client.create_security_group(GroupName="headrace", Description="headrace", VpcId=subnet["VpcId"])["GroupId"],
    }
    text = (REPOSITORY / "cluster.yaml").read_text("utf-8")
    for marked, value in values.items():
        assert marked in text
        text = text.replace(marked, value)
    return text, dict(zip(("image", "subnet", "group"), values.values(), strict=True))


def machine_of_the_user(folder: Path, cluster_file: str) -> None:
    """A home folder with a token, a folder to start from, and programs that refuse every connection and write down what was asked."""
    for name in ("bin", "home/.ray", "work"):
        (folder / name).mkdir(parents=True)
    (folder / "home/.ray/auth_token").write_text("0" * 64)
    (folder / "work/cluster.yaml").write_text(cluster_file, encoding="utf-8")
    for name in installed_parts(yaml.safe_load(cluster_file)):
        (folder / "work" / name).symlink_to(REPOSITORY / name)
    for name in ("ssh", "rsync"):
        program = folder / "bin" / name
        program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {folder}/{name}.log\nexit 255\n')
        program.chmod(0o755)


def installed_parts(config: dict[str, Any]) -> set[str]:
    """What the file takes to the nodes from the folder where `ray up` is run."""
    return {source for source in config["file_mounts"].values() if not source.startswith("~")}


@contextmanager
def ray_up(folder: Path, url: str) -> Iterator[subprocess.Popen[bytes]]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_"))}
    path = f"{folder}/bin{os.pathsep}{os.environ['PATH']}"
    environment |= CREDENTIALS | {
        "PATH": path,
        "HOME": f"{folder}/home",
        "TMPDIR": str(folder),
        "AWS_ENDPOINT_URL": url,
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    command = [sys.executable, "-m", "ray.scripts.scripts", "up", "--yes", "--no-config-cache", "cluster.yaml"]
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, cwd=folder / "work", env=environment, stdout=log, stderr=subprocess.STDOUT) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def wait_for_ssh(folder: Path, process: subprocess.Popen[bytes]) -> str:
    """Until the head was launched and `ray up` wants to sign in; what it asked of ssh."""
    deadline_s = time.monotonic() + LAUNCH_S
    while not (folder / "ssh.log").exists():
        assert process.poll() is None and time.monotonic() < deadline_s, (folder / "log").read_text()[-3000:]
        time.sleep(0.2)
    return (folder / "ssh.log").read_text()


def test_nodes_get_what_is_installed_and_nothing_of_a_working_copy() -> None:
    """Ray hashes every file of every mount at each `ray up`, so .venv, .git and a root must not be among them."""
    config = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text("utf-8"))
    rules = (DOCKER / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
    assert installed_parts(config) == {rule[1:] for rule in rules if rule.startswith("!")}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(importlib.util.find_spec("moto") is None, reason="moto is not installed (requirements-peers.lock)")
def test_ray_up_launches_the_head_that_the_aws_file_describes(tmp_path: Path) -> None:
    with aws() as url:
        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
        client, iam = (boto3.client(name, region_name=REGION, endpoint_url=url, **keys) for name in ("ec2", "iam"))
        text, values = filled_in(client)
        config = yaml.safe_load(text)
        machine_of_the_user(tmp_path, text)
        with ray_up(tmp_path, url) as process:
            asked = wait_for_ssh(tmp_path, process)
        (reservation,) = client.describe_instances()["Reservations"]
        (head,) = reservation["Instances"]
        (volume,) = client.describe_volumes()["Volumes"]
        role = iam.get_instance_profile(InstanceProfileName="ray-autoscaler-v1")["InstanceProfile"]["Roles"][0]["RoleName"]
        policies = {policy["PolicyName"] for policy in iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"]}
        key_names = [pair["KeyName"] for pair in client.describe_key_pairs()["KeyPairs"]]
    wanted = config["available_node_types"]["head"]["node_config"]
    assert (head["InstanceType"], head["ImageId"], head["SubnetId"]) == (wanted["InstanceType"], values["image"], values["subnet"])
    assert [group["GroupId"] for group in head["SecurityGroups"]] == [values["group"]]
    (mapping,) = head["BlockDeviceMappings"]
    assert (mapping["DeviceName"], mapping["Ebs"]["VolumeId"]) == ("/dev/sda1", volume["VolumeId"])
    assert (volume["Size"], volume["VolumeType"], mapping["Ebs"]["DeleteOnTermination"]) == (200, "gp3", True)
    assert head["IamInstanceProfile"]["Arn"].endswith("instance-profile/ray-autoscaler-v1")
    assert policies == {"AmazonEC2FullAccess", "AmazonS3FullAccess"}
    assert key_names == [head["KeyName"]] and (tmp_path / "home" / ".ssh" / f"{head['KeyName']}.pem").stat().st_mode & 0o777 == 0o600
    tags = {tag["Key"]: tag["Value"] for tag in head["Tags"]}
    assert tags["ray-cluster-name"] == config["cluster_name"] and (tags["ray-node-type"], tags["ray-user-node-type"]) == ("head", "head")
    assert f"{config['auth']['ssh_user']}@{head['PublicIpAddress']}" in asked
