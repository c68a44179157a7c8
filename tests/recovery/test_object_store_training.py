"""Training and registering where the root is on an object store: kill the process anywhere, pause it past its lease, let the store answer badly.
Another host, which has nothing but the store, goes on: the model is that of an uninterrupted run in a folder, bit by bit, and is registered once.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipelines.runtime.crash import VARIABLE
from pipelines.storage import leases, objects
from pipelines.storage.mirror import root_folder, url_of
from pipelines.storage.store import is_there, names
from ray_apps.loop.disk import LEASE, Disk
from ray_apps.loop.plan import TrainingOrder
from ray_apps.models.registry import REGISTRATION_CRASH_POINTS, Registry
from ray_apps.rollout.controller import by_hand, new_salt
from ray_apps.rollout.log import RolloutLog
from ray_apps.rollout.policy import bootstrap
from ray_apps.serving.deployments import load_engine
from ray_apps.training.checkpoint import CRASH_POINTS
from ray_apps.training.run import TrainingRun, plan_run
from schemas.errors import LeaseLost, ServiceFailed, StoreUnavailable
from schemas.manifest import FileEntry, ModelManifest
from schemas.rollout import RolloutState
from schemas.settings import ServingSettings
from tests.ingest_harness import wait_until_stopped
from tests.model_factory import make_model
from tests.object_stores import KINDS, SECRET, Kind, Store, put_root, running_store, seeded_faults
from tests.stored_runs import train_alone
from tests.training_runs import curve, tiny_dataset, tiny_settings

pytestmark = pytest.mark.timeout(600)
EVERY_POINT = ("step_taken:1", "step_taken:5", *(f"{point}:2" for point in CRASH_POINTS), *REGISTRATION_CRASH_POINTS)
FEW_POINTS = ("run_checkpoint_written:2", "model_renamed")
Straight = tuple[Path, ModelManifest]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Straight:
    """A folder with a dataset, and a copy of it in which a run was not interrupted."""
    before, root = tmp_path_factory.mktemp("before"), tmp_path_factory.mktemp("straight")
    for folder in (before, root):
        tiny_dataset(folder)
    return before, train_alone(root)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Kind, Store]]:
    """Both stores."""
    with running_store("moto", tmp_path_factory.mktemp("moto")) as moto, running_store("alocals3", tmp_path_factory.mktemp("alocals3")) as alocals3:
        yield {"moto": moto, "alocals3": alocals3}


@pytest.fixture
def store(stores: dict[Kind, Store], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """The one that the test names, by default moto; no fault is left behind."""
    store = stores[getattr(request, "param", "moto")].use(monkeypatch)
    monkeypatch.setattr(objects, "FIRST_PAUSE_S", 0.01)
    yield store
    store.proxy.random_faults = None
    assert store.proxy.left == 0


@pytest.fixture
def root(store: Store, straight: Straight, tmp_path: Path) -> Path:
    """On the store, with the same dataset."""
    root = root_folder(store.url(tmp_path.name), str(tmp_path / "first"))
    put_root(straight[0], root)
    return root


def elsewhere(root: Path, host: str = "second") -> Path:
    """The same root, as another host sees it."""
    return root_folder(url_of(root), str(root.parents[2] / host))


def assert_same(root: Path, model: ModelManifest, straight: Straight) -> None:
    """One model, of the same weights and losses as that of the folder, and nothing of other attempts."""
    assert Registry(root).versions() == [1]
    assert Registry(root).manifest(1) == model
    assert _hash(model, "model.safetensors") == _hash(straight[1], "model.safetensors")
    assert model.training.model_copy(update={"duration_s": 0.0}) == straight[1].training.model_copy(update={"duration_s": 0.0})
    assert model.evaluation == straight[1].evaluation
    assert len({entry.path.split("/")[1] for entry in model.files}) == 1
    assert sorted(names(root / "models")) == sorted([model.files[0].path.split("/")[1], "log"])
    assert names(_run(root).folder(root) / "checkpoints") == []
    assert [step for step, *_ in curve(root, _run(root))] == list(range(8))
    assert Registry(elsewhere(root, "third")).verified_folder(1).is_dir()


def _hash(model: ModelManifest, name: str) -> str:
    return next(entry.sha256 for entry in model.files if entry.path.endswith(f"/{name}"))


def _run(root: Path) -> TrainingRun:
    return plan_run(tiny_settings(root))


def child(root: Path, crash_at: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.stored_runs", str(root)]
    environment = {**os.environ, VARIABLE: crash_at}
    return subprocess.Popen(command, cwd=Path(__file__).parents[2], env=environment, stderr=subprocess.PIPE, text=True)


def crash_and_go_on(root: Path, straight: Straight, point: str) -> None:
    killed = child(root, point)
    _, said = killed.communicate(timeout=300)
    assert killed.returncode == -signal.SIGKILL, said
    assert Registry(elsewhere(root)).versions() == ([1] if point == "model_published" else [])
    assert_same(elsewhere(root), train_alone(elsewhere(root)), straight)


@pytest.mark.parametrize("store", KINDS, indirect=True)
def test_a_run_on_a_store_makes_the_model_that_it_makes_in_a_folder_and_another_host_serves_it(root: Path, straight: Straight) -> None:
    model = train_alone(root)
    assert_same(root, model, straight)
    assert train_alone(elsewhere(root)) == model, "it is not trained again"
    copy = Registry(elsewhere(root)).verified_folder(1) / "model.safetensors"
    copy.chmod(0o600)
    copy.write_bytes(bytes(copy.stat().st_size))
    engine = load_engine(elsewhere(root), 1, ServingSettings(max_concurrent_sequences=1))
    assert engine.health().ok
    engine.close()
    assert copy.read_bytes() == (root / model.files[0].path).with_name("model.safetensors").read_bytes(), "a damaged copy is fetched again"


@pytest.mark.parametrize("point", FEW_POINTS)
def test_a_killed_run_goes_on_on_another_host_bit_for_bit_and_registers_once(root: Path, straight: Straight, point: str) -> None:
    crash_and_go_on(root, straight, point)


@pytest.mark.slow
@pytest.mark.parametrize("store", KINDS, indirect=True)
@pytest.mark.parametrize("point", EVERY_POINT)
def test_a_run_killed_at_every_step_goes_on_on_another_host_bit_for_bit_and_registers_once(root: Path, straight: Straight, point: str) -> None:
    crash_and_go_on(root, straight, point)


@pytest.mark.parametrize("point", ["run_checkpoint_written:2"])
def test_a_run_that_was_paused_past_its_lease_commits_nothing_when_it_wakes_up(
    root: Path, straight: Straight, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "EXPIRES_S", 1.0)
    paused = child(root, f"stop@{point}")
    try:
        wait_until_stopped(paused)
        model = train_alone(elsewhere(root))
        paused.send_signal(signal.SIGCONT)
        _, said = paused.communicate(timeout=300)
    finally:
        paused.kill()
    assert paused.returncode == 1
    assert "took over" in said
    assert_same(elsewhere(root), model, straight)


def test_a_checkpoint_that_is_not_whole_in_the_store_is_never_chosen(root: Path, store: Store, straight: Straight) -> None:
    store.proxy.plan("PUT", r"/checkpoints/00000006-[0-9a-f]+/optimizer", "500", times=objects.TRIES)
    with pytest.raises(StoreUnavailable):
        train_alone(root)
    assert _run(root).checkpoints(root).steps() == [3]
    assert_same(elsewhere(root), train_alone(elsewhere(root)), straight)


def test_old_checkpoints_go_and_a_damaged_one_falls_back_to_the_one_before(root: Path, store: Store, straight: Straight) -> None:
    store.proxy.plan("PUT", r"/checkpoints/00000008-[0-9a-f]+/optimizer", "500", times=objects.TRIES)
    with pytest.raises(StoreUnavailable):
        train_alone(root)
    checkpoints = _run(root).checkpoints(elsewhere(root))
    assert checkpoints.steps() == [3, 6]
    newest = checkpoints.newest()
    assert newest is not None
    assert newest.step == 6
    put_root_file(root, f"training/{_run(root).run_id}/checkpoints/{newest.folder}/model.safetensors")
    third = elsewhere(root, "third")
    before = _run(third).checkpoints(third).newest()
    assert before is not None
    assert before.step == 3
    assert_same(third, train_alone(third), straight)


def put_root_file(root: Path, key: str) -> None:
    """Spoil an object."""
    objects.Objects(url_of(root)).put(key, b"spoilt")


@pytest.mark.parametrize("store", KINDS, indirect=True)
def test_a_store_that_answers_badly_changes_nothing(root: Path, store: Store, straight: Straight) -> None:
    store.proxy.random_faults = seeded_faults(20_261_129, 0.08)
    for fault in ("lost", "done_500", "503"):
        store.proxy.plan("PUT", "/models/log/00000001.json", fault)
    model = train_alone(root)
    store.proxy.random_faults = None
    assert_same(root, model, straight)


def test_runs_that_register_at_once_from_several_hosts_get_numbers_without_gaps_and_a_run_gets_one(store: Store, tmp_path: Path) -> None:
    template = make_model(tmp_path / "template")
    hosts = [root_folder(store.url(tmp_path.name), str(tmp_path / f"host{number}")) for number in range(4)]
    made: list[ModelManifest] = []
    jobs = [(root, run) for root in hosts for run in ("a", "b", "c")]
    threads = [threading.Thread(target=lambda root, run: made.append(attempt(root, template, run)), args=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == len(threads)
    registry = Registry(root_folder(store.url(tmp_path.name), str(tmp_path / "reader")))
    manifests = [registry.manifest(version) for version in registry.versions()]
    assert [manifest.version for manifest in manifests] == [1, 2, 3]
    assert sorted(manifest.training.run_id for manifest in manifests) == ["a", "b", "c"]
    for manifest in made:
        assert manifest == registry.manifest(manifest.version)
    assert all(is_there(registry.root / entry.path) for manifest in manifests for entry in manifest.files)
    assert len(names(registry.models)) == 4


def attempt(root: Path, template: ModelManifest, run_id: str) -> ModelManifest:
    """What `headrace train` does at the end of a run."""
    registry = Registry(root)
    staging = registry.new_staging(f"{run_id}-{threading.get_ident()}")
    (staging / "config.json").write_text("{}")
    (staging / "model.safetensors").write_bytes(b"weights")
    training = template.training.model_copy(update={"run_id": run_id})

    def build(version: int, files: list[FileEntry]) -> ModelManifest:
        return template.model_copy(update={"version": version, "files": files, "training": training})

    return registry.register(staging, build)


def test_a_loop_that_another_host_has_overtaken_gives_no_order(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "EXPIRES_S", 1.0)
    root = root_folder(store.url(tmp_path.name), str(tmp_path / "first"))
    order, next_order = (TrainingOrder(dataset_version=version, parent_model=None) for version in (1, 2))
    loop = Disk(root, lease=leases.take(root / LEASE, refused))
    loop.give_order(order)
    there = elsewhere(root)
    other = Disk(there, lease=leases.take(there / LEASE, refused))
    assert other.view().order == order
    with pytest.raises(LeaseLost):
        loop.give_order(next_order)
    assert Disk(elsewhere(root, "third")).view().order == order
    other.give_up(order, "it was refused", datetime.now(UTC), is_refusal=True)
    assert Disk(elsewhere(root, "third")).view().order is None
    other.forget_refusal()
    assert other.view().order == order


def refused(holder: leases.Holder) -> ServiceFailed:
    return ServiceFailed(f"{holder} runs")


def test_transitions_of_the_rollout_from_several_hosts_are_each_decided_on_their_predecessor(store: Store, tmp_path: Path) -> None:
    roots = [root_folder(store.url(tmp_path.name), str(tmp_path / f"host{number}")) for number in range(4)]
    logs = [RolloutLog(root) for root in roots]

    def decide(state: RolloutState | None) -> RolloutState:
        return bootstrap(state, 1, by_hand(), new_salt()) if state is None else state.model_copy(update={"number": state.number + 1})

    threads = [threading.Thread(target=log.transition, args=(decide,)) for log in logs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [state.number for state in logs[0].after(0)] == [1, 2, 3, 4]
    assert Registry(elsewhere(roots[0])).aliases() == {"champion": 1}


def test_no_secret_is_in_what_training_and_registration_write(root: Path) -> None:
    train_alone(root)
    store = objects.Objects(url_of(root))
    found = store.listed("")
    assert {entry.key.split("/")[0] for entry in found} >= {"models", "training"}
    assert not [entry.key for entry in found if SECRET.encode() in store.get(entry.key)]


def test_large_weights_are_written_in_parts_where_the_store_takes_them_and_read_whole(
    stores: dict[Kind, Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(objects.WHOLE_BYTES + 1)
    (tmp_path / "weights").write_bytes(data)
    for kind, store in stores.items():
        store.use(monkeypatch)
        store.proxy.paths.clear()
        client = objects.Objects(store.url(tmp_path.name))
        for key in ("one", "two"):
            client.put(key, tmp_path / "weights")
            assert client.get(key) == data
        begun = [path for path in store.proxy.paths if path.startswith("POST") and path.endswith("?uploads=")]
        assert len(begun) == (2 if kind == "moto" else 1), "a store that has none is asked once"
