"""Streams for integration tests: on the embedded broker and on a real Apache Kafka."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from kafka import KafkaAdminClient

from pipelines.kafka.clients import open_admin
from schemas.settings import Settings
from schemas.settings_sources import load_settings
from tests.apache_kafka import ApacheKafka
from tests.broker_process import BrokerProcess


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
    """Look again every 50 ms until it holds; fail with ``what`` otherwise."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(0.05)


@dataclass(frozen=True)
class Stream:
    """A broker and a prefix of its own on it."""

    settings: Settings
    admin: KafkaAdminClient

    @property
    def topic(self) -> str:
        """The documents topic."""
        return f"{self.settings.kafka.topic_prefix}.documents"

    def create(self, num_partitions: int = 1, **configs: str) -> str:
        """Create the documents topic; configs with ``_`` for ``.``."""
        options = {name.replace("_", "."): value for name, value in configs.items()}
        self.admin.create_topics(
            {self.topic: {"num_partitions": num_partitions, "replication_factor": 1, "configs": options}}, wait_for_metadata=True
        )
        return self.topic


def stream_settings(bootstrap_servers: str, prefix: str) -> Settings:
    """Settings for tests: short time-outs, one partition unless said otherwise."""
    return load_settings(
        "",
        {},
        {
            "kafka.bootstrap_servers": bootstrap_servers,
            "kafka.topic_prefix": prefix,
            "kafka.request_timeout_s": 10.0,
            "kafka.num_partitions": 2,
        },
    )


@pytest.fixture(params=["embedded", "apache"])
def stream(request: pytest.FixtureRequest, topic_prefix: str) -> Iterator[Stream]:
    """A fresh prefix on each of both brokers in turn."""
    process: BrokerProcess | ApacheKafka = request.getfixturevalue("broker" if request.param == "embedded" else "apache_kafka")
    settings = stream_settings(process.bootstrap_servers, topic_prefix)
    with open_admin(settings) as admin:
        yield Stream(settings, admin)


@pytest.fixture
def apache_stream(apache_kafka: ApacheKafka, topic_prefix: str) -> Iterator[Stream]:
    """A fresh prefix on Apache Kafka, for what only it can do: transactions, compaction."""
    settings = stream_settings(apache_kafka.bootstrap_servers, topic_prefix)
    with open_admin(settings) as admin:
        yield Stream(settings, admin)
