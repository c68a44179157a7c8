"""Settings of the formats in which documents come in."""

from schemas.section import Section


class FormatsSettings(Section):
    """HTML, character sets, and texts that lie outside the record."""
