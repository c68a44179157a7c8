"""Durable small JSON files: written beside their place, flushed, and renamed over it, so that a reader sees the old bytes or the new ones."""

import json
import os
from pathlib import Path
from typing import Any

from pipelines.storage.durable import sync_folder
from schemas.errors import BrokerError


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` atomically and durably. Raises OSError with the file as it was."""
    draft = path.with_name(path.name + ".tmp")
    try:
        with draft.open("w", encoding="utf-8") as file:
            json.dump(value, file, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(path.parent)


def read_json(path: Path, default: Any) -> Any:
    """The value in ``path``, or the default where there is no such file. Raises BrokerError if it is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return default
    except ValueError as error:
        raise BrokerError(f"{path} is damaged ({error}); restore it from a copy") from error
