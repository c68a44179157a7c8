"""Statistics of a dataset version: counts in bins that never change, so that versions can be added up and compared.

Every histogram is sparse (bin -> count, empty bins left out). The bins are part of the contract; ``FORMAT`` changes when they do:

octaves           chars, tokens, freshness_s   bin 0 holds 0, bin b > 0 holds [2^(b-1), 2^b)
quarter octaves   perplexity, informativeness  bin b holds [2^(b/4), 2^((b+1)/4)), b within -64 and 127; 0 and less lie in the lowest
twentieths        quality                      bin b holds [b/20, (b+1)/20), b within 0 and 19

What is bounded: ``MAX_SOURCES`` sources, ``MAX_DOMAINS`` domains, the largest by count; the rest is ``other``. Sources and domains
beyond the first ``MAX_DISTINCT`` distinct ones of a version, in commit order, go to ``other`` at once.
"""

from enum import StrEnum

from pydantic import Field

from schemas.arrow import Outcome
from schemas.record import Record

FORMAT = 1
"""Version of the bins."""
MAX_SOURCES = 16
MAX_DOMAINS = 32
MAX_DISTINCT = 4_096
UNKNOWN = "unknown"
"""Source or domain of a record that names none."""
OTHER = "other"
"""All sources or domains that are not among the largest."""
TWENTIETHS = 20
LOWEST_QUARTER, HIGHEST_QUARTER = -64, 127


class Bins(StrEnum):
    """How numbers become bins."""

    OCTAVES = "octaves"
    QUARTER_OCTAVES = "quarter octaves"
    TWENTIETHS = "twentieths"


HISTOGRAMS = {
    "chars": Bins.OCTAVES,
    "tokens": Bins.OCTAVES,
    "freshness_s": Bins.OCTAVES,
    "perplexity": Bins.QUARTER_OCTAVES,
    "informativeness": Bins.QUARTER_OCTAVES,
    "quality": Bins.TWENTIETHS,
}
"""Histogram -> its bins."""


def lower_bound(bins: Bins, number: int) -> float:
    """Smallest value in a bin; the next bin's is where it ends."""
    if bins is Bins.OCTAVES:
        return 0.0 if number == 0 else 2.0 ** (number - 1)
    return 2.0 ** (number / 4) if bins is Bins.QUARTER_OCTAVES else number / TWENTIETHS


class LanguageTotals(Record):
    """Kept documents of one language. Fertility, tokens per character, is the quotient of two of these."""

    documents: int = Field(0, ge=0)
    """Kept documents."""
    chars: int = Field(0, ge=0)
    """Their characters."""
    tokens: int = Field(0, ge=0)
    """Their tokens, the end-of-text token of each included."""
    replaced: int = Field(0, ge=0)
    """U+FFFD among their characters: characters that were lost in decoding; 0 in older versions, which did not count them."""


class Distribution(Record):
    """Counts of one source, or of all. Outcomes, reasons, personal data and freshness count every record; the rest kept documents."""

    outcomes: dict[Outcome, int] = Field(default_factory=dict)
    """Offsets by outcome; those that did not occur are left out."""
    reasons: dict[str, int] = Field(default_factory=dict)
    """Offsets by ``outcome/reason``."""
    languages: dict[str, LanguageTotals] = Field(default_factory=dict)
    """Kept documents by language."""
    domains: dict[str, int] = Field(default_factory=dict)
    """Kept documents by domain."""
    pii: dict[str, int] = Field(default_factory=dict)
    """Findings of personal data and secrets by type."""
    chars: dict[int, int] = Field(default_factory=dict)
    """Length in characters."""
    tokens: dict[int, int] = Field(default_factory=dict)
    """Length in tokens."""
    quality: dict[int, int] = Field(default_factory=dict)
    """Quality classifier's probability of good."""
    perplexity: dict[int, int] = Field(default_factory=dict)
    """Perplexity under the reference model."""
    informativeness: dict[int, int] = Field(default_factory=dict)
    """TF-IDF informativeness."""
    freshness_s: dict[int, int] = Field(default_factory=dict)
    """Seconds from the record's Kafka timestamp to the commit."""

    @property
    def num_records(self) -> int:
        """Offsets counted."""
        return sum(self.outcomes.values())

    @property
    def num_kept(self) -> int:
        """Kept documents."""
        return self.outcomes.get(Outcome.KEPT, 0)


class VersionStatistics(Record):
    """Statistics of one version, or of several added up."""

    format: int = Field(FORMAT, ge=1, le=FORMAT)
    """Version of the bins."""
    total: Distribution
    """All sources."""
    sources: dict[str, Distribution]
    """Each of the largest sources; ``unknown`` where a record names none, ``other`` for the rest."""
