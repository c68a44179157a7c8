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
    compact_segments: int = Field(64, ge=0)
    """Versions since the last compaction (or 500,000 documents) after which the duplicate index is merged into one memory-mapped file, if they hold
    an eighth of its documents; 0: never."""
    index_shards: int = Field(1, ge=1, le=1024)
    """Ray actors that share the compacted index, each with a part of every table; 1: the ingesting process alone."""
    feature_cap: int = Field(5, ge=1, le=255)
    """Largest weight that one distinct feature gets: without a cap one repeated shingle decides the fingerprint."""
    check_fraction: float = Field(0.0005, ge=0, le=1)
    """Share of documents, chosen by their content, whose fingerprints the simhash package computes too: one difference stops ingest."""
    boilerplate: bool = False
    """Whether lines that many earlier documents have (footers, navigation, licences) are taken out of later ones."""
    boilerplate_min_documents: int = Field(10, ge=2)
    """Kept documents of earlier versions in which a line must have stood to be boilerplate."""
    boilerplate_min_chars: int = Field(20, ge=1)
    """Fewest letters and digits of a line that is counted; a Chinese or Japanese character counts as two."""
    boilerplate_max_entries: int = Field(2_000_000, ge=1_000)
    """Lines whose counts are kept, 12 bytes each in memory; when there are more, the rarest are forgotten until half of them is left."""
