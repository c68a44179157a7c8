"""Freshness, lag and the endpoint that tells them."""

import urllib.error
import urllib.request
from datetime import UTC, datetime

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipelines.ingest.following import Tempo
from pipelines.ingest.freshness import Lag, LagWatch, VersionTimes
from pipelines.ingest.metrics import IngestMetrics, served
from pipelines.runtime.ports import free_ports
from schemas.errors import SettingsError
from schemas.manifest import OffsetRange
from schemas.settings import Settings, TelemetrySettings
from schemas.settings_sources import load_settings

NOW = datetime(2026, 1, 1, tzinfo=UTC).timestamp()


def span(start: int, end: int) -> OffsetRange:
    return OffsetRange(start=start, end=end)


def test_freshness_is_quantiles_of_the_ages_and_absent_without_timestamps() -> None:
    times = VersionTimes(10, 1.0, np.arange(101.0), {0: Lag(3, 4.0)})
    assert times.freshness == (50.0, 95.0, 100.0)
    assert times.told()["freshness_s"] == {"p50": 50.0, "p95": 95.0, "max": 100.0}
    assert times.attributes["headrace.lag_records"] == 3
    assert VersionTimes(0, 1.0, np.empty(0), {}).freshness is None


def test_lag_counts_from_the_newest_committed_record_and_never_from_before_a_partition_was_empty() -> None:
    watch = LagWatch()
    watch.seen({0: span(0, 100), 1: span(0, 0)}, NOW)
    watch.committed({0: span(0, 40), 1: span(0, 0)}, {0: NOW - 500})
    assert watch.lag(NOW + 1) == {0: Lag(60, 501.0), 1: Lag(0, 0.0)}
    watch.seen({0: span(100, 100), 1: span(0, 0)}, NOW + 3600)
    watch.seen({0: span(100, 101), 1: span(0, 0)}, NOW + 3602)  # idle for an hour, then one record
    assert watch.lag(NOW + 3603)[0] == Lag(1, 3.0)


def test_clocks_that_disagree_make_no_negative_lag() -> None:
    watch = LagWatch()
    watch.seen({0: span(0, 10)}, NOW)
    watch.committed({0: span(0, 5)}, {0: NOW + 10**6})
    assert watch.lag(NOW) == {0: Lag(5, 0.0)}


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_the_endpoint_tells_metrics_health_and_readiness() -> None:
    metrics, port = IngestMetrics(), free_ports(1)[0]
    settings = TelemetrySettings(metrics_port=port)
    metrics.behind("docs", {0: Lag(7, 1.5)})
    metrics._freshness.observe(np.array([0.1, 3.0, 10**6]))
    with served(metrics, settings):
        assert get(port, "/health") == (200, "ok\n")
        assert get(port, "/ready")[0] == 503
        metrics.not_ready = None
        assert get(port, "/ready") == (200, "ready\n")
        assert get(port, "/elsewhere")[0] == 404
        families = {family.name: family for family in text_string_to_metric_families(get(port, "/metrics")[1])}
        with pytest.raises(SettingsError, match="metrics_port"), served(metrics, settings):
            pass
    (lag,) = families["headrace_ingest_lag_records"].samples
    assert (lag.labels, lag.value) == ({"topic": "docs", "partition": "0"}, 7)
    counts = {sample.labels.get("le"): sample.value for sample in families["headrace_ingest_freshness_seconds"].samples}
    assert (counts["0.5"], counts["5.0"], counts["86400.0"], counts["+Inf"]) == (1, 2, 2, 3)
    with pytest.raises(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
        pass


def test_the_endpoint_listens_where_the_settings_say() -> None:
    port = free_ports(1)[0]
    with served(IngestMetrics(), TelemetrySettings(metrics_host="127.0.0.2", metrics_port=port)):
        with urllib.request.urlopen(f"http://127.0.0.2:{port}/health", timeout=5) as response:
            assert response.status == 200
        with pytest.raises(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
            pass
    with pytest.raises(SettingsError, match=r"192\.0\.2\.1"), served(IngestMetrics(), TelemetrySettings(metrics_host="192.0.2.1", metrics_port=port)):
        pass


def settings(**values: float) -> Settings:
    names = {name.replace("__", "."): value for name, value in values.items()}
    return load_settings("", {}, {"ingest.follow_interval_s": 2.0, **names})


def test_a_first_version_waits_for_text_to_train_on_as_long_as_it_takes() -> None:
    tempo = Tempo(settings(ingest__max_batch_records=1000))
    assert tempo.wait_s(10, 100.0, has_text=lambda: False) == 2.0
    assert tempo.wait_s(999, 1e6, has_text=lambda: False) == 2.0 and not tempo.is_tired(1e6)
    assert tempo.wait_s(1000, 1e6, has_text=lambda: False) == 0.0, "a version holds no more"
    assert tempo.wait_s(10, 1e6, has_text=lambda: True) == 0.0


def test_or_as_long_as_it_is_told_to() -> None:
    tempo = Tempo(settings(tokenizer__max_wait_s=20.0))
    assert tempo.wait_s(10, 100.0, has_text=lambda: False) == 2.0
    assert tempo.wait_s(10, 119.0, has_text=lambda: False) == 1.0
    assert tempo.wait_s(10, 120.0, has_text=lambda: pytest.fail("it reads what waits for nothing")) == 0.0 and tempo.is_tired(120.0)
    assert Tempo(settings()).wait_s(10, 100.0, has_text=lambda: True) == 0.0


def test_a_version_is_due_when_enough_waits_or_the_first_of_it_has_waited_long_enough() -> None:
    tempo = Tempo(settings(ingest__min_batch_records=50, ingest__max_wait_s=5.0))
    assert tempo.wait_s(0, 90.0, has_text=None) == 2.0
    assert tempo.wait_s(10, 100.0, has_text=None) == 2.0
    assert tempo.wait_s(50, 101.0, has_text=None) == 0.0
    assert tempo.wait_s(20, 104.5, has_text=None) == 0.5
    assert tempo.wait_s(20, 105.0, has_text=None) == 0.0
    tempo.taken(105.0, 0)
    assert tempo.wait_s(20, 140.0, has_text=None) == 2.0
    assert tempo.wait_s(0, 141.0, has_text=None) == 2.0, "another writer took them"
    assert tempo.wait_s(20, 190.0, has_text=None) == 2.0


def test_waiting_for_more_than_a_version_may_hold_is_no_waiting_at_all() -> None:
    assert Tempo(settings(ingest__min_batch_records=500, ingest__max_batch_records=100)).wait_s(100, 0.0, has_text=None) == 0.0


def test_a_trickle_makes_no_version_before_the_minimum_interval_has_passed() -> None:
    tempo = Tempo(settings(ingest__min_commit_interval_s=30.0))
    assert tempo.wait_s(1, 100.0, has_text=None) == 0.0, "the first one waits for nobody"
    tempo.taken(100.0, 0)
    assert tempo.wait_s(1, 101.0, has_text=None) == 2.0
    assert tempo.wait_s(500_000, 129.0, has_text=None) == 1.0
    assert tempo.wait_s(500_000, 130.0, has_text=None) == 0.0
    assert Tempo(Settings()).wait_s(1, 0.0, has_text=None) == 0.0 and Settings().ingest.min_commit_interval_s == 30.0


def test_a_version_that_left_records_behind_is_followed_at_once() -> None:
    tempo = Tempo(settings(ingest__min_commit_interval_s=30.0))
    tempo.taken(100.0, 7)
    assert tempo.wait_s(7, 101.0, has_text=None) == 0.0
    tempo.taken(101.0, 0)
    assert tempo.wait_s(7, 131.0, has_text=None) == 0.0, "and a version that took long costs no further waiting"
