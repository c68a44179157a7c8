"""What a version takes in: fair, bounded, never stuck."""

from hypothesis import given
from hypothesis import strategies as st

from pipelines.ingest.batching import Limits, Pace, new_record_bytes, plan_batch, slice_records
from pipelines.kafka.reading import slices
from pipelines.kafka.shares import fair_shares
from schemas.manifest import OffsetRange
from schemas.settings_data import IngestSettings

SPANS = st.dictionaries(
    st.integers(0, 50),
    st.tuples(st.integers(0, 10**9), st.integers(0, 10**6)).map(lambda pair: OffsetRange(start=pair[0], end=pair[0] + pair[1])),
    min_size=1,
    max_size=12,
)
SIZES = st.dictionaries(st.integers(0, 50), st.integers(0, 2**25))
LIMITS = st.builds(Limits, st.integers(1, 10**6), st.integers(1, 2**30))


@given(SPANS, SIZES, LIMITS)
def test_a_plan_begins_where_the_waiting_begins_and_serves_every_partition_within_the_limits(
    waiting: dict[int, OffsetRange], sizes: dict[int, int], limits: Limits
) -> None:
    plan = plan_batch(waiting, sizes, limits)
    assert list(plan) == list(waiting)
    for partition, span in waiting.items():
        taken = plan[partition]
        assert taken.start == span.start
        assert taken.end <= span.end
        assert (len(taken) > 0) == (len(span) > 0)
    assert sum(map(len, plan.values())) <= max(limits.num_records, len(waiting))
    size = {partition: sizes.get(partition, 4096) for partition in waiting}
    assert sum(len(span) * size[partition] for partition, span in plan.items() if len(span) > 1) <= limits.size_bytes
    assert plan_batch(waiting, sizes, limits) == plan


@given(st.dictionaries(st.integers(0, 50), st.integers(0, 10**6), min_size=1), st.integers(0, 10**6))
def test_no_partition_waits_while_another_gets_more_than_it(available: dict[int, int], budget: int) -> None:
    shares = fair_shares(available, budget)
    assert sum(shares.values()) == min(budget, sum(available.values()))
    short = [shares[partition] for partition in available if shares[partition] < available[partition]]
    if short:
        assert max(shares.values()) <= min(short) + 1


def test_a_million_records_in_one_partition_do_not_delay_ten_in_another() -> None:
    waiting = {0: OffsetRange(start=0, end=10**6), 1: OffsetRange(start=5, end=15), 2: OffsetRange(start=7, end=7), 3: OffsetRange(start=0, end=10)}
    plan = plan_batch(waiting, {0: 100, 1: 2**24, 3: 100}, Limits(1_000, 2**28))
    assert [len(plan[partition]) for partition in (1, 2, 3)] == [10, 0, 10]
    assert len(plan[0]) == 980


@given(SPANS, SIZES)
def test_slices_cover_the_ranges_and_are_small_where_records_are_large(ranges: dict[int, OffsetRange], sizes: dict[int, int]) -> None:
    ranges = {partition: span.model_copy(update={"end": min(span.end, span.start + 500)}) for partition, span in ranges.items()}
    settings = IngestSettings(slice_records=100, slice_bytes=2**24)
    most = slice_records(ranges, sizes, settings)
    parts = slices("t", ranges, most)
    for partition, span in ranges.items():
        own = [part for part in parts if part.partition == partition]
        assert [offset for part in own for offset in range(part.start, part.end)] == list(range(span.start, span.end))
        assert all(part.end - part.start <= most[partition] for part in own)
        assert most[partition] == 1 or most[partition] * sizes.get(partition, 4096) <= 2**24


def test_a_document_of_the_largest_size_is_a_slice_of_its_own() -> None:
    assert slice_records({0: OffsetRange(start=0, end=9)}, {0: 2**24}, IngestSettings(slice_bytes=2**24)) == {0: 1}


def test_sizes_follow_the_newest_version_that_read_any() -> None:
    assert new_record_bytes({0: 10, 1: 20}, {0: 3, 1: 0, 2: 2}, {0: 31, 2: 8}) == {0: 11, 1: 20, 2: 4}


def test_pace_cuts_versions_to_the_target_time_and_finds_its_way_up_again() -> None:
    pace = Pace(target_s=10, min_records=50)
    assert pace.limit(10**6) == 10**6  # nothing is known
    pace.committed(100, 100)  # a start that compiled
    assert pace.limit(10**6) == 200  # twice what it was: one version does not tell what it costs by itself
    for _ in range(20):
        num_records = pace.limit(10**6)
        pace.committed(num_records, 0.5 + num_records / 2_000)
    assert 19_000 <= pace.limit(10**6) <= 19_200, "9.5 of the 10 s, but for what is still remembered of the start"
    assert pace.limit(1_000) == 1_000


def test_where_a_version_costs_more_than_the_target_half_of_its_time_still_goes_to_records() -> None:
    pace = Pace(target_s=5, min_records=100)
    pace.committed(100, 8)
    for _ in range(30):
        num_records = pace.limit(10**6)
        pace.committed(num_records, 8 + num_records / 500)
    assert 3_960 <= pace.limit(10**6) <= 4_000, "8 s of records beside 8 s of its own"


@given(st.lists(st.tuples(st.integers(0, 10**6), st.floats(0, 1e4)), min_size=1), st.integers(1, 10**6))
def test_whatever_versions_took_the_next_one_is_within_its_limits(versions: list[tuple[int, float]], max_records: int) -> None:
    pace = Pace(target_s=5, min_records=10)
    for num_records, seconds in versions:
        pace.committed(num_records, seconds)
    assert min(10, max_records) <= pace.limit(max_records) <= max_records
