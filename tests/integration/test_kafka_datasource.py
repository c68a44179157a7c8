"""Kafka as a source of a Ray Data job: every offset once, in order, read by tasks in other processes."""

from collections.abc import Iterator

import pyarrow as pa
import pytest

from pipelines.kafka.clients import open_producer
from pipelines.kafka.datasource import KafkaDatasource, Slice, slices
from pipelines.kafka.planning import plan_ranges
from pipelines.runtime.cluster import ray_session
from schemas.arrow import RECORDS
from schemas.settings import RaySettings
from tests.integration.conftest import Stream

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own, of its own settings


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    with ray_session(RaySettings(num_cpus=2, object_store_bytes=100 * 2**20, dashboard_port=0)):
        yield


def tables(source: KafkaDatasource) -> list[pa.Table]:
    import ray

    ray.data.DataContext.get_current().execution_options.preserve_order = True
    ray.data.DataContext.get_current().enable_progress_bars = False
    return [ray.get(block) for bundle in ray.data.read_datasource(source).iter_internal_ref_bundles() for block in bundle.block_refs]


@pytest.mark.usefixtures("ray_cluster")
def test_a_ray_data_job_reads_every_offset_once_and_in_order(stream: Stream) -> None:
    topic = stream.create(num_partitions=2)
    with open_producer(stream.settings) as producer:
        for position in range(300):
            producer.send(topic, b"%d" % position, partition=position % 2, headers=[("h", b"x")])
    parts = slices(topic, plan_ranges(stream.settings, topic, {}, 1000), 40)
    assert len(parts) == 8
    blocks = tables(KafkaDatasource([parts[:3], parts[3:5], parts[5:]], stream.settings))
    assert all(block.schema.equals(RECORDS) for block in blocks)
    whole = pa.concat_tables(blocks)
    places = list(zip(whole.column("partition").to_pylist(), whole.column("offset").to_pylist(), strict=True))
    assert places == [(partition, offset) for partition in (0, 1) for offset in range(150)]
    assert [int(value) for value in whole.column("value").to_pylist()] == [*range(0, 300, 2), *range(1, 300, 2)]


@pytest.mark.usefixtures("ray_cluster")
def test_a_source_error_of_a_task_reaches_the_driver_with_its_sentence(stream: Stream) -> None:
    topic = stream.create()
    with pytest.raises(Exception, match="no longer holds offsets 5 to 8"):
        tables(KafkaDatasource([[Slice(topic, 0, 5, 9)]], stream.settings))
