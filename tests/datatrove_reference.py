"""datatrove's filters, run with the word and sentence splitting that the rules have, for parity tests and benchmarks.

datatrove splits words and sentences with spaCy, which is another question than what a rule does with them: here both split words at white space,
and sentences at terminal punctuation before white space.
"""

import importlib
import importlib.util
import re
from collections.abc import Iterable
from typing import Any

from schemas.settings import Settings
from schemas.settings_quality import QualitySettings

IS_INSTALLED = all(importlib.util.find_spec(name) for name in ("datatrove", "loguru", "humanize", "multiprocess"))
RULES = {
    "gopher_short_doc": "too_few_words",
    "gopher_long_doc": "too_many_words",
    "gopher_below_avg_threshold": "mean_word_too_short",
    "gopher_above_avg_threshold": "mean_word_too_long",
    "gopher_too_many_hashes": "hashes",
    "gopher_too_many_ellipsis": "ellipses",
    "gopher_too_many_bullets": "bullet_lines",
    "gopher_too_many_end_ellipsis": "ellipsis_lines",
    "gopher_below_alpha_threshold": "few_alpha_words",
    "gopher_enough_stop_words": "few_stop_words",
    "dup_para_frac": "duplicate_paragraphs",
    "dup_para_char_frac": "duplicate_paragraph_chars",
    "dup_line_frac": "duplicate_lines",
    "dup_line_char_frac": "duplicate_line_chars",
    **{f"duplicated_{n}_n_grams": f"duplicate_{n}_grams" for n in range(5, 11)},
    "line_punct_ratio": "line_punctuation",
    "short_line_ratio": "short_lines",
    "char_dup_ratio": "duplicate_chars",
    "list_ratio": "newlines",
}
"""Our name of each of datatrove's reasons, where it differs."""
SETS = ("gopher_quality", "gopher_repetition", "c4", "fineweb")
_SENTENCE_END = re.compile(r"[.!?]+[.!?\"')\]]*(?=\s|$)")


def settings_of(name: str) -> Settings:
    """Only this set, at its defaults, with words between white space."""
    return Settings(quality=QualitySettings(rule_sets=(name,), words="whitespace"))


def split_words(text: str, _language: str = "") -> list[str]:
    return text.split()


def split_sentences(text: str, _language: str = "") -> list[str]:
    """Pieces of a text that end at terminal punctuation before white space, and what is left."""
    pieces, at = [], 0
    for end in _SENTENCE_END.finditer(text):
        pieces.append(text[at : end.end()])
        at = end.end()
    return [*pieces, text[at:]] if text[at:].strip() else pieces


def filters() -> dict[str, Any]:
    """datatrove's filter for each set, with our splitting."""
    package = importlib.import_module("datatrove.pipeline.filters")
    for name in ("gopher_quality_filter", "gopher_repetition_filter", "fineweb_quality_filter"):
        importlib.import_module(f"datatrove.pipeline.filters.{name}").split_into_words = split_words  # type: ignore[attr-defined]
    importlib.import_module("datatrove.pipeline.filters.c4_filters").split_into_sentences = split_sentences  # type: ignore[attr-defined]
    classes = (package.GopherQualityFilter, package.GopherRepetitionFilter, package.C4QualityFilter, package.FineWebQualityFilter)
    return {name: made() for name, made in zip(SETS, classes, strict=True)}


def verdicts(name: str, texts: Iterable[str]) -> list[tuple[str | None, str]]:
    """For each text the rule that datatrove names, as we name it (None: accepted), and the text that it leaves."""
    new_document = importlib.import_module("datatrove.data").Document
    judge = filters()[name].filter
    answers = []
    for text in texts:
        document = new_document(text=text, id="")
        answer = judge(document)
        reason = answer[1] if isinstance(answer, tuple) else None
        answers.append((None if reason is None else f"{name}/{RULES.get(reason, reason)}", document.text))
    return answers
