"""What a person is told when the broker is not there, or does not let them in."""

import gc
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from pipelines.kafka.clients import open_admin, open_consumer, open_producer
from pipelines.kafka.offsets import publish_group_offsets
from pipelines.kafka.topics import ensure_topics, topic_names
from pipelines.runtime.ports import free_ports
from schemas.errors import BrokerUnavailable, SettingsError
from schemas.settings import Settings
from schemas.settings_sources import load_settings
from tests.apache_kafka import running_apache_kafka
from tests.broker_process import start_broker
from tests.integration.conftest import Stream


def num_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def with_kafka(**kafka: object) -> Settings:
    return load_settings("", {}, {f"kafka.{name}": value for name, value in kafka.items()})


def test_no_broker_is_said_in_one_sentence_with_the_address_and_within_the_time_limit() -> None:
    settings = with_kafka(bootstrap_servers=f"127.0.0.1:{free_ports(1)[0]}", request_timeout_s=0.5)
    for open_client in (open_consumer, open_producer, open_admin):
        with pytest.raises(BrokerUnavailable, match=r"cannot connect at 127\.0\.0\.1:\d+ \(PLAINTEXT\) within 0.5 s"):
            open_client(settings)


def test_a_broker_that_comes_up_in_time_is_waited_for() -> None:
    port = free_ports(1)[0]
    settings = with_kafka(bootstrap_servers=f"127.0.0.1:{port}", request_timeout_s=20.0)
    with ThreadPoolExecutor(1) as pool, TemporaryDirectory() as folder:
        admin = pool.submit(open_admin, settings)
        with start_broker(settings, listen=f"127.0.0.1:{port}", root=Path(folder)):
            admin.result(20).close()


def test_clients_that_could_not_connect_leave_no_thread_and_no_descriptor_behind() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:  # takes connections and says nothing
        settings = with_kafka(bootstrap_servers=f"127.0.0.1:{mute.getsockname()[1]}", request_timeout_s=0.6)
        gc.collect()  # what earlier tests left behind would be missing afterwards
        threads, descriptors = threading.active_count(), num_descriptors()
        for open_client in (open_consumer, open_producer, open_admin):
            with pytest.raises(BrokerUnavailable, match="Unable to bootstrap"):
                open_client(settings)
        gc.collect()
        assert threading.active_count() <= threads
        assert num_descriptors() <= descriptors


def test_without_an_address_the_setting_is_named() -> None:
    with pytest.raises(SettingsError, match=r"kafka\.bootstrap_servers is empty"):
        open_consumer(Settings())


def test_settings_that_do_not_go_together_are_a_settings_error(stream: Stream) -> None:
    with pytest.raises(SettingsError, match=r"the \[kafka\] settings do not go together"):
        open_consumer(stream.settings, fetch_max_wait_ms=20_000)


@pytest.mark.slow  # an Apache Kafka of its own
def test_a_wrong_password_is_among_the_causes_that_are_named_and_a_right_one_works(tmp_path: Path) -> None:
    with running_apache_kafka(tmp_path, users=["alice=correct"]) as kafka:
        common = {
            "bootstrap_servers": kafka.bootstrap_servers,
            "security_protocol": "SASL_PLAINTEXT",
            "sasl_mechanism": "SCRAM-SHA-256",
            "sasl_plain_username": "alice",
        }
        ensure_topics(with_kafka(**common, sasl_plain_password="correct"))
        with pytest.raises(BrokerUnavailable) as caught:
            open_consumer(with_kafka(**common, sasl_plain_password="wrong-secret", request_timeout_s=1.0))
        assert "the user (alice), the password or kafka.sasl_mechanism (SCRAM-SHA-256) is wrong" in str(caught.value)
        assert "wrong-secret" not in str(caught.value)
        with pytest.raises(BrokerUnavailable, match="the broker wants SASL"):
            open_consumer(with_kafka(bootstrap_servers=kafka.bootstrap_servers, request_timeout_s=1.0))


def test_group_offsets_are_published_for_lag_monitors(stream: Stream) -> None:
    topic = stream.create(num_partitions=2)
    group = f"{topic}-ingest"
    publish_group_offsets(stream.settings, group, topic, {0: 7, 1: 0})
    publish_group_offsets(stream.settings, group, topic, {0: 9, 1: 3, 7: 5})  # there is no partition 7 (any more)
    committed = stream.admin.list_group_offsets({group: None})[group]
    assert {key.partition: entry.offset for key, entry in committed.items()} == {0: 9, 1: 3}


def test_the_dead_letter_topic_takes_the_largest_record_that_is_allowed(stream: Stream) -> None:
    ensure_topics(stream.settings)
    name = topic_names(stream.settings).deadletter
    with open_producer(stream.settings) as producer:
        assert producer.send(name, b"x" * 20_000_000).get(20).offset == 0
