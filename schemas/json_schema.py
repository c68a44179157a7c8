"""JSON Schemas of the events, for producers and consumers that are not written in Python.

schemas/json/<event type>.json holds what ``render`` gives; a test compares them byte for byte, so a changed event is a visible change.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from schemas.events import EVENT_TYPES

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def render() -> dict[str, str]:
    """File name -> JSON text of the schema of each event's ``data``."""
    return {f"{name}.json": _text(name, model.model_json_schema()) for name, model in EVENT_TYPES.items()}


def _text(name: str, schema: Mapping[str, Any]) -> str:
    head = {"$schema": _DIALECT, "$id": f"urn:headrace:event:{name}"}
    return json.dumps(head | dict(schema), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for name, text in render().items():
        (Path(__file__).parent / "json" / name).write_text(text, encoding="utf-8")
