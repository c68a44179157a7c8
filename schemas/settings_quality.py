"""Settings of the quality rules, one section for each set of rules, with the values of its source."""

from pydantic import Field

from schemas.section import Section


class QualitySettings(Section):
    """Length, repetition and character rules. Counts are in words; a CJK character counts as a word of its own."""

    min_words: int = Field(8, ge=1)
    """Shorter documents are rejected as ``too_short``."""
    max_chars: int = Field(2_000_000, ge=1)
    """Longer documents are rejected as ``too_long``."""
    max_mean_word_chars: float = Field(20.0, gt=0)
    """Mean word length above which text is not prose: base64, minified code. CJK characters count 1."""
    min_letter_ratio: float = Field(0.35, ge=0, le=1)
    """Least share of letters (any script) among non-space characters."""
    max_symbol_ratio: float = Field(0.25, ge=0, le=1)
    """Largest share of ``#``, ellipses, box drawing and other symbols; emoji are not symbols."""
    max_duplicate_line_ratio: float = Field(0.3, ge=0, le=1)
    """Largest share of non-empty lines that repeat an earlier line (Gopher repetition)."""
    max_duplicate_line_char_ratio: float = Field(0.2, ge=0, le=1)
    """Largest share of characters that stand in repeated lines (Gopher repetition)."""
    max_top_ngram_char_ratio: float = Field(0.2, ge=0, le=1)
    """Largest share of characters covered by the most frequent word 2-gram (Gopher repetition)."""
    max_replacement_ratio: float = Field(0.005, ge=0, le=1)
    """Largest share of U+FFFD and control characters: the text was decoded wrongly upstream."""
    languages: tuple[str, ...] = ()
    """ISO 639 codes to keep; empty keeps all languages."""


class GopherQualitySettings(Section):
    """Gopher's quality rules."""


class GopherRepetitionSettings(Section):
    """Gopher's repetition rules."""


class C4Settings(Section):
    """C4's rules."""


class FineWebSettings(Section):
    """FineWeb's rules."""
