"""How the slices of a version are dealt to Ray's tasks."""

import pytest

from pipelines.job import MAX_SLICES_PER_TASK, grouped
from pipelines.kafka.reading import Slice


@pytest.mark.parametrize("at_once", [1, 2, 16])
@pytest.mark.parametrize("number", [0, 1, 7, 8, 33, 400])
def test_every_slice_is_in_one_group_in_order_and_no_core_waits_for_the_last_ones(number: int, at_once: int) -> None:
    parts = [Slice("t", 0, start, start + 1) for start in range(number)]
    groups = grouped(parts, at_once)
    assert [part for group in groups for part in group] == parts
    assert all(1 <= len(group) <= MAX_SLICES_PER_TASK for group in groups)
    assert len(groups) >= min(number, 4 * at_once)
