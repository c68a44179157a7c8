"""Rules of quality: named sets judge each document, and the first rule that it breaks names the verdict.

| set | rules are in | names |
|---|---|---|
| ``headrace`` | rules/headrace.py | ``too_short``, ``few_letters`` … |
| ``gopher_quality``, ``gopher_repetition`` | rules/gopher.py | ``gopher_quality/too_few_words`` … |
| ``c4`` | rules/c4.py | ``c4/too_few_sentences`` …; takes lines out of documents, so it goes first |
| ``fineweb`` | rules/fineweb.py | ``fineweb/short_lines`` … |
Whatever the sets, a document with more than ``quality.max_chars`` characters is ``too_long`` and not looked at any further, and
``language_not_kept`` and ``chinese_not_kept`` come last.

Invariant: a verdict depends on the document, its language and the settings alone, not on its batch; no text raises.
Words in unspaced script: where more than half of a document's letters are of such scripts, two letters count as a word in all sets but
``headrace``, whatever ``quality.words`` says. Texts are normalized before: lines end in ``\\n``, none ends in a space.
Cost on one core: about 70 MB/s for ``headrace``, 40 MB/s for all five sets; scratch of up to 140 bytes per character of the longest document.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from numba import njit

from pipelines.steps.rules.c4 import RULES as C4_RULES
from pipelines.steps.rules.c4 import c4_options, clean_lines
from pipelines.steps.rules.columns import C4_RULE, IS_UNSPACED, NUM_CHARS, NUM_COLUMNS, NUM_SIMPLIFIED, NUM_TRADITIONAL, TOP_GRAM_CHARS
from pipelines.steps.rules.fineweb import broken_fineweb
from pipelines.steps.rules.gopher import STOP_LANGUAGES, STOP_WORDS, Masks, broken_quality, broken_repetition
from pipelines.steps.rules.headrace import Counts, broken_rules, count_characters, count_own_lines, drop_boilerplate, is_unspaced, top_gram
from pipelines.steps.rules.lines import count_lines, count_paragraphs, hash_lines
from pipelines.steps.rules.marks import rule_flags
from pipelines.steps.rules.phrases import automaton, match_lines
from pipelines.steps.rules.repetition import count_grams
from pipelines.steps.rules.scratch import count_chars, decode, empty_scratch, encode, split_lines
from pipelines.steps.rules.words import count_words, split_spaced, split_unicode, stop_table
from pipelines.text.buffers import large_strings, utf8_views
from schemas.settings import Settings

_UNDETERMINED = "und"


class Judged(NamedTuple):
    """What the rules made of a batch of texts."""

    texts: pa.Array
    """large_string [n]; of a rejected document the text that was judged, or the original if C4 rejected it."""
    rules: pa.Array
    """string [n]: the first broken rule; null: accepted."""
    num_chars: pa.Array
    """int64 [n]: characters of ``texts``."""


class Measured(NamedTuple):
    """The cleaned texts, and the counts that the rules look at."""

    texts: pa.Array
    counts: Counts
    """int64 [n, NUM_COLUMNS], see pipelines.steps.rules.columns; only the number of characters in texts over the limit."""


class _Plan(NamedTuple):
    """What to measure, as the kernels take it."""

    looks: bool
    """Whether anything but the number of characters is asked for."""
    characters: bool
    own: bool
    words: bool
    grams: bool
    lines: bool
    c4: bool
    no_boilerplate: bool
    cleans: bool
    """Whether texts may change."""
    is_unicode: bool
    short_chars: int
    max_chars: int


def judge(texts: pa.Array, languages: pa.Array, num_controls: npt.NDArray[np.int64], settings: Settings) -> Judged:
    """Clean and judge normalized texts. ``languages`` has a code for each; ``num_controls`` counts the control characters that normalization
    removed from it."""
    cleaned, counts = measure(texts, languages, settings)
    broken = {"too_long": counts[:, NUM_CHARS] > settings.quality.max_chars}
    if "c4" in settings.quality.rule_sets:
        broken |= {str(rule): counts[:, C4_RULE] == verdict for verdict, rule in enumerate(C4_RULES) if rule}
    for name in settings.quality.rule_sets:
        broken |= _broken_of(name, counts, languages, num_controls, settings)
    broken["language_not_kept"] = _not_kept(languages, settings.quality.languages)
    broken["chinese_not_kept"] = _other_chinese(counts, languages, settings.quality.chinese)
    names = np.array([*broken, None], object)
    first = np.argmax(np.stack([*broken.values(), np.ones(len(counts), bool)]), axis=0)
    return Judged(cleaned, pa.array(names[first], pa.string()), pa.array(counts[:, NUM_CHARS]))


def measure(texts: pa.Array, languages: pa.Array, settings: Settings) -> Measured:
    """Clean the texts and count what the chosen sets need."""
    data, offsets = utf8_views(texts)
    plan = _plan(settings)
    counts = np.zeros((len(texts), NUM_COLUMNS), np.int64)
    num_chars = np.zeros(len(texts), np.int64)
    count_chars(data, offsets, num_chars)
    if not plan.looks:
        counts[:, NUM_CHARS] = num_chars
        return Measured(texts, counts)
    scratch = empty_scratch(int(np.max(num_chars[num_chars <= plan.max_chars], initial=1)))
    room = int(offsets[-1] - offsets[0]) if len(texts) and plan.cleans else 0
    cleaned = (np.empty(room, np.uint8), np.zeros(len(texts) + 1, np.int64))
    tables = (rule_flags(), automaton(), stop_table(STOP_WORDS.values()))
    _measure_all((data, offsets), cleaned, num_chars, _stop_lists(languages), tables, scratch, (plan, c4_options(settings.c4)), counts)
    return Measured(large_strings(cleaned[0][: cleaned[1][-1]], cleaned[1]) if plan.cleans else texts, counts)


def _plan(settings: Settings) -> _Plan:
    sets = set(settings.quality.rule_sets)
    characters = bool(sets & {"headrace", "gopher_quality"}) or settings.quality.chinese != "both"
    return _Plan(
        looks=bool(sets) or characters or settings.quality.remove_boilerplate_lines,
        characters=characters,
        own="headrace" in sets,
        words=bool(sets & {"gopher_quality", "gopher_repetition", "fineweb"}),
        grams="gopher_repetition" in sets,
        lines=bool(sets & {"gopher_quality", "gopher_repetition", "fineweb"}),
        c4="c4" in sets,
        no_boilerplate=settings.quality.remove_boilerplate_lines,
        cleans="c4" in sets or settings.quality.remove_boilerplate_lines,
        is_unicode=settings.quality.words == "unicode",
        short_chars=settings.fineweb.short_line_chars,
        max_chars=settings.quality.max_chars,
    )


def _broken_of(name: str, counts: Counts, languages: pa.Array, num_controls: npt.NDArray[np.int64], settings: Settings) -> Masks:
    match name:
        case "headrace":
            return broken_rules(counts, num_controls, settings.quality)
        case "gopher_quality":
            broken = broken_quality(counts, _stop_lists(languages) > 0, settings.gopher_quality)
        case "gopher_repetition":
            broken = broken_repetition(counts, settings.gopher_repetition)
        case "fineweb":
            broken = broken_fineweb(counts, settings.fineweb)
        case _:
            broken = {}
    return {f"{name}/{rule}": mask for rule, mask in broken.items()}


def _stop_lists(languages: pa.Array) -> npt.NDArray[np.int64]:
    """The number of each document's list of stop words; 0: there is none. Where the language is not known, English."""
    known = pc.if_else(pc.equal(languages, _UNDETERMINED), "en", languages)
    numbers = pc.index_in(known.cast(pa.string()), value_set=pa.array(STOP_LANGUAGES))
    return pc.add(numbers.fill_null(-1), 1).to_numpy(zero_copy_only=False).astype(np.int64)  # type: ignore[no-any-return]


def _not_kept(languages: pa.Array, kept: tuple[str, ...]) -> npt.NDArray[np.bool_]:
    return ~np.isin(np.asarray(languages, dtype=object).astype(str), kept) if kept else np.zeros(len(languages), bool)


def _other_chinese(counts: Counts, languages: pa.Array, kept: str) -> npt.NDArray[np.bool_]:
    """Texts of Chinese that are mostly of the other variety; one without telling characters is of both."""
    if kept == "both":
        return np.zeros(len(counts), bool)
    wanted, other = (NUM_SIMPLIFIED, NUM_TRADITIONAL) if kept == "simplified" else (NUM_TRADITIONAL, NUM_SIMPLIFIED)
    is_chinese = pc.equal(languages, "zh").fill_null(False).to_numpy(zero_copy_only=False)
    mask: npt.NDArray[np.bool_] = is_chinese & (counts[:, other] > counts[:, wanted])
    return mask


@njit(cache=True, nogil=True)
def _measure_all(texts: Any, cleaned: Any, num_chars: Any, lists: Any, tables: Any, scratch: Any, plans: Any, counts: Any) -> None:
    data, offsets = texts
    out, out_offsets = cleaned
    flags, phrases, stops = tables
    plan, c4 = plans
    at = 0
    for i in range(len(num_chars)):
        start, stop = offsets[i], offsets[i + 1]
        counts[i, NUM_CHARS] = num_chars[i]
        is_cleaned = False
        if num_chars[i] <= plan.max_chars:
            num = decode(data, flags, start, stop, scratch)
            counts[i, IS_UNSPACED] = is_unspaced(scratch, num)
            if plan.own or plan.cleans:
                match_lines(data, start, stop, phrases, scratch.masks)
            if plan.cleans:
                num = _clean(scratch, num, plan, c4, counts[i])
            if counts[i, C4_RULE] == 0:
                is_cleaned = plan.cleans
                _measure_one(scratch, num, lists[i], stops, plan, counts[i])
        if is_cleaned:
            at = encode(scratch.codes, num, out, at)
        elif plan.cleans:
            out[at : at + stop - start] = data[start:stop]
            at += stop - start
        if plan.cleans:
            out_offsets[i + 1] = at


@njit(cache=True, nogil=True)
def _clean(scratch: Any, num_chars: Any, plan: Any, c4: Any, counts: Any) -> Any:
    """Take lines out; the number of characters. ``masks`` goes with the lines that stay."""
    num_lines = split_lines(scratch, num_chars)
    if plan.no_boilerplate:
        hash_lines(scratch, num_lines)
        num_chars = drop_boilerplate(scratch, num_lines)
        num_lines = split_lines(scratch, num_chars)
    if plan.c4:
        num_chars, counts[C4_RULE] = clean_lines(scratch, num_lines, counts[IS_UNSPACED], c4)
    return num_chars


@njit(cache=True, nogil=True)
def _measure_one(scratch: Any, num_chars: Any, stop_list: Any, stops: Any, plan: Any, counts: Any) -> None:
    counts[NUM_CHARS] = num_chars
    if plan.characters:
        count_characters(scratch, num_chars, counts)
    if not (plan.own or plan.lines):
        return
    num_lines = split_lines(scratch, num_chars)
    hash_lines(scratch, num_lines)
    num_words = 0
    if plan.own:
        count_own_lines(scratch, num_lines, counts)
        num_words = split_unicode(scratch, num_chars, counts)
        counts[TOP_GRAM_CHARS] = top_gram(scratch, num_words)
    if plan.lines:
        count_lines(scratch, num_lines, counts[IS_UNSPACED], plan.short_chars, counts)
    if plan.words:
        if not plan.is_unicode and not counts[IS_UNSPACED]:
            num_words = split_spaced(scratch, num_chars)
        elif not plan.own:
            num_words = split_unicode(scratch, num_chars, counts)
        count_words(scratch, num_words, stops, stop_list, counts)
    if plan.grams:
        count_paragraphs(scratch, num_lines, counts)
        count_grams(scratch, num_words, 2 if counts[IS_UNSPACED] else 1, counts)
