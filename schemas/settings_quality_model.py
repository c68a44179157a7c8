"""Settings of the quality models: perplexity, informativeness and a classifier, fitted by ``headrace quality fit``."""

import re
from pathlib import PurePath

from pydantic import Field, field_validator

from schemas.section import Section

_BOUND = r"(\*|[a-z]{2,3})=(\d+(?:\.\d*)?|\.\d+)(e[+-]?\d{1,2})?"


class QualityModelSettings(Section):
    """Scores of fitted models, and the thresholds under which documents are rejected."""

    path: str = ""
    """The model: its SHA-256 as ``headrace quality list`` shows it (a folder of ``<root>/quality``), or a folder of that name; empty: none."""
    max_perplexity_quantile: float = Field(0.99, ge=0, le=1)
    """``perplexity/too_high``: above this quantile of the references that were kept out of the fit, per language; 1 switches the rule off."""
    min_perplexity_quantile: float = Field(0.0, ge=0, le=1)
    """``perplexity/too_low``, boilerplate that the model knows by heart: below this quantile of the references; 0 switches the rule off."""
    min_quality_quantile: float = Field(0.01, ge=0, le=1)
    """``quality/too_low``: below this quantile of the good examples that were kept out of the fit; 0 switches the rule off."""
    min_informativeness_quantile: float = Field(0.01, ge=0, le=1)
    """``informativeness/too_low``: below this quantile of the references; 0 switches the rule off."""
    max_perplexity: tuple[str, ...] = ()
    """Absolute thresholds instead of the quantile: ``language=value``, ``*`` for all other languages, for example ``["en=2000", "zh=300"]``."""
    min_perplexity: tuple[str, ...] = ()
    """Absolute thresholds instead of the quantile, likewise."""
    min_quality: tuple[str, ...] = ()
    """Absolute thresholds (probability of good) instead of the quantile, likewise."""
    min_informativeness: tuple[str, ...] = ()
    """Absolute thresholds (nats per term) instead of the quantile, likewise."""

    @field_validator("path")
    @classmethod
    def path_ends_in_a_hash(cls, path: str) -> str:
        """The hash in the path is what makes the settings fingerprint change with the model's content."""
        if path and not re.fullmatch("[0-9a-f]{64}", PurePath(path).name):
            raise ValueError(f"{path!r} does not end in the SHA-256 of a quality model; `headrace quality list` shows those under the root")
        return path

    @field_validator("max_perplexity", "min_perplexity", "min_quality", "min_informativeness")
    @classmethod
    def bounds_name_languages(cls, bounds: tuple[str, ...]) -> tuple[str, ...]:
        """``language=value``."""
        for bound in bounds:
            if not re.fullmatch(_BOUND, bound):
                raise ValueError(f"{bound!r} is not language=value, such as en=2000 or *=500")
        return bounds
