"""Settings of the quality rules, one section for each set of rules, with the values of its source."""

from typing import Literal

from pydantic import Field, field_validator

from schemas.section import Section

RULE_SETS = ("headrace", "gopher_quality", "gopher_repetition", "c4", "fineweb")
"""The sets of rules that there are."""


class QualitySettings(Section):
    """Which sets of rules judge, and the thresholds of Headrace's own. Counts are in words; a CJK character counts as a word of its own."""

    rule_sets: tuple[str, ...] = ("headrace",)
    """Sets that judge, first come first named: ``headrace``, ``gopher_quality``, ``gopher_repetition``, ``c4``, ``fineweb``.
    ``c4`` goes before all others: it takes lines out of the text."""
    words: Literal["whitespace", "unicode"] = "whitespace"
    """What the Gopher and FineWeb sets count as words: text between white space (as the papers do), or Unicode words; unspaced script: letters."""
    min_words: int = Field(8, ge=1)
    """Shorter documents are rejected as ``too_short``."""
    max_chars: int = Field(2_000_000, ge=1)
    """Longer documents (some 1,000 pages) are rejected as ``too_long``; raise it for longer books."""
    max_mean_word_chars: float = Field(20.0, gt=0)
    """Mean word length above which text is not prose: base64, minified code. CJK characters count 1."""
    min_letter_ratio: float = Field(0.35, ge=0, le=1)
    """Least share of letters (any script) among non-space characters."""
    max_symbol_ratio: float = Field(0.25, ge=0, le=1)
    """Largest share of ``#``, ellipses, box drawing and other symbols; emoji are not symbols."""
    max_emoji_ratio: float = Field(0.8, ge=0, le=1)
    """Largest share of emoji among non-space characters; 1 keeps all."""
    max_duplicate_line_ratio: float = Field(0.3, ge=0, le=1)
    """Largest share of non-empty lines that repeat an earlier line (Gopher repetition)."""
    max_duplicate_line_char_ratio: float = Field(0.2, ge=0, le=1)
    """Largest share of characters that stand in repeated lines (Gopher repetition)."""
    max_top_ngram_char_ratio: float = Field(0.2, ge=0, le=1)
    """Largest share of characters covered by the most frequent word 2-gram (Gopher repetition)."""
    max_replacement_ratio: float = Field(0.005, ge=0, le=1)
    """Largest share of U+FFFD and control characters: the text was decoded wrongly upstream."""
    max_boilerplate_ratio: float = Field(0.5, ge=0, le=1)
    """Largest share of bytes in boilerplate lines: cookie banners, JavaScript notices, navigation lists, filler text; 1 keeps all."""
    remove_boilerplate_lines: bool = False
    """Cut boilerplate lines out of documents, before any rule looks at them."""
    code: Literal["keep", "reject"] = "keep"
    """What becomes of source code and minified code: documents with more than half of their bytes in lines that look so."""
    logs: Literal["keep", "reject"] = "keep"
    """What becomes of logs: documents with more than half of their bytes in lines that begin with a time."""
    chinese: Literal["both", "simplified", "traditional"] = "both"
    """Which Chinese script to keep. The majority of the characters that only one of the two scripts has decides which script a text is in."""
    languages: tuple[str, ...] = ()
    """ISO 639 codes to keep; empty keeps all languages."""

    @field_validator("rule_sets")
    @classmethod
    def rule_sets_exist(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        """Refuse unknown sets and sets named twice."""
        if unknown := [name for name in names if name not in RULE_SETS]:
            raise ValueError(f"quality.rule_sets has {', '.join(unknown)}; there are {', '.join(RULE_SETS)}")
        if len(set(names)) < len(names):
            raise ValueError(f"quality.rule_sets names a set twice: {', '.join(names)}")
        return names


class GopherQualitySettings(Section):
    """Gopher's quality rules (Rae et al. 2021, arXiv 2112.11446, appendix A.1). Two letters of unspaced script are a word."""

    min_words: int = Field(50, ge=0)
    """Fewest words that are not only punctuation; 0 asks for none."""
    max_words: int = Field(100_000, ge=1)
    """Most words that are not only punctuation."""
    min_mean_word_chars: float = Field(3.0, ge=0)
    """Least mean length of a word; not asked of unspaced script."""
    max_mean_word_chars: float = Field(10.0, gt=0)
    """Largest mean length of a word."""
    max_symbol_word_ratio: float = Field(0.1, ge=0)
    """Most ``#``, and most ellipses, per word."""
    max_bullet_line_ratio: float = Field(0.9, ge=0, le=1)
    """Largest share of lines that begin with a bullet."""
    max_ellipsis_line_ratio: float = Field(0.3, ge=0, le=1)
    """Largest share of lines that end in an ellipsis."""
    min_alpha_word_ratio: float = Field(0.8, ge=0, le=1)
    """Least share of words with a letter in them."""
    min_stop_words: int = Field(2, ge=0, le=8)
    """Fewest different stop words of the document's language (English, Chinese, Japanese, Korean and ten more; others are not asked)."""


class GopherRepetitionSettings(Section):
    """Gopher's repetition rules (Rae et al. 2021, arXiv 2112.11446, table A1). In unspaced script an n-gram of words is one of 2n letters."""

    max_duplicate_line_ratio: float = Field(0.3, ge=0, le=1)
    """Largest share of lines that repeat an earlier one."""
    max_duplicate_paragraph_ratio: float = Field(0.3, ge=0, le=1)
    """Largest share of paragraphs that repeat an earlier one."""
    max_duplicate_line_char_ratio: float = Field(0.2, ge=0, le=1)
    """Largest share of characters in repeated lines."""
    max_duplicate_paragraph_char_ratio: float = Field(0.2, ge=0, le=1)
    """Largest share of characters in repeated paragraphs."""
    max_top_ngram_char_ratios: tuple[float, ...] = Field((0.2, 0.18, 0.16), min_length=3, max_length=3)
    """Largest share of characters in the most frequent n-gram, for n = 2, 3, 4."""
    max_duplicate_ngram_char_ratios: tuple[float, ...] = Field((0.15, 0.14, 0.13, 0.12, 0.11, 0.1), min_length=6, max_length=6)
    """Largest share of characters in repeated n-grams, for n = 5 .. 10."""


class C4Settings(Section):
    """C4's rules (Raffel et al. 2020, arXiv 1910.10683, section 2.2): lines go, and documents of which too little is left."""

    require_terminal_punctuation: bool = True
    """Lines that do not end in terminal punctuation, or end in an ellipsis, go. FineWeb leaves this off."""
    remove_citations: bool = True
    """Cut ``[1]``, ``[edit]`` and ``[citation needed]`` out of lines."""
    min_words_per_line: int = Field(3, ge=0)
    """Lines of fewer words go."""
    max_word_chars: int = Field(1000, ge=1)
    """Lines with a longer word go."""
    min_sentences: int = Field(5, ge=0)
    """Documents with fewer sentences in the lines that stay are rejected."""
    remove_javascript_lines: bool = True
    """Lines that mention JavaScript go."""
    remove_policy_lines: bool = True
    """Lines that mention cookies, terms of use or a privacy policy go."""
    reject_lorem_ipsum: bool = True
    """Documents with filler text are rejected."""
    reject_curly_bracket: bool = True
    """Documents with a ``{`` are rejected."""


class FineWebSettings(Section):
    """FineWeb's rules (Penedo et al. 2024, arXiv 2406.17557, section 3.6). A letter of unspaced script is as wide as two."""

    min_line_punctuation_ratio: float = Field(0.12, ge=0, le=1)
    """Least share of lines that end in terminal punctuation."""
    max_short_line_ratio: float = Field(0.67, ge=0, le=1)
    """Largest share of short lines."""
    short_line_chars: int = Field(30, ge=1)
    """A line of no more characters is short."""
    max_duplicate_char_ratio: float = Field(0.01, ge=0, le=1)
    """Largest share of characters in lines that repeat an earlier one."""
    max_newline_ratio: float = Field(0.3, ge=0)
    """Most newlines per word: more make a list."""
