"""Renders ``headrace.toml``: every setting with its default and the line that documents it.

The file in the repository is this module's output (a test compares them), so it can neither miss a setting nor lie about one.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from schemas.section import Section
from schemas.settings import Settings

_HEADER = """\
# Headrace's settings, all at their defaults. The environment (HEADRACE_<SECTION>__<KEY>, HEADRACE_ROOT) and flags win over this file.
# Keys that start with "# " have no default; take the "# " away to set them. Keep passwords in the environment, not here.
"""


def _toml(value: Any) -> str | None:
    """A value as TOML; None if there is none to show. JSON's strings, numbers, booleans and lists are TOML's."""
    if value is None or isinstance(value, SecretStr) or (isinstance(value, tuple) and any(isinstance(part, SecretStr) for part in value)):
        return None
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


def _lines(name: str, field: FieldInfo, value: Any) -> list[str]:
    comments = [f"# {line.strip()}" for line in (field.description or "").splitlines()]
    shown = _toml(value)
    return [*comments, f"# {name} = " if shown is None else f"{name} = {shown}"]


def render(settings: Settings | None = None) -> str:
    """The text of ``headrace.toml``: with the defaults, or with these settings' values; secrets are left out."""
    header = _HEADER if settings is None else ""
    settings = settings or Settings()
    lines = [header, *_lines("root", Settings.model_fields["root"], settings.root)]
    for name, field in Settings.model_fields.items():
        model = field.annotation
        if isinstance(model, type) and issubclass(model, Section):
            lines += ["", f"# {(model.__doc__ or '').strip()}", f"[{name}]"]
            section = getattr(settings, name)
            lines += [line for key, entry in model.model_fields.items() for line in _lines(key, entry, getattr(section, key))]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path("headrace.toml").write_text(render(), encoding="utf-8")
