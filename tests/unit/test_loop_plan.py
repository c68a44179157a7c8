"""What the loop does next is a function of what is on disk, so that a killed loop goes on where it was."""

from datetime import UTC, datetime

from ray_apps.loop.plan import Bootstrap, GivenUp, LoopFacts, StartTrial, TrainingOrder, plan
from schemas.rollout import Decision, Phase, RolloutState
from schemas.settings import LoopSettings

SETTINGS = LoopSettings(min_new_tokens=1000)


def rollout(champion: int | None, challenger: int | None = None, *, held: bool = False) -> RolloutState:
    return RolloutState(
        number=1,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        phase=Phase.SHADOW if challenger else Phase.IDLE,
        champion=champion,
        challenger=challenger,
        salt="00000000",
        held=held,
        decision=Decision.START,
        reason="r",
    )


def test_nothing_is_done_without_data() -> None:
    assert plan(LoopFacts(), SETTINGS) == []


def test_enough_tokens_train_the_first_model_from_scratch() -> None:
    assert plan(LoopFacts(dataset_version=2, train_tokens=1000), SETTINGS) == [TrainingOrder(dataset_version=2, parent_model=None)]
    assert plan(LoopFacts(dataset_version=2, train_tokens=999), SETTINGS) == []


def test_only_tokens_that_the_newest_model_has_not_seen_count_and_the_champion_is_the_parent() -> None:
    view = LoopFacts(dataset_version=5, train_tokens=4999, newest_model=3, newest_model_tokens=4000, state=rollout(2), tried=frozenset({1, 2, 3}))
    assert plan(view, SETTINGS) == []
    more = LoopFacts(dataset_version=6, train_tokens=5000, newest_model=3, newest_model_tokens=4000, state=rollout(2), tried=frozenset({1, 2, 3}))
    assert plan(more, SETTINGS) == [TrainingOrder(dataset_version=6, parent_model=2)]


def test_an_order_stands_until_its_model_is_registered_whatever_was_committed_meanwhile() -> None:
    order = TrainingOrder(dataset_version=2, parent_model=None)
    assert plan(LoopFacts(dataset_version=9, train_tokens=10**6, order=order), SETTINGS) == [order]


def test_a_version_that_drifted_starts_no_training_but_an_order_that_was_given_is_carried_out() -> None:
    view = LoopFacts(dataset_version=2, train_tokens=1000, newest_model=1, held="it drifted")
    assert plan(view, SETTINGS) == [Bootstrap(1)]
    order = TrainingOrder(dataset_version=1, parent_model=None)
    assert plan(LoopFacts(dataset_version=2, train_tokens=1000, held="it drifted", order=order), SETTINGS) == [order]


def test_the_first_model_becomes_champion_and_the_next_one_goes_on_trial() -> None:
    assert plan(LoopFacts(newest_model=1), SETTINGS) == [Bootstrap(1)]
    assert plan(LoopFacts(newest_model=2, state=rollout(1), tried=frozenset({1})), SETTINGS) == [StartTrial(2)]


def test_a_model_waits_while_another_is_on_trial_and_the_newest_goes_first() -> None:
    waiting = LoopFacts(newest_model=4, state=rollout(1, 2), tried=frozenset({1, 2}))
    assert plan(waiting, SETTINGS) == []
    assert plan(LoopFacts(newest_model=4, state=rollout(1), tried=frozenset({1, 2})), SETTINGS) == [StartTrial(4)]


def test_while_a_person_decides_no_trial_is_started() -> None:
    waiting = LoopFacts(newest_model=2, state=rollout(1, held=True), tried=frozenset({1}))
    assert plan(waiting, SETTINGS) == []
    assert plan(LoopFacts(newest_model=2, state=rollout(1), tried=frozenset({1})), SETTINGS) == [StartTrial(2)]


def test_an_order_that_was_given_up_is_ordered_again_only_with_enough_new_tokens_or_from_another_model() -> None:
    order = TrainingOrder(dataset_version=2, parent_model=1)
    now = datetime(2026, 1, 1, tzinfo=UTC)
    failed = GivenUp(order=order, reason="nan", train_tokens=5000, settings_fingerprint="f", given_up_at=now)

    def orders(dataset_version: int, train_tokens: int, champion: int = 1) -> list[object]:
        tried = frozenset({1, champion})
        facts = LoopFacts(dataset_version, train_tokens, 1, 1000, state=rollout(champion), tried=tried, given_up=failed)
        return list(plan(facts, SETTINGS))

    for version in range(2, 100):  # a trickle commits a version every second
        assert orders(version, 5000 + version) == []
    assert orders(100, 6000) == [TrainingOrder(dataset_version=100, parent_model=1)]
    assert orders(3, 5001, champion=2) == [TrainingOrder(dataset_version=3, parent_model=2)]


def test_a_model_is_tried_once() -> None:
    assert plan(LoopFacts(newest_model=2, state=rollout(1), tried=frozenset({1, 2})), SETTINGS) == []
