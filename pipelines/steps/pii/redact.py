"""Personal data and secrets out of whole batches: found, counted, and replaced by typed placeholders.

In this order: (1) one compiled pass finds the stretches that may hold something (windows.py); (2) RE2 patterns look into these, checksums and
contexts confirm (patterns.py, checks.py); (3) overlaps are resolved: the type that PRIORITY names first wins, then the earlier, then the longer
match, the operator's model last; (4) the batch is written anew with placeholders, in offset order; (5) rewritten documents go through (1) to (4)
again until nothing is found, because a placeholder can part what stood together.

The placeholder of a type is its name in capitals between angle brackets: ``<EMAIL>``, ``<RESIDENT_ID>``. It is plain text to the tokenizer (which
encodes special tokens as text too), a byte-level tokenizer gives it back unchanged, and special tokens are written ``<|…|>``.

Invariants: ``redact`` is idempotent (without the operator's model); what it writes holds no match of a redacted type; a text without a match keeps
its bytes, a batch without one its buffers; what becomes of a document depends on that document alone; no text raises. A dropped document comes
back redacted too, so that nobody who shows rejected documents shows what they were rejected for.
Cost: about 100 MB/s on one core for ordinary text, 70 MB/s for manuals full of addresses and dotted numbers.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.steps.pii.ner import has_ner, run_ner
from pipelines.steps.pii.patterns import PRIORITY, Match, find, finders
from pipelines.steps.pii.windows import Windows, find_windows
from pipelines.text.buffers import Utf8, large_strings, utf8_views
from schemas.arrow import PII_COUNTS
from schemas.settings_pii import PiiAction, PiiSettings

_Matches = dict[int, list[Match]]
"""Matches by row."""
_RANK = {name: rank for rank, name in enumerate(PRIORITY)}


class Redacted(NamedTuple):
    """What became of n texts."""

    texts: pa.Array
    """large_string [n], no nulls; the very array that came in, if it is one and nothing was replaced in it."""
    counts: pa.Array
    """schemas.arrow.PII_COUNTS [n]; null where nothing was found."""
    rules: pa.Array
    """string [n]: ``pii/<type>`` of the first dropping type in PRIORITY; null: accepted."""


def redact(texts: pa.Array, settings: PiiSettings) -> Redacted:
    """Apply the settings to each text (``string`` or ``large_string``; a null counts as empty).

    Raises HookFailed and SettingsError for the operator's model only (ner.py).
    """
    texts = texts if texts.type == pa.large_string() else texts.cast(pa.large_string())
    texts = texts.fill_null("") if texts.null_count else texts
    final: dict[int, Counter[str]] = {}  # replaced, or the model's
    standing: dict[int, Counter[str]] = {}  # found in what is written so far, and left there
    rows, current, from_model = np.arange(len(texts)), texts, _from_model(texts, settings)
    while len(rows):
        found = _resolved(current, settings, from_model)
        rewritten, of_model, left = _by_fate(found, from_model, settings)
        _tally(rows, rewritten, final)
        _tally(rows, of_model, final)
        _tally(rows, {row: matches for row, matches in left.items() if row not in rewritten}, standing)
        if not rewritten:
            break
        texts, current, rows = _written(texts, current, rows, rewritten)
        from_model = {}
    return Redacted(texts, _counts(len(texts), final, standing), _rules(len(texts), final, settings))


def _by_fate(found: _Matches, from_model: _Matches, settings: PiiSettings) -> tuple[_Matches, _Matches, _Matches]:
    """The matches that placeholders replace, those that stay and came from the operator's model, and the others that stay."""
    fates: tuple[_Matches, _Matches, _Matches] = ({}, {}, {})
    for row, matches in found.items():
        for match in matches:
            stays = _action(match, settings) == "count"
            fate = fates[0] if not stays else fates[1] if match in from_model.get(row, ()) else fates[2]
            fate.setdefault(row, []).append(match)
    return fates


def _action(match: Match, settings: PiiSettings) -> PiiAction:
    action: PiiAction = getattr(settings, match.type) if match.type in _RANK else settings.ner_action
    return action


def _from_model(texts: pa.Array, settings: PiiSettings) -> _Matches:
    """What the operator's model finds. A type of ours is under our own setting of that name."""
    if not has_ner(settings) or not len(texts):
        return {}
    found = enumerate(run_ner(settings.ner, texts.to_pylist()))
    return {row: [match for match in matches if _action(match, settings) != "off"] for row, matches in found if matches}


def _resolved(texts: pa.Array, settings: PiiSettings, from_model: _Matches) -> _Matches:
    """The matches in each text that has any, in offset order and without overlaps."""
    found = {row: list(matches) for row, matches in from_model.items()}
    types = frozenset(name for name in PRIORITY if getattr(settings, name) != "off")
    if types:
        _search(utf8_views(texts), types, settings.ip_private, found)
    resolved = {row: _without_overlaps(matches) for row, matches in found.items()}
    return {row: matches for row, matches in resolved.items() if matches}


def _search(texts: Utf8, types: frozenset[str], with_private: bool, found: _Matches) -> None:
    """Look into all windows; only their documents become Python objects, one at a time."""
    wanted = finders(types, with_private)
    windows = find_windows(texts, sum({finder.kind for finder in wanted}))
    by_kind = {
        int(kind): [finder for finder in wanted if kind & finder.kind and kind & finder.marks == finder.marks] for kind in np.unique(windows.kinds)
    }
    at, document = -1, b""
    for row, kind, start, stop in _as_rows(windows):
        if row != at:
            at, document = row, texts.data[texts.offsets[row] : texts.offsets[row + 1]].tobytes()
        for finder in by_kind[kind]:
            matches = [match for match in find(document, finder, start, stop) if match.type in types]
            if matches:
                found.setdefault(row, []).extend(matches)


def _as_rows(windows: Windows) -> Iterable[tuple[int, int, int, int]]:
    return zip(*(column.tolist() for column in windows), strict=True)


def _without_overlaps(matches: list[Match]) -> list[Match]:
    """Step 3. Kept matches stay sorted; there are few in one document, and each is checked against its neighbours only."""
    kept: list[Match] = []
    starts: list[int] = []
    for match in sorted(matches, key=lambda match: (_RANK.get(match.type, len(_RANK)), match.start, -match.stop)):
        at = bisect_right(starts, match.start)
        if (at and kept[at - 1].stop > match.start) or (at < len(kept) and kept[at].start < match.stop):
            continue
        kept.insert(at, match)
        starts.insert(at, match.start)
    return kept


def _written(
    texts: pa.Array, current: pa.Array, rows: npt.NDArray[np.int64], rewritten: _Matches
) -> tuple[pa.Array, pa.Array, npt.NDArray[np.int64]]:
    """Step 4: all texts with the changed ones in place, the changed ones alone, and their rows."""
    view = utf8_views(current)
    changed = np.array(sorted(rewritten))
    documents = [_with_placeholders(view.data[view.offsets[row] : view.offsets[row + 1]].tobytes(), rewritten[row]) for row in changed.tolist()]
    ends = np.cumsum([0, *map(len, documents)])
    written = large_strings(np.frombuffer(b"".join(documents), np.uint8), ends.astype(np.int64))
    source = np.arange(len(texts))
    source[rows[changed]] = len(texts) + np.arange(len(changed))
    return pa.concat_arrays([texts, written]).take(pa.array(source)), written, rows[changed]


def _with_placeholders(document: bytes, matches: list[Match]) -> bytes:
    parts = []
    at = 0
    for match in matches:
        parts += [document[at : match.start], b"<", match.type.upper().encode(), b">"]
        at = match.stop
    return b"".join([*parts, document[at:]])


def _tally(rows: npt.NDArray[np.int64], found: _Matches, counts: dict[int, Counter[str]]) -> None:
    for row, matches in found.items():
        counts.setdefault(int(rows[row]), Counter()).update(match.type for match in matches)


def _counts(num_texts: int, *tallies: dict[int, Counter[str]]) -> pa.Array:
    column: list[list[dict[str, str | int]] | None] = [None] * num_texts
    for row in sorted({row for tally in tallies for row in tally}):
        total = sum((tally.get(row, Counter()) for tally in tallies), Counter())
        column[row] = [{"type": name, "count": count} for name, count in sorted(total.items())] or None
    return pa.array(column, PII_COUNTS)


def _rules(num_texts: int, final: dict[int, Counter[str]], settings: PiiSettings) -> pa.Array:
    column: list[str | None] = [None] * num_texts
    for row, counter in final.items():
        dropping = [name for name in counter if _action(Match(0, 0, name), settings) == "drop"]
        if dropping:
            column[row] = "pii/" + min(dropping, key=lambda name: (_RANK.get(name, len(_RANK)), name))
    return pa.array(column, pa.string())
