"""Settings of the formats in which documents come in."""

from pydantic import Field

from schemas.section import Section


class FormatsSettings(Section):
    """HTML, character sets, and texts that lie outside the record."""

    max_inline_bytes: int = Field(900_000, ge=1024)
    """``headrace produce``: a document whose record would be larger goes to the blob store, and its event names it (Kafka's own limit is 1 MB)."""
    dataref_roots: tuple[str, ...] = ()
    """Folders that documents may lie in besides ``<root>/blobs``; a reference to anything outside them is a dead letter."""
    max_dataref_bytes: int = Field(128 * 2**20, ge=1024)
    """Documents outside their record that are larger than this are dead-lettered unread."""
    max_batch_unpacked_bytes: int = Field(256 * 2**20, ge=2**20)
    """A compressed batch of records that unpacks to more than this is not unpacked: its records are dead-lettered as ``broken_record``."""
    html_max_depth: int = Field(500, ge=10)
    """A page that may be nested deeper than this keeps all its text, because finding the main content takes quadratic time in the depth."""
    max_damaged_fraction: float = Field(0.01, ge=0, le=1)
    """Share of a text's characters that may be undecodable: they become U+FFFD (one place is always allowed; with 0 none). More is a dead letter."""
