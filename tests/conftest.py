"""Fixtures that every room may use: one embedded broker and one Apache Kafka for the whole run, and names that do not collide on them."""

import os
import uuid
from collections.abc import Iterator

import pytest
from hypothesis import settings as hypothesis_settings

os.environ.pop("COLUMNS", None)  # which workers of pytest-xdist have: what commands print into a pipe has one line for each row
os.environ.setdefault("OMP_NUM_THREADS", "1")  # small models on few cores: a second thread would only wait for its turn

from schemas.settings import BrokerSettings, Settings
from tests.apache_kafka import ApacheKafka, running_apache_kafka
from tests.broker_process import BrokerProcess, start_broker

hypothesis_settings.register_profile("headrace", deadline=None)  # a slow first example (an import, a compilation) is no failure
hypothesis_settings.load_profile("headrace")
pytest.register_assert_rewrite("tests.ingest_harness")  # its assertions show both sides, as those of the tests do


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """An embedded broker as a child process on a free loopback port, shared by all tests of the run: use topics of your own."""
    settings = Settings(broker=BrokerSettings(retention_check_interval_s=0.5))
    with start_broker(settings, listen="127.0.0.1:0", root=tmp_path_factory.mktemp("broker")) as process:
        yield process


FAST_CLEANING = (
    "log.cleaner.backoff.ms=200",
    "log.retention.check.interval.ms=500",
    "log.segment.delete.delay.ms=100",
    "auto.create.topics.enable=true",
    "num.partitions=2",
)


@pytest.fixture(scope="session")
def apache_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApacheKafka]:
    """One Apache Kafka for the whole run, which compacts and expires within seconds; skips where it is missing."""
    with running_apache_kafka(tmp_path_factory.mktemp("apache"), settings=FAST_CLEANING) as kafka:
        yield kafka


@pytest.fixture
def anyio_backend() -> str:
    """Asynchronous tests (``pytest.mark.anyio``) run on asyncio, as the services do."""
    return "asyncio"


@pytest.fixture
def topic_prefix() -> str:
    """A topic prefix that no other test has."""
    return f"test-{uuid.uuid4().hex[:12]}"
