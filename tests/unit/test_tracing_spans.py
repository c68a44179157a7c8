"""Spans against a real collector, against none, and against one that is away."""

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from pipelines.runtime.tracing import FLUSH_TIMEOUT_S, current_traceparent, record_span, span, start_tracing, stop_tracing
from schemas.errors import BrokerUnavailable, SettingsError
from schemas.events import is_traceparent
from schemas.settings import TelemetrySettings
from schemas.settings_sources import load_settings
from tests.collector import nobody_answers, nobody_listens, running_collector, tracing_to

CLIENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TOLERANCE_S = 1.5
"""For a busy machine."""


def ids(traceparent: str | None) -> str:
    """Trace and span."""
    assert traceparent and is_traceparent(traceparent)
    return traceparent[3:52]


def test_spans_arrive_at_the_collector_as_parent_and_child_with_what_they_say() -> None:
    with running_collector() as collector:
        with tracing_to(collector.endpoint, "headrace-ingest"), span("outer", {"headrace.records": 3}) as outer:
            told = current_traceparent()
            outer.set_attributes({"headrace.topic": "文档", "share": 0.5, "is_kept": True})
            with span("inner"):
                pass
        (parent,), (child,) = collector.named("outer"), collector.named("inner")
    assert (parent.service, parent.ids, parent.parent_id, parent.error) == ("headrace-ingest", ids(told), "", None)
    assert parent.attributes == {"headrace.records": 3, "headrace.topic": "文档", "share": 0.5, "is_kept": True}
    assert (child.trace_id, child.parent_id) == (parent.trace_id, parent.span_id)


def test_the_endpoint_may_name_the_path_of_the_traces() -> None:
    with running_collector() as collector:
        for endpoint in (f"{collector.endpoint}/", f"{collector.endpoint}/v1/traces"):
            with tracing_to(endpoint), span("sent"):
                pass
        assert len(collector.named("sent", 2)) == 2


def test_a_collectors_key_comes_from_the_standard_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-key=right")
    with running_collector() as collector:
        with tracing_to(collector.endpoint), span("sent"):
            pass
        assert collector.headers[0]["x-key"] == "right"


def test_without_an_endpoint_spans_have_ids_and_start_no_thread() -> None:
    threads = threading.active_count()
    with tracing_to(""):
        assert current_traceparent() is None
        with span("here"):
            first = current_traceparent()
        with span("there"):
            second = current_traceparent()
        assert threading.active_count() == threads
    assert first and second and is_traceparent(first) and is_traceparent(second)
    assert first[3:35] != second[3:35]
    assert current_traceparent() is None


def test_a_span_goes_on_with_the_trace_of_its_parent() -> None:
    with span("outer"), span("child", parent=CLIENT):
        told = current_traceparent()
    assert told and told[3:35] == CLIENT[3:35] and told[36:52] != CLIENT[36:52]
    recorded = record_span("answer", {}, parent=CLIENT, duration_s=0.1)
    assert recorded and recorded[3:35] == CLIENT[3:35]


@pytest.mark.parametrize("parent", ["", "nonsense", "00-" + "0" * 32 + "-b7ad6b7169203331-01", "ff" + CLIENT[2:], CLIENT + "-x", "\xff" * 10_000])
def test_what_is_no_trace_context_begins_a_new_trace(parent: str) -> None:
    with span("here", parent=parent):
        told = current_traceparent()
    assert told and is_traceparent(told) and told[3:35] not in parent


def test_a_client_that_does_not_want_to_be_recorded_is_not() -> None:
    with running_collector() as collector:
        with tracing_to(collector.endpoint):
            with span("unwanted", parent=CLIENT[:-1] + "0"):
                told = current_traceparent()
            with span("wanted", parent=CLIENT):
                pass
        collector.named("wanted")
        assert {one.name for one in collector.spans} == {"wanted"}
    assert told and told.endswith("-00") and told[3:35] == CLIENT[3:35]


def test_errors_are_recorded_by_class_and_only_our_own_sentences_are_sent() -> None:
    with running_collector() as collector:
        with tracing_to(collector.endpoint):
            with pytest.raises(ValueError, match="secret"), span("theirs"):
                raise ValueError("cannot parse 'a secret document'")
            with pytest.raises(BrokerUnavailable), span("ours"):
                raise BrokerUnavailable("no broker answers at 127.0.0.1:9092")
            record_span("word", {}, parent=None, duration_s=0.0, error="engine_failed")
        (theirs,), (ours,), (word,) = (collector.named(name) for name in ("theirs", "ours", "word"))
    assert (theirs.error, theirs.attributes) == ("", {"error.type": "ValueError"})
    assert (ours.error, ours.attributes) == ("no broker answers at 127.0.0.1:9092", {"error.type": "BrokerUnavailable"})
    assert (word.error, word.attributes) == ("", {"error.type": "engine_failed"})
    assert not any(b"secret" in body for body in collector.bodies)


def test_starting_again_does_nothing_and_another_service_ends_the_former() -> None:
    with running_collector() as collector:
        settings = TelemetrySettings(otlp_endpoint=collector.endpoint)
        with tracing_to(collector.endpoint, "headrace-ingest"):
            threads = threading.active_count()
            start_tracing(settings, "headrace-ingest")
            assert threading.active_count() == threads
            with span("first"):
                pass
            start_tracing(settings, "headrace-training")
            with span("second"):
                pass
        assert [(one.name, one.service) for one in collector.spans] == [("first", "headrace-ingest"), ("second", "headrace-training")]


@pytest.mark.parametrize("away", [nobody_listens, nobody_answers])
def test_a_collector_that_is_away_costs_nothing_but_a_bounded_wait_at_the_end(
    away: Callable[[], AbstractContextManager[str]], caplog: pytest.LogCaptureFixture
) -> None:
    with away() as endpoint:
        began_s = time.monotonic()
        start_tracing(TelemetrySettings(otlp_endpoint=endpoint), "headrace-test")
        for _ in range(600):  # more than a batch
            with span("lost"):
                assert current_traceparent()
        assert time.monotonic() - began_s < TOLERANCE_S
        ended_s = time.monotonic()
        stop_tracing()
        assert time.monotonic() - ended_s < FLUSH_TIMEOUT_S + TOLERANCE_S
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1 and "everything else goes on" in warnings[0]


PROGRAM = """
from pipelines.runtime.tracing import span, start_tracing
from schemas.settings import TelemetrySettings
start_tracing(TelemetrySettings(otlp_endpoint="ENDPOINT"), "headrace-child")
with span("last words"):
    pass
"""


def run_child(endpoint: str) -> "subprocess.CompletedProcess[str]":
    program = PROGRAM.replace("ENDPOINT", endpoint)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False, env=dict(os.environ))


def test_a_process_that_ends_sends_its_last_spans_first() -> None:
    with running_collector() as collector:
        assert run_child(collector.endpoint).returncode == 0
        assert [(one.name, one.service) for one in collector.spans] == [("last words", "headrace-child")]


def test_a_process_ends_well_without_its_collector() -> None:
    with nobody_listens() as endpoint:
        done = run_child(endpoint)
    assert done.returncode == 0
    assert done.stderr == "the collector at 127.0.0.1 takes no traces (telemetry.otlp_endpoint); everything else goes on\n"


def test_an_endpoint_that_is_no_url_is_refused_at_once() -> None:
    with pytest.raises(SettingsError, match=r"telemetry\.otlp_endpoint"):
        load_settings("", {}, {"telemetry.otlp_endpoint": "collector:4317"})
