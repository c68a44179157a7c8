"""Events: what can be built, and what comes back."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from pydantic import ValidationError

from schemas.envelope import decode_event, encode
from schemas.events import (
    EVENT_TYPES,
    DocumentReceived,
    DocumentRetracted,
    Event,
    EventData,
    RolloutChanged,
    TrainingFinished,
    is_document_id,
    new_event,
)
from schemas.rollout import Decision, Phase

NOW = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
BARE_ROLLOUT = RolloutChanged(number=1, phase=Phase.IDLE, canary_fraction=0, shadow_fraction=0, decision=Decision.SET, reason="nothing to serve")


def test_type_follows_from_data_and_time_becomes_utc() -> None:
    shanghai = datetime(2026, 1, 31, 20, 0, tzinfo=timezone(timedelta(hours=8)))
    event = new_event(DocumentRetracted(id="a"), id="1", source="/x", time=shanghai)
    assert (event.type, event.time) == ("document.retracted", NOW)


def test_data_of_another_type_is_refused() -> None:
    with pytest.raises(ValidationError, match="cannot carry DocumentRetracted"):
        Event(id="1", source="/x", type="model.registered", time=NOW, data=DocumentRetracted(id="a"))


def test_naive_times_are_refused() -> None:
    with pytest.raises(ValidationError, match="timezone"):
        Event(id="1", source="/x", type="document.retracted", time=NOW.replace(tzinfo=None), data=DocumentRetracted(id="a"))


@pytest.mark.parametrize("model", [model for model in EVENT_TYPES.values() if model is not DocumentReceived])
def test_unknown_keys_are_refused_everywhere_but_in_documents(model: type[EventData]) -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        model.model_validate({"surprise": 1})


def test_documents_ignore_keys_that_other_producers_send() -> None:
    assert DocumentReceived.model_validate({"text": "a", "score": 3}) == DocumentReceived(text="a")


@pytest.mark.parametrize("data", [BARE_ROLLOUT, TrainingFinished(run_id="r", dataset_version=1, steps=1, tokens=1, duration_s=1.0)])
def test_fields_that_are_none_survive_the_wire(data: EventData) -> None:
    event = new_event(data, id="1", source="/x", time=NOW)
    record = encode(event)
    assert decode_event(record.value, record.headers) == event


def test_a_loss_that_is_not_finite_arrives_as_null() -> None:
    data = TrainingFinished(run_id="r", dataset_version=1, steps=1, tokens=1, first_loss=9.0, last_loss=float("nan"), duration_s=1.0)
    record = encode(new_event(data, id="1", source="/x", time=NOW))
    received = decode_event(record.value, record.headers).data
    assert isinstance(received, TrainingFinished)
    assert (received.first_loss, received.last_loss) == (9.0, None)


@pytest.mark.parametrize(("text", "valid"), [("水车", True), ("a b", True), ("", False), ("a\nb", False), ("a\x00", False), ("x" * 1025, False)])
def test_document_ids_are_short_and_printable(text: str, valid: bool) -> None:
    assert is_document_id(text) is valid
