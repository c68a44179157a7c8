"""What the producer declares of a document besides its text: title, licence, time of creation, meta. Kept for whoever uses the document later.

Invariant: each value is bounded (below), a licence is never guessed, and what the settings redact in texts is redacted here too; a type that
drops documents is only redacted, since a text is judged by what it says itself. The operator's model is not asked. ``meta`` is JSON text.
Only documents that were not rejected keep these values. Cost: nothing for documents that declare nothing; 15 us for one that declares all
four, most of it ``meta``.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.steps.pii import redact
from schemas.documents import Document
from schemas.settings_pii import PiiSettings

MAX_TITLE_CHARS, MAX_LICENSE_CHARS, MAX_CREATED_AT_CHARS = 512, 256, 64
"""Longer values are cut."""
MAX_META_BYTES = 4_096
"""A meta object whose JSON is longer is left out; one that says so takes its place: ``{"headrace_omitted": "5,000 bytes"}``."""
OMITTED = "headrace_omitted"
NAMES = ("title", "license", "created_at", "meta")


class Declared(NamedTuple):
    """The values of one document, in the order of NAMES; None: nothing was declared."""

    title: str | None = None
    license: str | None = None
    created_at: str | None = None
    meta: str | None = None


_NOTHING = Declared()


def declared_of(document: Document) -> Declared:
    """What the document declares, bounded."""
    if not (document.title or document.license or document.created_at or document.meta):
        return _NOTHING
    return Declared(
        document.title[:MAX_TITLE_CHARS] if document.title else None,
        document.license[:MAX_LICENSE_CHARS] if document.license else None,
        document.created_at[:MAX_CREATED_AT_CHARS] if document.created_at else None,
        _meta(document.meta) if document.meta else None,
    )


def declared_columns(decoded: pa.Table, kept: Any, settings: PiiSettings) -> dict[str, pa.ChunkedArray]:
    """Columns NAMES of ``decoded``, redacted, null in rows that are not ``kept`` (bool [n])."""
    rows = pa.array(np.arange(len(decoded)), mask=~np.asarray(kept).astype(bool))
    columns = {name: decoded[name].take(rows) for name in NAMES}
    hiding = settings.model_copy(update={name: "redact" for name, action in settings if action == "drop"} | {"ner": ""})
    for name, hide in (("title", _hidden), ("license", _hidden), ("meta", _hidden_meta)):
        known = columns[name].drop_null()
        if len(known):
            found = np.flatnonzero(columns[name].is_valid().to_numpy())
            places = np.full(len(decoded), -1, np.int64)
            places[found] = np.arange(len(found))
            columns[name] = hide(known, hiding).take(pa.array(places, mask=places < 0))
    return columns


def _hidden(values: pa.ChunkedArray, settings: PiiSettings) -> pa.ChunkedArray:
    texts = redact(pa.array(values.to_pylist(), pa.large_string()), settings).texts
    return pa.chunked_array([texts.cast(pa.string())])


def _hidden_meta(values: pa.ChunkedArray, settings: PiiSettings) -> pa.ChunkedArray:
    """Objects in which the settings redact something are written anew, string by string; the others stay as they are."""
    metas = values.to_pylist()
    shown = pa.array(["\n".join(_leaves(orjson.loads(meta))) for meta in metas], pa.large_string())
    is_changed = pc.not_equal(redact(shown, settings).texts, shown).to_pylist()
    written = [_rewritten(meta, settings) if changed else meta for meta, changed in zip(metas, is_changed, strict=True)]
    return pa.chunked_array([pa.array(written, pa.string())])


def _rewritten(meta: str, settings: PiiSettings) -> str:
    value = orjson.loads(meta)
    leaves = redact(pa.array(list(_leaves(value)), pa.large_string()), settings).texts.to_pylist()
    return orjson.dumps(_with_leaves(value, iter(leaves))).decode()


def _leaves(value: Any) -> Iterator[str]:
    """Names, strings and numbers of a JSON value, in order."""
    if isinstance(value, dict):
        for name, entry in value.items():
            yield name
            yield from _leaves(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _leaves(entry)
    else:
        yield str(value)


def _with_leaves(value: Any, leaves: Iterator[str]) -> Any:
    """The value with these strings in place of its own; a value that is no string stays what it is if its string is the same."""
    if isinstance(value, dict):
        return {next(leaves): _with_leaves(entry, leaves) for entry in value.values()}
    if isinstance(value, list):
        return [_with_leaves(entry, leaves) for entry in value]
    told = next(leaves)
    return value if told == str(value) else told


def _meta(meta: dict[str, Any]) -> str:
    try:
        data = orjson.dumps(meta)
    except orjson.JSONEncodeError:  # nested deeper than 254 levels
        return orjson.dumps({OMITTED: "nested too deeply"}).decode()
    return data.decode() if len(data) <= MAX_META_BYTES else orjson.dumps({OMITTED: f"{len(data):,} bytes"}).decode()
