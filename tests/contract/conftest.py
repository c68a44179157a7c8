"""The broker matrix: every contract test of the broker runs against the embedded one and against Apache Kafka, the reference.

A third broker joins in when ``HEADRACE_TEST_BOOTSTRAP`` names it.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.apache_kafka import ApacheKafka
from tests.broker_process import BrokerProcess
from tests.contract.wire import Wire


@dataclass(frozen=True)
class KafkaUnderTest:
    """A broker that the contract is checked against."""

    name: str
    bootstrap_servers: str

    @property
    def has_transactions(self) -> bool:
        """The embedded broker has none."""
        return self.name != "embedded"


EXTERNAL = os.environ.get("HEADRACE_TEST_BOOTSTRAP", "")


@pytest.fixture(scope="package", params=["embedded", "apache", *(["external"] if EXTERNAL else [])])
def kafka(request: pytest.FixtureRequest) -> KafkaUnderTest:
    """Each broker of the matrix in turn."""
    name = str(request.param)
    bootstrap_servers = EXTERNAL
    if name != "external":
        started: BrokerProcess | ApacheKafka = request.getfixturevalue("broker" if name == "embedded" else "apache_kafka")
        bootstrap_servers = started.bootstrap_servers
    with Wire(bootstrap_servers) as connection:
        connection.wait_until_warm()
    return KafkaUnderTest(name, bootstrap_servers)


@pytest.fixture
def wire(kafka: KafkaUnderTest) -> Iterator[Wire]:
    """A bare connection to the broker."""
    with Wire(kafka.bootstrap_servers) as connection:
        yield connection
