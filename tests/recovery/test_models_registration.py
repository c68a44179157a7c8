"""A process killed at any step of a registration leaves all or nothing, and the next attempt registers once."""

import os
import signal
from pathlib import Path

import pytest

from pipelines.runtime.crash import VARIABLE
from ray_apps.models.registry import REGISTRATION_CRASH_POINTS, Registry
from schemas.manifest import FileEntry, ModelManifest
from tests.model_factory import make_model

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # from Python 3.12 on


def attempt(root: Path, template: ModelManifest, run_id: str) -> ModelManifest:
    """What `headrace train` does at the end of a run."""
    registry = Registry(root)
    made = registry.find_run(run_id)
    if made is not None:
        return made
    staging = registry.new_staging(run_id)
    (staging / "config.json").write_text("{}")
    (staging / "model.safetensors").write_bytes(b"weights")
    training = template.training.model_copy(update={"run_id": run_id})

    def build(version: int, files: list[FileEntry]) -> ModelManifest:
        return template.model_copy(update={"version": version, "files": files, "training": training})

    return registry.register(staging, build)


def killed_attempt(root: Path, template: ModelManifest, run_id: str, crash_at: str) -> None:
    pid = os.fork()
    if pid == 0:
        os.environ[VARIABLE] = crash_at
        try:
            attempt(root, template, run_id)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL, f"the child was to die at {crash_at}"


@pytest.mark.parametrize("crash_at", REGISTRATION_CRASH_POINTS)
def test_a_crash_during_registration_leaves_all_or_nothing_and_registers_once(tmp_path: Path, crash_at: str) -> None:
    template = make_model(tmp_path)
    registry = Registry(tmp_path)
    killed_attempt(tmp_path, template, "d1-abc", crash_at)
    visible = registry.versions()
    assert visible == ([1, 2] if crash_at == "model_published" else [1])
    manifest = attempt(tmp_path, template, "d1-abc")
    assert registry.versions() == [1, 2]
    assert manifest.version == 2
    assert registry.find_run("d1-abc") == manifest
    folders = sorted(path.name for path in (tmp_path / "models").iterdir() if not path.name.startswith(".lock"))
    assert folders == ["00000001", "00000002", "log"]
    assert all((tmp_path / entry.path).is_file() for entry in manifest.files)


@pytest.mark.parametrize("crash_at", REGISTRATION_CRASH_POINTS[:-1])
def test_another_run_takes_the_number_that_a_crash_left_free(tmp_path: Path, crash_at: str) -> None:
    template = make_model(tmp_path)
    killed_attempt(tmp_path, template, "d1-abc", crash_at)
    assert attempt(tmp_path, template, "d1-other").version == 2
    assert attempt(tmp_path, template, "d1-abc").version == 3
    assert [Registry(tmp_path).manifest(version).training.run_id for version in (2, 3)] == ["d1-other", "d1-abc"]


def test_runs_that_register_at_the_same_time_get_numbers_without_gaps_or_doubles(tmp_path: Path) -> None:
    template = make_model(tmp_path)
    children = []
    for number in range(6):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                attempt(tmp_path, template, f"d1-run{number}")
                status = 0
            finally:
                os._exit(status)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 6
    registry = Registry(tmp_path)
    assert registry.versions() == list(range(1, 8))
    manifests = [registry.manifest(version) for version in registry.versions()[1:]]
    assert {manifest.training.run_id for manifest in manifests} == {f"d1-run{number}" for number in range(6)}
    assert all(manifest.files[0].path.startswith(f"models/{manifest.version:08d}/") for manifest in manifests)
