"""What the reconciler starts and removes, over applications that do as a test says."""

from pathlib import Path

import pytest

from ray_apps.serving.engine_pool import ServeEngines
from ray_apps.serving.naming import ApplicationNames, application_names, is_gateway
from ray_apps.serving.reconciler import LINGER_POLLS, RETRY_S, Reconciler, versions_by_status
from schemas.settings import Settings
from tests.serving_harness import publish_state

NAMES = ApplicationNames("headrace-0123abcd")


class Recorded:
    """Applications in memory: a version that is started comes up at once, unless it is broken."""

    def __init__(self, *broken: int) -> None:
        self.broken = set(broken)
        self.raising: set[int] = set()
        self.there: dict[int, str] = {}
        self.started: list[int] = []

    def statuses(self) -> dict[int, str]:
        return dict(self.there)

    def start(self, version: int) -> None:
        self.started.append(version)
        if version in self.raising:
            raise RuntimeError(f"no folder for model {version}")
        self.there[version] = "DEPLOY_FAILED" if version in self.broken else "RUNNING"

    def remove(self, version: int) -> None:
        del self.there[version]


class Turned:
    """A reconciler that is polled by hand, with a clock of its own."""

    def __init__(self, root: Path, applications: Recorded) -> None:
        self.now_s = 0.0
        self.reconciler = Reconciler(Settings(root=str(root)), applications, lambda: self.now_s)

    def poll(self, times: int = 1, step_s: float = 1.0) -> None:
        for _ in range(times):
            self.reconciler.poll()
            self.now_s += step_s


def test_a_version_that_serve_has_lost_is_started_again(tmp_path: Path) -> None:
    publish_state(tmp_path, champion=1)
    serve = Recorded()
    turned = Turned(tmp_path, serve)
    turned.poll(2)
    assert serve.there == {1: "RUNNING"}
    serve.there.clear()
    turned.poll(times=12, step_s=RETRY_S / 5)
    assert serve.there == {1: "RUNNING"} and serve.started == [1, 1]


def test_a_champion_that_cannot_be_started_leaves_the_working_one_in_place_for_good(tmp_path: Path) -> None:
    publish_state(tmp_path, champion=1)
    serve = Recorded(3)
    turned = Turned(tmp_path, serve)
    turned.poll(2)
    publish_state(tmp_path, champion=3)
    turned.poll(times=100, step_s=10.0)
    assert serve.there == {1: "RUNNING", 3: "DEPLOY_FAILED"}
    assert serve.started.count(3) > 10, "it is tried again: what was missing may be there now"
    serve.broken.clear()
    turned.poll(times=20, step_s=10.0)
    assert serve.there == {3: "RUNNING"}


@pytest.mark.parametrize("how", ["fails", "raises"])
def test_after_a_restart_of_everything_the_newest_champion_that_can_be_started_answers(tmp_path: Path, how: str) -> None:
    for champion in (1, 2, 3, 4):
        publish_state(tmp_path, champion=champion)
    serve = Recorded(*({3, 4} if how == "fails" else ()))
    serve.raising = {3, 4} if how == "raises" else set()
    turned = Turned(tmp_path, serve)
    turned.poll(times=6)
    assert serve.there[2] == "RUNNING" and 1 not in serve.started


def test_what_one_version_raises_does_not_keep_another_from_being_started(tmp_path: Path) -> None:
    publish_state(tmp_path, champion=2, challenger=1, shadow_fraction=1.0)
    serve = Recorded()
    serve.raising = {1}
    Turned(tmp_path, serve).poll()
    assert serve.started == [1, 2] and serve.there == {2: "RUNNING"}


def test_a_version_that_nobody_names_goes_once_the_gateway_has_had_time_to_see_it(tmp_path: Path) -> None:
    publish_state(tmp_path, champion=1)
    serve = Recorded()
    turned = Turned(tmp_path, serve)
    turned.poll(2)
    publish_state(tmp_path, champion=2)
    turned.poll()
    assert serve.there.keys() == {1, 2}
    turned.poll(LINGER_POLLS)
    assert serve.there.keys() == {1, 2}
    turned.poll(3)
    assert serve.there.keys() == {2}


def test_two_roots_share_no_name_and_foreign_applications_are_nobodys_engines(tmp_path: Path) -> None:
    ours, theirs = application_names(tmp_path / "a"), application_names(tmp_path / "b")
    assert ours.prefix != theirs.prefix and application_names(str(tmp_path / "x" / ".." / "a")) == ours
    assert (ours.version_of(ours.model(12)), ours.version_of(theirs.model(12))) == (12, None)
    assert ours.is_ours(ours.gateway) and not ours.is_ours(theirs.gateway) and is_gateway(theirs.gateway)
    foreign = ["model-foo", "model-1", "gateway", "default", "headrace-0123abcd-model-", "headrace-0123abcd-model-x", "headrace-0123abcd-model-1-x"]
    present = dict.fromkeys([*foreign, NAMES.gateway], "RUNNING") | {
        NAMES.model(1): "RUNNING",
        NAMES.model(2): "DELETING",
        NAMES.model(3): "DEPLOYING",
    }
    assert versions_by_status(present, NAMES) == {1: "RUNNING", 3: "DEPLOYING"}


def test_a_version_whose_start_failed_is_not_said_to_be_starting_until_it_has_run() -> None:
    engines = ServeEngines(NAMES)
    assert "is not started" in engines.why_not(1)
    engines.see({1: ("DEPLOYING", "")})
    assert engines.why_not(1) == "is being started"
    engines.see({1: ("DEPLOY_FAILED", "FileNotFoundError: model.safetensors")})
    engines.see({1: ("DEPLOYING", "")})
    assert "could not be started (FileNotFoundError: model.safetensors)" in engines.why_not(1)
    engines.see({1: ("RUNNING", "")})
    assert engines.ready == {1}
    engines.see({1: ("DEPLOYING", "")})
    assert engines.why_not(1) == "is being started"
