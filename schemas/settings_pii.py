"""Settings of personal data and secrets in documents."""

from schemas.section import Section


class PiiSettings(Section):
    """What happens to each type of personal data and secret."""
