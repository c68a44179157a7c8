"""Keeps Serve's applications equal to what the rollout names: one engine per model version that is served, or is to be.

Invariants: what answers is removed only after something else answers in its place, and the gateway has had time to see that; an engine that
could not be started, or that Serve has lost, is started again every RETRY_S as long as it is named; while no champion answers, the newest
champion that has not failed to start is started too; applications that are not this root's are left alone; what one version's
application raises stops no other. Costs one question to Serve's controller per look.
"""

import logging
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from ray_apps.models.registry import Registry
from ray_apps.rollout.log import RolloutLog
from ray_apps.rollout.policy import Author, bootstrap
from ray_apps.serving.deployments import model_application
from ray_apps.serving.engine_pool import DELETING, FAILED, RUNNING, status_of
from ray_apps.serving.following import RolloutFollower, versions_of
from ray_apps.serving.naming import ApplicationNames, application_names
from schemas.rollout import RolloutState
from schemas.settings import Settings

_log = logging.getLogger(__name__)
LINGER_POLLS = 6
"""Polls for which a version outlives its place in the rollout: the gateway polls as often, so it has stopped asking by then."""
SETTLED_INTERVAL_S = 5.0
"""A look at Serve costs two processes some 10 ms."""
RETRY_S = 30.0
"""Pause before an engine that could not be started (Serve tries three times) or that is gone is started again."""
BOOTSTRAP_GRACE_S = 10.0
"""A first model that appears while we run is left to the loop for this long; where no loop runs, we put it into service."""


def due(wanted: Iterable[int], statuses: Mapping[int, str], tried_at_s: Mapping[int, float], now_s: float) -> list[int]:
    """Versions to start now: those that were never tried, and those that failed or are gone though they were tried some time ago."""
    absent = [version for version in sorted(wanted) if statuses.get(version, FAILED) == FAILED]
    return [version for version in absent if version not in tried_at_s or now_s - tried_at_s[version] > RETRY_S]


def standby(states: Iterable[RolloutState], running: frozenset[int], failed: frozenset[int]) -> frozenset[int]:
    """Whom to start so that somebody answers: the newest champion that has not failed to start. ``states`` begins with the newest."""
    for state in states:
        if state.champion is not None and (state.champion in running or state.champion not in failed):
            return frozenset({state.champion})
    return frozenset()


def versions_by_status(applications: Mapping[str, str], names: ApplicationNames) -> dict[int, str]:
    """Serve's word for each engine of this root; those that are being removed are left out, and so is everybody else's."""
    found = {names.version_of(name): status for name, status in applications.items() if status != DELETING}
    return {version: status for version, status in found.items() if version is not None}


class Applications(Protocol):
    """The engines' applications of one root."""

    def statuses(self) -> dict[int, str]:
        """Version -> Serve's word for its application; those that are being removed are left out."""
        ...

    def start(self, version: int) -> None:
        """Start a version's application, or start it again; does not wait for it. May raise anything."""
        ...

    def remove(self, version: int) -> None:
        """Let a version's running requests end, then remove it; does not wait for that."""
        ...


class ServeApplications:
    """Ray Serve's."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._names = application_names(settings.root)

    def statuses(self) -> dict[int, str]:
        """See ``Applications``."""
        from ray import serve

        applications = {name: status_of(application) for name, application in serve.status().applications.items()}
        return versions_by_status(applications, self._names)

    def start(self, version: int) -> None:
        """See ``Applications``."""
        from ray import serve

        application = model_application(self._settings, version)
        serve.run_many([application], wait_for_applications_running=False, wait_for_ingress_deployment_creation=False)

    def remove(self, version: int) -> None:
        """See ``Applications``."""
        from ray import serve

        serve.delete(self._names.model(version), _blocking=False)


class Reconciler:
    """Compares what runs with what the rollout names, and acts. ``clock`` gives seconds."""

    def __init__(self, settings: Settings, applications: Applications, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._applications = applications
        self._clock = clock
        self._follower = RolloutFollower(Path(settings.root))
        self._tried_at_s: dict[int, float] = {}
        self._failed: frozenset[int] = frozenset()
        """Versions that could not be started, and have not run since."""
        self._unwanted_polls: dict[int, int] = {}
        self._modelless_since_s = clock()
        self._settled_since_s: float | None = None
        """When Serve was asked last, if it was as the rollout wants it then."""

    def poll(self) -> None:
        """Compare and act once. Serve is asked at every poll until it is as the newest state wants it, and every SETTLED_INTERVAL_S from then on."""
        self._follower.poll()
        newest, now_s = self._follower.newest, self._clock()
        if self._settled_since_s is not None and newest == self._follower.active and now_s - self._settled_since_s < SETTLED_INTERVAL_S:
            return
        statuses = self._applications.statuses()
        running = frozenset(version for version, status in statuses.items() if status == RUNNING)
        self._failed = (self._failed | {version for version, status in statuses.items() if status == FAILED}) - running
        self._follower.activate(running, now_s)
        if newest is None or newest.champion is None:
            self._bootstrap_later(now_s)
        is_settled = newest is not None and newest.champion is not None and statuses.keys() == running == versions_of(newest)
        self._settled_since_s = now_s if is_settled else None
        wanted = self._wanted(running)
        for version in due(wanted, statuses, self._tried_at_s, now_s):
            self._deploy(version, now_s)
        self._remove_unwanted(statuses.keys() - wanted)

    def _wanted(self, running: frozenset[int]) -> frozenset[int]:
        """The newest state's models, those that the gateway acts on until these are up, and whoever can answer meanwhile."""
        active = self._follower.active
        wanted = versions_of(self._follower.newest) | versions_of(active)
        if active is not None and active.champion in running:
            return wanted
        return wanted | standby(self._follower.states(), running, self._failed)

    def _deploy(self, version: int, now_s: float) -> None:
        self._tried_at_s[version] = now_s
        try:
            self._applications.start(version)
        except Exception as error:  # noqa: BLE001  whatever is wrong with one version must not keep the others from being started
            self._failed |= {version}
            _log.error("model %d is named by the rollout but cannot be served, trying again in %.0f s: %s", version, RETRY_S, error)

    def _remove_unwanted(self, unwanted: Iterable[int]) -> None:
        self._unwanted_polls = {version: self._unwanted_polls.get(version, 0) + 1 for version in unwanted}
        for version, polls in self._unwanted_polls.items():
            if polls > LINGER_POLLS:
                self._applications.remove(version)
                self._tried_at_s.pop(version, None)

    def _bootstrap_later(self, now_s: float) -> None:
        if not Registry(Path(self._settings.root)).versions():
            self._modelless_since_s = now_s
        elif now_s - self._modelless_since_s > BOOTSTRAP_GRACE_S:
            bootstrap_newest(self._settings)


def bootstrap_newest(settings: Settings) -> RolloutState | None:
    """Make the newest model champion if there are models and no champion; returns the new state, if there is one."""
    versions = Registry(Path(settings.root)).versions()

    def first_champion(state: RolloutState | None) -> RolloutState | None:
        if not versions or (state is not None and state.champion is not None):
            return None
        return bootstrap(state, versions[-1], Author(datetime.now(UTC), automatic=True), secrets.token_hex(4))

    return RolloutLog(Path(settings.root)).transition(first_champion)
