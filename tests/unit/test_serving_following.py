"""When a rollout state comes into force at the gateway."""

import asyncio
from pathlib import Path

from ray_apps.serving.dispatch import SETTLED_INTERVAL_S, Dispatcher
from ray_apps.serving.engine_pool import LocalEngines
from ray_apps.serving.following import CHALLENGER_TIMEOUT_S, RolloutFollower
from ray_apps.serving.metrics import Metrics
from ray_apps.serving.record import Recorder
from tests.serving_harness import publish_state


def follow(follower: RolloutFollower, *ready: int, now_s: float) -> tuple[int, int | None] | None:
    follower.poll()
    follower.activate(frozenset(ready), now_s)
    return (follower.active.number, follower.active.champion) if follower.active else None


def test_nothing_is_in_force_before_the_first_state(tmp_path: Path) -> None:
    assert follow(RolloutFollower(tmp_path), 1, now_s=0) is None


def test_the_first_state_is_in_force_at_once(tmp_path: Path) -> None:
    publish_state(tmp_path, champion=1)
    assert follow(RolloutFollower(tmp_path), now_s=0) == (1, 1)


def test_a_new_state_waits_until_all_its_models_answer(tmp_path: Path) -> None:
    follower = RolloutFollower(tmp_path)
    publish_state(tmp_path, champion=1)
    follow(follower, 1, now_s=0)
    publish_state(tmp_path, champion=1, challenger=2, shadow_fraction=1.0)
    assert follow(follower, 1, now_s=1) == (1, 1)
    assert follow(follower, 1, 2, now_s=2) == (2, 1)


def test_a_challenger_that_never_comes_up_holds_a_state_back_for_a_limited_time_of_its_own(tmp_path: Path) -> None:
    follower = RolloutFollower(tmp_path)
    publish_state(tmp_path, champion=1)
    follow(follower, 1, now_s=0)
    publish_state(tmp_path, champion=1, challenger=2, shadow_fraction=1.0)
    assert follow(follower, 1, now_s=100) == (1, 1)
    assert follow(follower, 1, now_s=100 + CHALLENGER_TIMEOUT_S) == (1, 1)
    publish_state(tmp_path, champion=1, challenger=3, shadow_fraction=1.0)
    assert follow(follower, 1, now_s=101 + CHALLENGER_TIMEOUT_S) == (1, 1), "the time that the state before has waited is not this one's"
    assert follow(follower, 1, now_s=102 + 2 * CHALLENGER_TIMEOUT_S) == (3, 1)


def test_a_champion_that_never_answers_never_replaces_one_that_does(tmp_path: Path) -> None:
    follower = RolloutFollower(tmp_path)
    publish_state(tmp_path, champion=1)
    follow(follower, 1, now_s=0)
    publish_state(tmp_path, champion=3)
    for now_s in (1, 1 + CHALLENGER_TIMEOUT_S, 10 * CHALLENGER_TIMEOUT_S):
        assert follow(follower, 1, now_s=now_s) == (1, 1)
    assert follow(RolloutFollower(tmp_path), 1, now_s=0) == (1, 1), "nor does it where somebody begins to follow the log now"
    assert follow(follower, now_s=10 * CHALLENGER_TIMEOUT_S) == (1, 1), "an engine that is gone for a moment is waited for"
    assert follow(follower, 1, 3, now_s=11 * CHALLENGER_TIMEOUT_S) == (2, 3)


def test_a_lost_champion_makes_way_for_whoever_answers(tmp_path: Path) -> None:
    follower = RolloutFollower(tmp_path)
    for champion in (1, 2, 3, 4):
        publish_state(tmp_path, champion=champion)
    assert follow(follower, 3, now_s=0) == (3, 3)
    assert follow(follower, now_s=1) == (3, 3)
    assert follow(follower, 1, 2, now_s=2) == (2, 2), "the newest that answers"
    assert follow(follower, 2, 4, now_s=3) == (4, 4)


def test_an_entry_that_does_not_parse_leaves_the_last_state_in_force(tmp_path: Path) -> None:
    follower = RolloutFollower(tmp_path)
    publish_state(tmp_path, champion=1)
    follow(follower, 1, now_s=0)
    (tmp_path / "rollout" / "00000002.json").write_text("{}")
    assert follow(follower, 1, now_s=1) == (1, 1)


class Looked(LocalEngines):
    """Counts how often somebody looked at what is there."""

    looks = 0
    there: frozenset[int] = frozenset()

    @property
    def ready(self) -> frozenset[int]:
        return self.there

    async def refresh(self) -> None:
        self.looks += 1


def test_engines_are_looked_at_all_the_time_only_while_something_new_is_wanted_of_them(tmp_path: Path) -> None:
    engines, follower = Looked({}), RolloutFollower(tmp_path)
    dispatcher = Dispatcher(engines, follower, Recorder(Metrics(), None, record_prompts=False), request_timeout_s=1.0)

    def looks(polls: int) -> int:
        before = engines.looks
        for _ in range(polls):
            asyncio.run(dispatcher.refresh())
        return engines.looks - before

    publish_state(tmp_path, champion=1)
    assert looks(5) == 5, "the champion is not up yet"
    engines.there = frozenset({1})
    assert looks(1) == 0 and follower.active is not None
    dispatcher._looked_at_s -= SETTLED_INTERVAL_S
    assert looks(1) == 1, "now and then, whatever happens"
    publish_state(tmp_path, champion=1, challenger=2, shadow_fraction=1.0)
    assert looks(5) == 5, "a challenger is awaited"
    engines.there = frozenset({1, 2})
    assert looks(2) == 1 and follower.active.challenger == 2, "the poll that brings it into force, and none after it"
