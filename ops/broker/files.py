"""Durable small files: written beside their place, flushed, renamed over it, so that a reader sees the old bytes or the new ones."""

import json
import os
from pathlib import Path
from typing import Any

from pipelines.storage.durable import sync_folder


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` atomically and durably."""
    draft = path.with_name(path.name + ".tmp")
    with draft.open("w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    sync_folder(path.parent)


def read_json(path: Path, default: Any) -> Any:
    """The value in ``path``, or the default where there is no such file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return default
