"""What a cluster of several machines asks of the settings."""

import pytest

from pipelines.ingest.job import check_reachable
from schemas.errors import SettingsError

SEVERAL = {"10.0.0.1", "10.0.0.2"}


@pytest.mark.parametrize("servers", ["127.0.0.1:9092", "localhost:9092", "[::1]:9092", "127.0.0.1:9092, 127.0.0.1:9093"])
def test_a_kafka_that_each_machine_would_look_for_on_itself_is_refused(servers: str) -> None:
    with pytest.raises(SettingsError, match=r"another machine on each of the 2 .* --bootstrap-servers"):
        check_reachable(servers, SEVERAL)


def test_a_kafka_that_all_machines_reach_is_taken_and_on_one_machine_any() -> None:
    check_reachable("kafka-1:9092", SEVERAL)
    check_reachable("127.0.0.1:9092,kafka-1:9092", SEVERAL)
    check_reachable("127.0.0.1:9092", {"127.0.0.1"})
