"""Settings of drift: when a dataset version counts as different from those before it."""

from typing import Literal

from pydantic import Field

from schemas.section import Section

Feature = Literal[
    "source", "language", "domain", "length", "tokens", "outcome", "reason", "quality", "perplexity", "informativeness", "pii", "freshness"
]
"""What of a version can be compared."""


class DriftSettings(Section):
    """Comparison of each version with a baseline window."""

    features: tuple[Feature, ...] = ("source", "language", "length", "outcome", "quality", "perplexity", "informativeness")
    """What is compared: source, language, domain, length, tokens, outcome, reason, quality, perplexity, informativeness, pii, freshness."""
    baseline_versions: int = Field(8, ge=1, le=1_000)
    """Number of earlier accepted samples with which a sample is compared. A sample is a version, or several small ones that make up min_documents."""
    min_documents: int = Field(500, ge=10)
    """Fewest records of a sample that is compared; smaller versions are compared together with the next ones."""
    max_psi: float = Field(0.2, gt=0)
    """Population stability index of a feature above which it has drifted (0.1 is usually called a small change, 0.2 a large one)."""
    max_js: float = Field(0.1, gt=0, le=1)
    """Jensen-Shannon divergence (base 2, 0 to 1) of a feature above which it has drifted."""
    hold_training: bool = False
    """Whether the loop stops training at a version that drifted, until `headrace datasets release` of it or of a later one."""
