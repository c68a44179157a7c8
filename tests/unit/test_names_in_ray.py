"""What a person sees in Ray's dashboard: names say what is worked on."""

import json
from pathlib import Path

import pytest

from pipelines.kafka.datasource import KafkaDatasource, Slice, subject_of
from pipelines.runtime import cluster
from pipelines.storage.mirror import LIMIT_VARIABLE, mirror_folder, root_name, worker_environment
from ray_apps.loop.commands import child_environment
from ray_apps.serving.naming import application_names, is_gateway
from schemas.settings import Settings

SUBMITTED = {
    "runtime_env": {"env_vars": {"HEADRACE_KAFKA__TOPIC_PREFIX": "wiki"}},
    "metadata": {"job_submission_id": "raysubmit_1", "job_name": "up"},
}


@pytest.mark.parametrize(
    ("root", "name"),
    [
        ("/mnt/headrace", "headrace"),
        ("/data/my wiki/", "my-wiki"),
        (mirror_folder("s3://bucket/prefix/wiki", Path("/cache")), "wiki"),
        (mirror_folder("s3://bucket", Path("/cache")), "bucket"),
        ("/数据", "root"),
        ("/", "root"),
    ],
)
def test_a_root_has_a_short_name_that_every_part_of_ray_takes(root: str | Path, name: str) -> None:
    assert root_name(root) == name


def test_applications_have_the_name_of_the_root_and_are_told_apart_by_its_whole_path(tmp_path: Path) -> None:
    here, there, plain = (application_names(tmp_path / folder) for folder in ("a/wiki", "b/wiki", "headrace"))
    assert here.gateway.startswith("headrace-wiki-") and here.gateway != there.gateway and not here.is_ours(there.model(1))
    assert plain.prefix.startswith("headrace-") and plain.prefix.count("-") == 1
    assert all(is_gateway(names.gateway) and names.version_of(names.model(12)) == 12 for names in (here, there, plain))
    assert not is_gateway("headrace-wiki-gateway") and not is_gateway(here.model(1))
    dotted = application_names(tmp_path / "v1.2")
    assert dotted.version_of(dotted.model(3).replace("v1.2", "v1x2")) is None


def test_tasks_name_their_topic_and_their_log_lines_partitions_and_offsets() -> None:
    parts = [Slice("wiki.documents", partition, 100, 300) for partition in range(5)]
    assert KafkaDatasource([parts], Settings()).get_name() == "Kafka(wiki.documents)"
    assert subject_of(parts[:2]) == "wiki.documents/0 100-299, wiki.documents/1 100-299"
    assert subject_of(parts).endswith("wiki.documents/2 100-299 and 2 more slices")


def test_each_process_that_a_submitted_job_starts_is_a_job_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray shows one process of a submission, the last that has joined; the others' tasks would be on no page."""
    assert cluster.JOB_VARIABLE not in child_environment(Settings())
    monkeypatch.setenv(cluster.JOB_VARIABLE, json.dumps(SUBMITTED))
    handed_on = json.loads(child_environment(Settings())[cluster.JOB_VARIABLE])
    assert handed_on == {"runtime_env": SUBMITTED["runtime_env"], "metadata": {}}


def test_workers_on_other_hosts_get_the_limit_of_the_cache_where_the_root_is_on_a_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "5000000")
    monkeypatch.delenv(cluster.JOB_VARIABLE, raising=False)
    assert worker_environment(tmp_path) == {}
    variables = worker_environment(mirror_folder("s3://bucket/wiki", tmp_path))
    assert cluster._runtime_env(variables) == {"env_vars": {LIMIT_VARIABLE: "5000000"}}
    monkeypatch.setenv(cluster.JOB_VARIABLE, json.dumps({"runtime_env": {"env_vars": {LIMIT_VARIABLE: "1"}}}))
    assert cluster._runtime_env(variables) is None, "Ray refuses a variable that the job has set"
