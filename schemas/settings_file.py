"""Renders ``headrace.toml``: every setting with its default and the line that documents it.

The file in the repository is this module's output (a test compares them), so it can neither miss a setting nor lie about one.
"""

import json
from pathlib import Path

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from schemas.section import Section
from schemas.settings import Settings

_HEADER = """\
# Headrace's settings, all at their defaults. The environment (HEADRACE_<SECTION>__<KEY>, HEADRACE_ROOT) and flags win over this file.
# Keys that start with "# " have no default; take the "# " away to set them. Keep passwords in the environment, not here.
"""


def _value(field: FieldInfo) -> str | None:
    """The default as TOML; None if there is none. JSON's strings, numbers, booleans and lists are TOML's."""
    default = field.default
    if default is None or isinstance(default, SecretStr):
        return None
    return json.dumps(list(default) if isinstance(default, tuple) else default, ensure_ascii=False)


def _lines(name: str, field: FieldInfo) -> list[str]:
    comments = [f"# {line.strip()}" for line in (field.description or "").splitlines()]
    value = _value(field)
    return [*comments, f"# {name} = " if value is None else f"{name} = {value}"]


def render() -> str:
    """The text of ``headrace.toml``."""
    lines = [_HEADER, *_lines("root", Settings.model_fields["root"])]
    for name, field in Settings.model_fields.items():
        model = field.annotation
        if isinstance(model, type) and issubclass(model, Section):
            lines += ["", f"# {(model.__doc__ or '').strip()}", f"[{name}]"]
            lines += [line for key, entry in model.model_fields.items() for line in _lines(key, entry)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path("headrace.toml").write_text(render(), encoding="utf-8")
