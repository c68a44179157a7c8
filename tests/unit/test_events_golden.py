"""Events that earlier versions wrote must stay readable, and the published JSON Schemas must be those of the models."""

import json
from pathlib import Path

import pytest

from schemas.envelope import KafkaRecord, decode_event, encode
from schemas.events import EVENT_TYPES
from schemas.json_schema import render

GOLDEN = Path(__file__).parent / "golden" / "events"
SCHEMAS = Path(__file__).parents[2] / "schemas" / "json"


def golden_record(event_type: str) -> KafkaRecord:
    stored = json.loads((GOLDEN / f"{event_type}.json").read_text(encoding="utf-8"))
    return KafkaRecord(stored["key"].encode(), stored["value"].encode(), [(name, value.encode()) for name, value in stored["headers"]])


@pytest.mark.parametrize("event_type", EVENT_TYPES)
def test_golden_events_still_decode_and_encode_to_the_same_plus_later_fields_at_their_defaults(event_type: str) -> None:
    record = golden_record(event_type)
    event = decode_event(record.value, record.headers)
    assert event.type == event_type
    again = encode(event)
    assert again.key == record.key
    then, now = json.loads(record.value or b""), json.loads(again.value or b"")
    added = {name: EVENT_TYPES[event_type].model_fields[name].default for name in now.keys() - then.keys()}
    assert now == then | added
    assert again.headers == record.headers


def test_every_event_type_has_a_golden_event() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(EVENT_TYPES)


def test_committed_json_schemas_are_those_of_the_models() -> None:
    assert {path.name: path.read_text(encoding="utf-8") for path in SCHEMAS.glob("*.json")} == render()
