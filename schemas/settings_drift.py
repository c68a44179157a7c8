"""Settings of drift: when a dataset version is called unlike the ones before."""

from schemas.section import Section


class DriftSettings(Section):
    """Comparison of each version with a baseline window."""
