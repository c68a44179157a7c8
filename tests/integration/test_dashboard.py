"""Ray's dashboard as a person sees it while the loop runs as a submitted job: names and logs, asked of the HTTP API behind its pages."""

import re
from collections.abc import Iterator

import pytest

from pipelines.storage.mirror import LIMIT_VARIABLE
from ray_apps.serving.naming import application_names
from tests.broker_process import BrokerProcess
from tests.cluster.loop import LONG, ROUND_DOCUMENTS, documents
from tests.commands import run_command
from tests.submitted_loop import JOB_NAME, SubmittedLoop

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
LOADED_S = 700.0
"""Longest time for a phase of the loop on a machine that does much else."""


@pytest.fixture(scope="module")
def loop(broker: BrokerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SubmittedLoop]:
    """A loop with one dataset version, one model and its engine."""
    folder = tmp_path_factory.mktemp("dashboard")
    (folder / "documents.jsonl").write_text(documents(1, LONG))
    with SubmittedLoop(folder / "wiki", broker.bootstrap_servers, {"kafka.topic_prefix": "dashboard"}) as running:
        prefix = ["--set", "kafka.topic_prefix=dashboard", "--root", str(folder / "operator")]
        done = run_command(["produce", str(folder / "documents.jsonl"), "--bootstrap-servers", broker.bootstrap_servers, *prefix], folder)
        assert done.returncode == 0, done.stderr
        engine = application_names(running.root).model(1)

        def is_served() -> bool | None:
            application = running.ask("/api/serve/applications/")["applications"].get(engine)
            return True if application is not None and application["status"] == "RUNNING" else None

        running.wait(is_served, "the engine of model 1", LOADED_S)
        yield running


def test_the_jobs_page_has_one_line_for_each_part_of_the_loop(loop: SubmittedLoop) -> None:
    jobs = loop.jobs()
    assert jobs.keys() == {JOB_NAME, "ingest wiki", "serve wiki", "train wiki: dataset 1 from scratch"}
    assert jobs[JOB_NAME]["submission_id"] == loop.submission and jobs[JOB_NAME]["status"] == "RUNNING"
    assert {job["type"] for name, job in jobs.items() if name != JOB_NAME} == {"DRIVER"}


def test_ingest_shows_the_progress_of_its_version_and_tasks_with_names(loop: SubmittedLoop) -> None:
    job_id = loop.jobs()["ingest wiki"]["job_id"]
    (dataset,) = loop.ask(f"/api/data/datasets/{job_id}")["datasets"]
    assert dataset["dataset"].startswith("ingest-wiki_") and dataset["state"] == "FINISHED" and dataset["progress"] == dataset["total"] > 0
    tasks = {task["name"] for task in loop.listed("tasks") if task["job_id"] == job_id and task["type"] == "NORMAL_TASK"}
    ours = {"look at a block", "settle a block", "write a shard", "write a file of the audit trail", "write the fingerprints"}
    assert tasks == {"ReadKafka(dashboard.documents)->MapBatches(Prepare)", *(f"ingest: {name}" for name in ours)}


def test_the_log_of_a_task_says_which_offsets_or_which_version_it_is_about(loop: SubmittedLoop) -> None:
    tasks = {task["name"]: task["task_id"] for task in loop.listed("tasks")}
    reading = loop.log(task_id=tasks["ReadKafka(dashboard.documents)->MapBatches(Prepare)"])
    assert re.search(
        r" INFO pipelines\.kafka\.datasource \[dashboard\.documents/\d \d+-\d+.*\]: reads and prepares \d+ records$", reading, re.MULTILINE
    )
    writing = loop.log(task_id=tasks["ingest: write a shard"])
    assert re.search(r" INFO pipelines\.ingest\.task_writer \[version 1 of wiki\]: writes \w+ shard \d+$", writing, re.MULTILINE)


def test_training_is_listed_under_the_run_it_is_and_its_workers_tell_their_steps(loop: SubmittedLoop) -> None:
    (run,) = (loop.root / "training").iterdir()
    (listed,) = loop.ask("/api/train/v2/runs/v1")["train_runs"]
    assert listed["name"].startswith(f"wiki-{run.name}-from-scratch-") and listed["status"] == "FINISHED"
    workers = [actor for actor in loop.listed("actors") if actor["class_name"] == "RayTrainWorker"]
    log = "".join(loop.log(actor_id=actor["actor_id"]) for actor in workers)
    for rank in range(2):
        about = rf" INFO ray_apps\.training\.worker \[run {run.name}, dataset 1 from scratch, worker {rank} of 2\]: step 120 of 120: loss \d"
        assert re.search(about, log)
    assert "TrainingReport(" not in log


def test_applications_and_replicas_have_the_name_of_the_root_and_the_model(loop: SubmittedLoop) -> None:
    names = application_names(loop.root)
    assert names.prefix.startswith("headrace-wiki-")
    assert loop.ask("/api/serve/applications/")["applications"].keys() == {names.gateway, names.model(1)}
    actors = {actor["name"]: actor["actor_id"] for actor in loop.listed("actors") if actor["state"] == "ALIVE" and actor["name"]}
    (engine,) = (name for name in actors if f"{names.model(1)}#engine" in name)
    assert re.search(r" INFO ray_apps\.serving\.deployments \[model 1 of wiki\]: loaded in ", loop.log(actor_id=actors[engine]))


def test_the_log_of_the_job_is_the_story_of_the_loop_and_nothing_else(loop: SubmittedLoop) -> None:
    lines = [line for line in loop.job_log().splitlines() if line and not re.search(r"job_manager|^Running entrypoint for job ", line)]
    story = [line for line in lines if re.match(r"\d\d:\d\d:\d\d ", line)]
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", "".join(lines)), "progress bars and colours"
    for part in (
        "ingest: ready",
        "serve: ready",
        f"dataset 1: {ROUND_DOCUMENTS} records",
        "training on dataset 1 from scratch",
        "model 1: trained on dataset 1",
    ):
        assert any(part in line for line in story), part
    others = [line for line in lines if line not in story]
    assert others[0].startswith("Headrace is up.") and all(line.startswith("  ") for line in others[1:])


LIMIT = """
import ray
from pipelines.runtime.cluster import ray_session
from pipelines.storage.mirror import limit_bytes, mirror_folder, worker_environment
from schemas.settings import RaySettings

root = mirror_folder("s3://bucket/wiki", Path("/cache"))
with ray_session(RaySettings(address="auto"), "look", worker_environment(root)):
    print(ray.get(ray.remote(limit_bytes).remote()))
"""


def test_workers_of_a_ray_that_somebody_else_started_keep_to_the_limit_of_the_cache_that_the_command_has(loop: SubmittedLoop) -> None:
    program = f"import os; from pathlib import Path; os.environ['{LIMIT_VARIABLE}'] = '5000000'\n{LIMIT}"
    assert loop.run(program) == "5000000\n"


def test_the_logs_of_the_parts_do_not_repeat_each_other_and_have_no_colours(loop: SubmittedLoop) -> None:
    texts = {name: (loop.root / "logs" / f"{name}.log").read_text() for name in ("ingest", "serve", "train")}
    assert not any("\x1b" in text for text in texts.values())
    assert "MapBatches" not in texts["serve"] + texts["train"] and "RayTrainWorker" not in texts["serve"] + texts["ingest"]


def test_stopping_the_job_stops_every_part_of_it(loop: SubmittedLoop) -> None:
    assert loop.stop() == "STOPPED"
    loop.wait(lambda: all(job["status"] != "RUNNING" for job in loop.jobs().values()) or None, "the end of all parts", 60)
