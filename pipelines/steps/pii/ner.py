"""The operator's own model for names, addresses and whatever else no pattern knows: ``pii.ner = "module:function"``.

The function takes a list of texts and returns for each a list of ``(start, end, type)``: positions in characters, ``type`` a word such as
``person``. It is configuration, like the rest of the settings file: the module is imported and runs with the rights of the worker. Nothing
that comes with a document is ever imported. It must answer the same for the same texts, or a replayed batch is not the same batch.

A module that cannot be imported is a SettingsError before anything is read (``check_ner``); a function that raises or answers
wrongly raises HookFailed, which stops the batch before it is committed: no document slips through unseen, and none is lost.
"""

import functools
import importlib
import re
from collections.abc import Callable, Sequence
from typing import Any

from pipelines.steps.pii.patterns import Match
from schemas.errors import HookFailed, SettingsError
from schemas.settings_pii import PiiSettings

Ner = Callable[[list[str]], Sequence[Sequence[tuple[int, int, str]]]]

_TYPE = re.compile(r"[a-z][a-z0-9_]{0,31}")


@functools.cache
def load_ner(name: str) -> Ner:
    """The function that ``module:function`` names. Raises SettingsError if there is none."""
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # a module may raise anything while it is imported
        told = f"pii.ner: {name!r} cannot be imported: {type(error).__name__}: {error}"
        raise SettingsError(f"{told}; install the module, or put its folder into PYTHONPATH") from error
    if not callable(found):
        raise SettingsError(f"pii.ner: {name!r} is a {type(found).__name__}, not a function")
    return found  # type: ignore[no-any-return]


def check_ner(settings: PiiSettings) -> None:
    """Raise SettingsError if the settings name a model that cannot be imported."""
    if has_ner(settings):
        load_ner(settings.ner)


def has_ner(settings: PiiSettings) -> bool:
    """Whether the operator's model is asked."""
    return bool(settings.ner) and settings.ner_action != "off"


def run_ner(name: str, texts: list[str]) -> list[list[Match]]:
    """What the function finds in each text, as byte positions, types in lower case. Raises HookFailed, SettingsError."""
    function = load_ner(name)
    try:
        answer = list(function(texts))
    except Exception as error:  # whatever the model raises, the batch must stop
        raise HookFailed(f"pii.ner: {name} raised {type(error).__name__}: {error}; the batch was not committed and will be read again") from error
    if len(answer) != len(texts):
        raise HookFailed(f"pii.ner: {name} answered for {len(answer)} of {len(texts)} texts; it must return one list for each")
    return [_matches(name, text, spans) for text, spans in zip(texts, answer, strict=True)]


def _matches(name: str, text: str, spans: Any) -> list[Match]:
    try:
        checked = sorted((int(start), int(end), str(name).lower()) for start, end, name in spans)
    except (TypeError, ValueError) as error:
        raise HookFailed(f"pii.ner: {name} returned {spans!r:.200}; it must return a list of (start, end, type) for each text") from error
    matches = []
    for start, end, kind in checked:
        if not 0 <= start < end <= len(text) or not _TYPE.fullmatch(kind):
            raise HookFailed(f"pii.ner: {name} found {kind!r:.60} at {start}..{end} in a text of {len(text)} characters; that is no span with a type")
        first = len(text[:start].encode())
        matches.append(Match(first, first + len(text[start:end].encode()), kind))
    return matches
