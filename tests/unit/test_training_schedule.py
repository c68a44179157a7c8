"""The learning rate as a function of the step."""

import pytest

from ray_apps.training.schedule import learning_rate
from schemas.settings import TrainingSettings

SETTINGS = TrainingSettings(max_steps=100, warmup_steps=10, learning_rate=1.0, min_learning_rate_ratio=0.1)


def test_warmup_rises_linearly_to_the_peak() -> None:
    assert [learning_rate(SETTINGS, step) for step in range(10)] == pytest.approx([0.1 * (step + 1) for step in range(10)])


def test_the_last_step_has_the_floor_and_rates_never_rise_after_warmup() -> None:
    rates = [learning_rate(SETTINGS, step) for step in range(9, 100)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0.1)


def test_half_way_through_the_cosine_is_half_way_between_peak_and_floor() -> None:
    assert learning_rate(SETTINGS, 54) == pytest.approx(0.55)


@pytest.mark.parametrize(("max_steps", "warmup_steps"), [(1, 0), (1, 10), (5, 10), (10, 10), (3, 0)])
def test_short_runs_have_a_positive_rate_at_every_step(max_steps: int, warmup_steps: int) -> None:
    settings = TrainingSettings(max_steps=max_steps, warmup_steps=warmup_steps, min_learning_rate_ratio=0.1)
    assert all(0 < learning_rate(settings, step) <= settings.learning_rate for step in range(max_steps))
