"""Apache Kafka's own Java tools against each broker of the matrix: the third client implementation. About a second and a half per tool."""

import re
from pathlib import Path

import pytest

from tests.apache_kafka import require_kafka, run_tool
from tests.contract.conftest import EXTERNAL, KafkaUnderTest

BROKERS = ["embedded", pytest.param("apache", marks=pytest.mark.slow), *(["external"] if EXTERNAL else [])]
"""Apache's tools against Apache's broker check the test itself: not in every run."""
pytestmark = [pytest.mark.usefixtures("tools"), pytest.mark.timeout(600), pytest.mark.parametrize("kafka", BROKERS, indirect=True)]


@pytest.fixture
def tools() -> Path:
    """Apache Kafka's folder; skips where it is missing."""
    return require_kafka()


def test_a_topic_through_the_whole_of_apaches_tools(kafka: KafkaUnderTest, topic_prefix: str, tmp_path: Path) -> None:
    servers = ("--bootstrap-server", kafka.bootstrap_servers)
    topic, group = topic_prefix, f"{topic_prefix}-group"

    run_tool("topics", *servers, "--create", "--topic", topic, "--partitions", "2", "--config", "retention.ms=7654321")
    described = run_tool("topics", *servers, "--describe", "--topic", topic)
    assert re.search(rf"Topic: {topic}\s+TopicId: \S+\s+PartitionCount: 2\s+ReplicationFactor: 1", described)
    assert "retention.ms=7654321" in described

    configs = run_tool("configs", *servers, "--entity-type", "topics", "--entity-name", topic, "--describe")
    assert "retention.ms=7654321" in configs

    lines = "".join(f"key{index}:文档 {index}\n" for index in range(20))
    run_tool("console-producer", *servers, "--topic", topic, "--property", "parse.key=true", "--property", "key.separator=:", input_text=lines)
    read = run_tool(
        "console-consumer", *servers, "--topic", topic, "--group", group, "--from-beginning", "--max-messages", "20", "--timeout-ms", "20000"
    )
    assert sorted(line for line in read.splitlines() if line.startswith("文档")) == sorted(f"文档 {index}" for index in range(20))

    group_described = run_tool("consumer-groups", *servers, "--describe", "--group", group)
    lags = re.findall(rf"^{group}\s+{topic}\s+\d+\s+(\d+)\s+(\d+)\s+(\d+)", group_described, re.MULTILINE)
    assert sum(int(committed) for committed, _end, _lag in lags) == 20
    assert {lag for _committed, _end, lag in lags} == {"0"}

    ends = dict(re.findall(rf"^{topic}:(\d):(\d+)$", run_tool("get-offsets", *servers, "--topic", topic), re.MULTILINE))
    assert sum(map(int, ends.values())) == 20

    wanted = tmp_path / "delete.json"
    wanted.write_text(f'{{"partitions": [{{"topic": "{topic}", "partition": 0, "offset": 3}}], "version": 1}}')
    assert "low_watermark: 3" in run_tool("delete-records", *servers, "--offset-json-file", str(wanted))


@pytest.mark.slow
def test_apaches_performance_tools_run(kafka: KafkaUnderTest, topic_prefix: str) -> None:
    servers = ("--bootstrap-server", kafka.bootstrap_servers)
    produced = run_tool(
        "producer-perf-test", *servers, "--topic", topic_prefix, "--num-records", "5000", "--record-size", "1000", "--throughput", "-1"
    )
    assert "5000 records sent" in produced
    consumed = run_tool("consumer-perf-test", *servers, "--topic", topic_prefix, "--num-records", "5000", "--timeout", "20000")
    row = next(line for line in consumed.splitlines() if re.match(r"\d{4}-", line)).split(", ")
    assert int(row[4]) == 5000


@pytest.mark.slow
def test_the_rest_of_the_tools(kafka: KafkaUnderTest, topic_prefix: str) -> None:
    servers = ("--bootstrap-server", kafka.bootstrap_servers)
    run_tool("topics", *servers, "--create", "--topic", topic_prefix)
    assert topic_prefix in run_tool("topics", *servers, "--list").split()
    run_tool("topics", *servers, "--alter", "--topic", topic_prefix, "--partitions", "4")
    changed = ("--entity-type", "topics", "--entity-name", topic_prefix)
    run_tool("configs", *servers, *changed, "--alter", "--add-config", "max.message.bytes=2000")
    assert "max.message.bytes=2000" in run_tool("configs", *servers, *changed, "--describe")
    versions = run_tool("broker-api-versions", *servers)
    assert "Produce(0)" in versions
    acknowledged = run_tool("verifiable-producer", *servers, "--topic", topic_prefix, "--max-messages", "500")
    assert acknowledged.count("producer_send_success") == 500
    group = f"{topic_prefix}-group"
    run_tool(
        "console-consumer", *servers, "--topic", topic_prefix, "--group", group, "--from-beginning", "--max-messages", "500", "--timeout-ms", "20000"
    )
    assert group in run_tool("consumer-groups", *servers, "--list").split()
    run_tool("consumer-groups", *servers, "--group", group, "--topic", topic_prefix, "--reset-offsets", "--to-earliest", "--execute")
    assert re.search(rf"^{group}\s+{topic_prefix}\s+0\s+0\s", run_tool("consumer-groups", *servers, "--describe", "--group", group), re.MULTILINE)
    run_tool("consumer-groups", *servers, "--delete", "--group", group)
    run_tool("topics", *servers, "--delete", "--topic", topic_prefix)
    assert topic_prefix not in run_tool("topics", *servers, "--list").split()
