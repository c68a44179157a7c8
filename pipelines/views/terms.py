"""Filters as people write them on a command line: ``language=en,zh``, ``domain!=spam``, ``quality>=0.5&num_tokens<=2000``.

``&`` joins what must all hold; a comma joins alternatives. A weight is a filter with a share behind it: ``domain=tech:0.3``, ``rest:0.45``.
"""

import re
from collections.abc import Sequence
from typing import Any

from pipelines.views.lists import name_of_text
from schemas.errors import SettingsError
from schemas.view import LABELS, SCORES

_TERM = re.compile(r"^\s*([a-z_]+)\s*(!=|>=|<=|=)\s*(.+?)\s*$")
REST = "rest"
"""The group of everything that no group before it takes."""


def parse_filter(text: str) -> dict[str, Any]:
    """Fields of a Filter. Raises SettingsError."""
    fields: dict[str, Any] = {}
    for term in text.split("&"):
        name, value = _parse_term(term)
        if name in fields:
            raise SettingsError(f"{text!r} says {name} twice; join alternatives by commas")
        fields[name] = value
    return fields


def merged(filters: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All of them at once. Raises SettingsError if two say something about the same."""
    fields: dict[str, Any] = {}
    for part in filters:
        twice = sorted(fields.keys() & part.keys())
        if twice:
            raise SettingsError(f"two filters say something about {twice[0]}; join alternatives by commas")
        fields |= part
    return fields


def parse_weight(text: str) -> dict[str, Any]:
    """Fields of a Group, ``FILTER:WEIGHT`` or ``rest:WEIGHT``; it is named after its values. Raises SettingsError."""
    condition, _, number = text.rpartition(":")
    try:
        weight = float(number.rstrip("%")) / (100 if number.endswith("%") else 1)
    except ValueError as error:
        raise SettingsError(f"{text!r} is not a weight; write FIELD=VALUE:SHARE, such as domain=tech:0.3, or rest:0.4") from error
    if condition.strip() == REST:
        return {"name": REST, "weight": weight}
    wanted = parse_filter(condition)
    return {"name": _name_of(wanted), "weight": weight, **wanted}


def parse_holdout(text: str) -> dict[str, Any]:
    """Fields of a Holdout, ``NAME:FILTER``. Raises SettingsError."""
    name, _, condition = text.partition(":")
    if not condition:
        raise SettingsError(f"{text!r} is not a holdout; write NAME:FILTER, such as news:source=news")
    return {"name": name.strip(), **parse_filter(condition)}


def _name_of(wanted: dict[str, Any]) -> str:
    """``tech`` for domain=tech, ``max_num_tokens-80`` for num_tokens<=80."""
    parts = [
        "-".join(value) if field in LABELS else f"{field}-{'-'.join(value) if isinstance(value, list) else value}" for field, value in wanted.items()
    ]
    return name_of_text("-".join(parts))


def _parse_term(term: str) -> tuple[str, Any]:
    match = _TERM.match(term)
    if match is None:
        raise SettingsError(f"{term!r} is not a filter; write FIELD=VALUE,VALUE or FIELD!=VALUE ({', '.join(LABELS)}), FIELD>=N or FIELD<=N")
    field, operator, value = match.groups()
    if field in LABELS and operator in ("=", "!="):
        return ("" if operator == "=" else "not_") + field, [part.strip() for part in value.split(",")]
    if field in SCORES and operator in (">=", "<="):
        return ("min_" if operator == ">=" else "max_") + field, value
    raise SettingsError(f"{term.strip()!r} is not a filter: {', '.join(LABELS)} take = and !=; {', '.join(SCORES)} take >= and <=")
