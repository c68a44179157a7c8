"""How the slices of a version are dealt to Ray's tasks."""

import pytest

from pipelines.ingest.job import LAST_ROUND_WINDOWS, MAX_WINDOWS_PER_TASK, grouped
from pipelines.kafka.reading import Slice, slices
from schemas.manifest import OffsetRange
from schemas.settings_data import IngestSettings


@pytest.mark.parametrize("at_once", [1, 2, 16])
@pytest.mark.parametrize("number", [0, 1, 7, 8, 33, 400])
def test_every_slice_is_in_one_group_in_order_and_the_last_groups_are_small_and_alike(number: int, at_once: int) -> None:
    parts = [Slice("t", 0, start, start + 1) for start in range(number)]
    groups = grouped(parts, at_once, IngestSettings())
    assert [part for group in groups for part in group] == parts
    assert all(1 <= len(group) <= MAX_WINDOWS_PER_TASK for group in groups)
    assert len(groups) >= min(number, at_once // 2)
    last = [len(group) for group in groups[-at_once:]]
    assert max(last, default=0) <= LAST_ROUND_WINDOWS


def test_groups_are_as_small_as_what_may_wait_for_the_committer_demands() -> None:
    parts = [Slice("t", 0, start, start + 1) for start in range(400)]
    settings = IngestSettings(read_ahead_bytes=2**20, slice_records=100)
    assert {len(group) for group in grouped(parts, 2, settings)} == {2}
    assert {len(group) for group in grouped(parts, 400, settings)} == {1}


def test_slices_that_are_short_because_their_records_are_large_stay_tasks_of_their_own() -> None:
    ranges = {partition: OffsetRange(start=0, end=30) for partition in range(8)}
    assert len(grouped(slices("t", ranges, 30), 8, IngestSettings())) == 8
    assert len(grouped(slices("t", ranges, 2_500), 8, IngestSettings())) == 1
