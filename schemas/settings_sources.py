"""Where settings come from: ``headrace.toml``, then ``HEADRACE_<SECTION>__<KEY>``, then flags; the last one wins.

Pure: callers hand in the file's text and the environment. Unknown keys are errors that name the nearest known key.
pydantic-settings 2.16 was measured as an alternative. Its import adds 50-80 ms to each command; this module takes 8 ms. It silently ignores
misspelt variables of ours, needs JSON for lists, and does not report the source of a value. Code that corrects this is as long as this module.
"""

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from schemas.errors import SettingsError
from schemas.section import Section
from schemas.settings import Settings

ENV_PREFIX = "HEADRACE_"
ENV_ROOT = "HEADRACE_ROOT"
SHOWN_KEYS = 4
PROCESS_ENV = frozenset({"HEADRACE_TEST_BOOTSTRAP", "HEADRACE_CRASH_AT"})
"""Variables with our prefix that are not settings: they belong to the test suite."""


def load_settings(toml_text: str, environ: Mapping[str, str], overrides: Mapping[str, Any] | None = None, source: str = "headrace.toml") -> Settings:
    """Build the settings tree; later sources win.

    ``overrides`` maps dotted names (``"kafka.bootstrap_servers"``) to values; ``None`` values are skipped, so that unset flags
    can be passed as they are. Raises SettingsError naming the source, the key and the nearest known key.
    """
    tree = _parse_toml(toml_text, source)
    _check_keys(tree, source)
    for name, value in _environment_overrides(environ):
        _assign(tree, name, value, f"environment variable for {name}")
    for name, value in (overrides or {}).items():
        if value is not None:
            _assign(tree, name, value, f"flag for {name}")
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise SettingsError(_explain(error)) from error


def _parse_toml(text: str, source: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{source} is not valid TOML: {error}") from error


def _sections() -> dict[str, type[Section]]:
    fields = Settings.model_fields.items()
    return {name: field.annotation for name, field in fields if isinstance(field.annotation, type) and issubclass(field.annotation, Section)}


def known_names() -> list[str]:
    """Every dotted settings name, sorted."""
    names = ["root"]
    for section, model in _sections().items():
        names += [f"{section}.{key}" for key in model.model_fields]
    return sorted(names)


def _unknown(name: str, source: str) -> SettingsError:
    section, dot, key = name.partition(".")
    if not section.strip() or (dot and not key.strip()):
        return SettingsError(f"{source}: the name of the setting is missing in {name!r}; write SECTION.KEY, such as ingest.max_batch_records")
    if name in _sections():
        keys = ", ".join(f"{name}.{key}" for key in list(_sections()[name].model_fields)[:SHOWN_KEYS])
        return SettingsError(f"{source}: {name!r} is a section; name one of its settings: {keys} … (`headrace settings` shows all)")
    near = difflib.get_close_matches(name, known_names() + sorted(_sections()), n=1, cutoff=0.0)
    return SettingsError(f"{source}: there is no setting {name!r}; did you mean {near[0]!r}?")


def _check_keys(tree: Mapping[str, Any], source: str) -> None:
    sections = _sections()
    for name, value in tree.items():
        if name not in sections and name != "root":
            raise _unknown(name, source)
        if name in sections and isinstance(value, Mapping):
            for key in value:
                if key not in sections[name].model_fields:
                    raise _unknown(f"{name}.{key}", source)


def _environment_overrides(environ: Mapping[str, str]) -> Iterable[tuple[str, Any]]:
    for variable in sorted(environ):
        if not variable.startswith(ENV_PREFIX) or variable in PROCESS_ENV:
            continue
        if variable == ENV_ROOT:
            yield "root", environ[variable]
            continue
        name = variable.removeprefix(ENV_PREFIX).lower().replace("__", ".", 1)
        if name not in known_names():
            raise _unknown(name, f"environment variable {variable}")
        yield name, environ[variable]


def _from_text(name: str, text: str) -> Any:
    """A list setting takes a comma-separated value; pydantic converts the rest from text."""
    section, _, key = name.partition(".")
    is_list = bool(key) and isinstance(_sections()[section].model_fields[key].default, tuple)
    return tuple(part for part in text.split(",") if part) if is_list else text


def _assign(tree: dict[str, Any], name: str, value: Any, source: str) -> None:
    if name not in known_names():
        raise _unknown(name, source)
    *sections, key = name.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
    tree[key] = _from_text(name, value) if isinstance(value, str) else value


def _explain(error: ValidationError) -> str:
    """One line: every wrong setting with its value's problem; secrets are not echoed."""
    problems = [f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in error.errors(include_url=False, include_input=False)]
    return "wrong settings: " + "; ".join(problems)
