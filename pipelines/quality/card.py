"""What ``model.json`` of a quality model says. Its SHA-256 is the model's name; it lists the SHA-256 of every other file.

Invariant: no clock, no host, no random number: the same documents and options give the same bytes.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict

MODEL_FILE = "model.json"
NUM_QUANTILES = 1000


class _Card(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PerplexityCard(_Card):
    """The n-gram model of a language."""

    order: int
    prune: int
    num_documents: int
    num_units: int
    num_grams: tuple[int, ...]
    """By order."""
    bounds: tuple[int, ...]
    """First slot of each order from 2 on, and the end."""
    num_held_out: int
    quantiles: tuple[float, ...]
    """Of the perplexity of held-out references: 0, 1/1000, … 1."""


class InformativenessCard(_Card):
    """The document frequencies of a language."""

    num_documents: int
    num_held_out: int
    quantiles: tuple[float, ...]


class ClassifierCard(_Card):
    """The classifier of a language, and how it does on held-out examples (probability 0.5)."""

    num_good: int
    num_bad: int
    held_out_good: int
    held_out_bad: int
    accuracy: float
    auc: float
    f1: float
    quantiles: tuple[float, ...]
    """Of the probability of held-out good examples."""


class LanguageCard(_Card):
    """The models of one language."""

    perplexity: PerplexityCard | None = None
    informativeness: InformativenessCard | None = None
    classifier: ClassifierCard | None = None


class ModelCard(_Card):
    """A quality model."""

    format: Literal[1] = 1
    languages: dict[str, LanguageCard]
    """By ISO 639 code; ``*`` is for every language without an entry."""
    files: dict[str, str]
    """SHA-256 by file name."""
