"""Why a rule rejected a document, for a person: what the rule measured, and the setting that applies."""

from schemas.settings_quality import RULE_SETS

_OWN = {
    "too_long": "more characters than quality.max_chars",
    "replacement_chars": "too many U+FFFD and control characters, it was decoded wrongly upstream (quality.max_replacement_ratio)",
    "mojibake": "it was decoded in the wrong character set before it was published; publish the original again as UTF-8, or with its charset",
    "too_short": "fewer words than quality.min_words, in what is left without the lines that cleaning took out (dedup.boilerplate, "
    "quality.remove_boilerplate_lines, the set c4)",
    "mean_word_length": "words too long for prose (quality.max_mean_word_chars)",
    "few_letters": "too few letters (quality.min_letter_ratio)",
    "symbols": "too many symbols (quality.max_symbol_ratio)",
    "emoji": "hardly anything but emoji (quality.max_emoji_ratio)",
    "duplicate_lines": "too many lines repeat an earlier one (quality.max_duplicate_line_ratio)",
    "duplicate_line_chars": "too much of it stands in repeated lines (quality.max_duplicate_line_char_ratio)",
    "top_ngram": "one pair of words covers too much of it (quality.max_top_ngram_char_ratio)",
    "boilerplate": "too much of it stands in lines like banners, legal notices and calls to subscribe (quality.max_boilerplate_ratio); with "
    "quality.remove_boilerplate_lines these lines go and the rest stays",
    "code": "most of it is source code (quality.code)",
    "log": "most of it is a log (quality.logs)",
    "language_not_kept": "its language is not one of quality.languages",
    "chinese_not_kept": "its Chinese is not the one that quality.chinese keeps",
}


def why(rule: str) -> str | None:
    """The reason behind a rule's name; none for rules whose name or message says it all."""
    name, slash, _ = rule.partition("/")
    return f"a rule of the set {name}: its thresholds are in the section [{name}]" if slash and name in RULE_SETS else _OWN.get(rule)
