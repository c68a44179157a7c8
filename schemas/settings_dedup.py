"""Settings of duplicates: exact, near, of paragraphs, and of meaning."""

from pydantic import Field

from schemas.section import Section


class DedupSettings(Section):
    """Exact and near duplicates. A document is dropped if an earlier kept one matches."""

    near: bool = True
    """Whether near duplicates are dropped too, or exact ones only."""
    max_hamming: int = Field(6, ge=0, le=6)
    """SimHash distance within which a kept document becomes a candidate. Each step down finds fewer and looks up about three times faster."""
    min_similarity: float = Field(0.7, ge=0, le=1)
    """Jaccard similarity of their pairs of words, estimated from the sketches, that confirms a candidate."""
    feature_cap: int = Field(5, ge=1, le=255)
    """Largest weight that one distinct feature gets: without a cap one repeated shingle decides the fingerprint."""
