"""Settings of the quality models: perplexity, informativeness and a classifier, fitted by ``headrace quality fit``."""

from schemas.section import Section


class QualityModelSettings(Section):
    """Scores of fitted models, and the thresholds under which documents are rejected."""
