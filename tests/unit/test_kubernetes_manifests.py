"""The Kubernetes manifests keep to their schemas, agree with the lock and the settings, and avoid faults that only a cluster would show.

No cluster is run here. KubeRay's fields are in tests/kuberay.py; Kubernetes' own schemas come with the package kubernetes-validate.
"""

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from ops.cli.main import GROUPS, build_parser
from schemas.errors import SettingsError
from tests.deploy_files import DOCKER, KUBERNETES, documents, locked, settings_of
from tests.dockerfile import defaults, environment, instructions
from tests.kuberay import KINDS, pod_templates

BASE, MONITORING = KUBERNETES / "base", KUBERNETES / "monitoring"
VERSION = "1.34"
"""Version of Kubernetes; the package has the schemas of each release."""
MANIFESTS = [
    manifest
    for folder in (BASE, MONITORING)
    for path in sorted(folder.glob("*.yaml"))
    if path.name != "kustomization.yaml"
    for manifest in documents(path)
]
TEMPLATES = [template for manifest in MANIFESTS for template in (pod_templates(manifest) if manifest["apiVersion"] == "ray.io/v1" else ())]
SECRET = {"HEADRACE_SERVING__API_KEYS": "key"}


def manifest_of(kind: str, name: str = "") -> dict[str, Any]:
    (found,) = (manifest for manifest in MANIFESTS if manifest["kind"] == kind and name in ("", manifest["metadata"]["name"]))
    return found


def named(manifest: dict[str, Any]) -> str:
    return f"{manifest['kind']}-{manifest['metadata']['name']}"


CLUSTER = manifest_of("RayCluster")["spec"]
HEAD = CLUSTER["headGroupSpec"]["template"]["spec"]["containers"][0]
TOML = (BASE / "headrace.toml").read_text("utf-8")


@pytest.mark.parametrize("manifest", [one for one in MANIFESTS if (one["apiVersion"], one["kind"]) in KINDS], ids=named)
def test_custom_objects_have_the_fields_of_their_operators(manifest: dict[str, Any]) -> None:
    jsonschema.validate(manifest["spec"], KINDS[manifest["apiVersion"], manifest["kind"]])
    assert manifest.keys() == {"apiVersion", "kind", "metadata", "spec"}


def test_a_misspelt_field_is_found() -> None:
    with pytest.raises(jsonschema.ValidationError, match="enableInTreeAutoscalling"):
        jsonschema.validate(CLUSTER | {"enableInTreeAutoscalling": True}, KINDS["ray.io/v1", "RayCluster"])


def kubernetes_objects() -> list[dict[str, Any]]:
    own = [manifest for manifest in MANIFESTS if manifest["apiVersion"] == "v1"]
    templates = [
        {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": f"t{index}"}, "template": one} for index, one in enumerate(TEMPLATES)
    ]
    sidecar = {"name": "autoscaler", "image": "i"} | {name: CLUSTER["autoscalerOptions"][name] for name in ("resources", "securityContext")}
    return [*own, *templates, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "autoscaler"}, "spec": {"containers": [sidecar]}}]


@pytest.mark.parametrize("manifest", kubernetes_objects(), ids=named)
def test_what_is_of_kubernetes_keeps_to_its_schemas(manifest: dict[str, Any]) -> None:
    validation = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed (requirements-peers.lock)")
    validation.validate(manifest, VERSION, strict=True)


def test_kustomize_builds_what_the_files_say() -> None:
    """With the kubectl of this machine, if there is one; the structure of the files is always checked."""
    for folder in (BASE, MONITORING):
        (kustomization,) = documents(folder / "kustomization.yaml")
        others = {path.name for path in folder.iterdir()} - {"kustomization.yaml"}
        generated = {name for generator in kustomization.get("configMapGenerator", ()) for name in generator["files"]}
        assert set(kustomization["resources"]) | generated == others
    if shutil.which("kubectl") is None:
        pytest.skip("there is no kubectl, which has kustomize in it")
    done = subprocess.run(["kubectl", "kustomize", str(BASE)], capture_output=True, text=True, timeout=60, check=True)
    built = {named(manifest): manifest for manifest in yaml.safe_load_all(done.stdout)}
    assert all(manifest["metadata"].get("namespace") == "headrace" for manifest in built.values() if manifest["kind"] != "Namespace")
    assert built["ConfigMap-headrace"]["data"] == {"headrace.toml": TOML}
    images = [
        one["spec"]["containers"][0]["image"]
        for manifest in built.values()
        if manifest["apiVersion"] == "ray.io/v1"
        for one in pod_templates(manifest)
    ]
    assert [image.rpartition("/")[2] for image in images] == ["headrace:0.1.0-cpu", "headrace:0.1.0-cpu", "headrace:0.1.0-gpu", "headrace:0.1.0-cpu"]


def test_the_cluster_runs_the_ray_of_the_lock_with_a_token() -> None:
    assert CLUSTER["rayVersion"] == locked("ray")
    assert CLUSTER["authOptions"] == {"mode": "token", "secretName": "headrace-ray-token"}
    assert CLUSTER["enableInTreeAutoscaling"] and all(
        group["minReplicas"] <= group["replicas"] <= group["maxReplicas"] for group in CLUSTER["workerGroupSpecs"]
    )


def test_no_secret_is_among_the_manifests() -> None:
    assert all(manifest["kind"] != "Secret" for manifest in MANIFESTS)


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template["spec"]["containers"][0]["name"])
def test_every_pod_runs_without_rights_as_the_user_of_the_image(template: dict[str, Any]) -> None:
    spec = template["spec"]
    (user,) = (instruction.value for instruction in instructions(DOCKER / "Dockerfile") if instruction.name == "USER")
    assert user == f"{spec['securityContext']['runAsUser']}:{spec['securityContext']['runAsGroup']}"
    assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in [*spec["containers"], CLUSTER["autoscalerOptions"]]:
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert "memory" in container["resources"]["limits"] and container["resources"]["requests"]


def test_variables_of_services_do_not_reach_the_settings() -> None:
    """Kubernetes puts the addresses of the namespace's services into every pod's environment, and one of these services is called headrace-api."""
    with pytest.raises(SettingsError, match="HEADRACE_API_SERVICE_HOST"):
        settings_of({"HEADRACE_API_SERVICE_HOST": "10.0.0.1"})
    assert all(template["spec"]["enableServiceLinks"] is False for template in TEMPLATES)


def test_headrace_understands_its_settings_and_listens_where_the_pod_says() -> None:
    variables = environment(DOCKER / "Dockerfile", "headrace", **defaults(DOCKER / "Dockerfile"))
    found = settings_of({name: value for name, value in variables.items() if name.startswith("HEADRACE_")} | SECRET, TOML)
    ports = {port["name"]: port["containerPort"] for port in HEAD["ports"]}
    assert ports["serve"] == found.serving.port and ports["ingest"] == found.telemetry.metrics_port
    assert found.ray.address == "auto" and found.serving.host == found.telemetry.metrics_host == "0.0.0.0"
    assert HEAD["envFrom"] == [{"secretRef": {"name": "headrace-keys"}}]
    assert any(mount["mountPath"] == found.root for mount in HEAD["volumeMounts"])


def custom_resources(group: dict[str, Any]) -> dict[str, int]:
    """What Ray's autoscaler and the shell that runs ``ray start`` both make of a group's custom resources."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _get_custom_resources

    params = group["rayStartParams"]
    for_the_autoscaler: dict[str, int] = _get_custom_resources(group.get("resources", {}), params, group["groupName"])
    (for_the_shell,) = shlex.split(params["resources"])
    assert json.loads(for_the_shell) == for_the_autoscaler
    return for_the_autoscaler


def test_each_kind_of_work_runs_on_pods_that_are_there_for_it() -> None:
    ray, use_gpu = settings_of(SECRET, TOML).ray, settings_of(SECRET, TOML).training.use_gpu
    offered = {group["groupName"]: custom_resources(group) for group in CLUSTER["workerGroupSpecs"]}
    with_gpu = {group["groupName"] for group in CLUSTER["workerGroupSpecs"] if "nvidia.com/gpu" in _limits(group)}
    assert {kind: set(resources) for kind, resources in offered.items()} == {"cpu": {"cpu_node"}, "gpu": {"gpu_node"}} and with_gpu == {"gpu"}
    assert {ray.ingest_nodes, ray.engine_nodes} == {"cpu_node"}, "a backlog, or a request, starts no pod with a GPU"
    assert ray.training_nodes == ("gpu_node" if use_gpu else "cpu_node")


def _limits(group: dict[str, Any]) -> dict[str, Any]:
    limits: dict[str, Any] = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    return limits


def test_every_node_mounts_the_one_root() -> None:
    claim = manifest_of("PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for template in TEMPLATES[:3]:
        volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        assert volumes["root"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert {"name": "root", "mountPath": "/data"} in template["spec"]["containers"][0]["volumeMounts"]


@pytest.mark.parametrize("group", [CLUSTER["headGroupSpec"], *CLUSTER["workerGroupSpecs"]], ids=["head", "cpu", "gpu"])
def test_probes_and_monitors_ask_ports_on_which_ray_listens(group: dict[str, Any]) -> None:
    (container,) = group["template"]["spec"]["containers"]
    ports = {port["name"]: str(port["containerPort"]) for port in container["ports"]}
    assert (
        ports["metrics"] == group["rayStartParams"]["metrics-export-port"]
        and ports["agent"] == group["rayStartParams"]["dashboard-agent-listen-port"]
    )
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container[probe]["httpGet"]
        assert asked["port"] in ports and asked["path"] in public_paths()


def public_paths() -> set[str]:
    """Paths that Ray's two servers answer without the token, read from their source, because importing them takes seconds."""
    spec = importlib.util.find_spec("ray")
    assert spec is not None and spec.origin is not None
    texts = [(Path(spec.origin).parent / "dashboard" / name).read_text("utf-8") for name in ("http_server_agent.py", "http_server_head.py")]
    lists = re.findall(r"(?:PUBLIC_EXACT_PATHS|public_exact_paths)\s*(?::[^=]*)?=\s*[\[{](.*?)[\]}]", "\n".join(texts), re.DOTALL)
    assert len(lists) == 2
    return set(re.findall(r'"(/[^"]*)"', "".join(lists)))


def test_the_job_is_a_command_that_exists_on_the_cluster_that_exists() -> None:
    job = manifest_of("RayJob")["spec"]
    assert job["clusterSelector"] == {"ray.io/cluster": manifest_of("RayCluster")["metadata"]["name"]}
    program, *arguments = shlex.split(job["entrypoint"])
    parsed = build_parser().parse_args(arguments)
    assert program == "headrace" and parsed.command == "up" and parsed.command in GROUPS["start"]
    mounts = {mount["mountPath"] for mount in HEAD["volumeMounts"]}
    assert str(Path(parsed.config).parent) in mounts and Path(parsed.config).name == "headrace.toml"


def test_the_service_and_the_monitors_select_pods_of_the_cluster() -> None:
    cluster = {"ray.io/cluster": manifest_of("RayCluster")["metadata"]["name"]}
    names = {port["name"] for port in HEAD["ports"]}
    service = manifest_of("Service")["spec"]
    assert service["selector"].items() >= cluster.items() and {port["targetPort"] for port in service["ports"]} <= names
    for monitor in (one for one in MANIFESTS if one["kind"] == "PodMonitor"):
        assert monitor["spec"]["selector"]["matchLabels"].items() >= cluster.items()
        assert {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]} <= names
    (gateway,) = (endpoint for endpoint in manifest_of("PodMonitor", "headrace")["spec"]["podMetricsEndpoints"] if endpoint["port"] == "serve")
    assert gateway["authorization"]["credentials"] == {"name": HEAD["envFrom"][0]["secretRef"]["name"], "key": next(iter(SECRET))}


def test_every_value_to_fill_in_is_marked() -> None:
    files = [path for folder in (BASE, MONITORING) for path in folder.iterdir()]
    marked = sorted(path.name for path in files for line in path.read_text("utf-8").splitlines() if "# CHANGE" in line)
    assert marked == ["headrace.toml", "kustomization.yaml", "kustomization.yaml", "kustomization.yaml", "root.yaml"]
