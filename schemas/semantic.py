"""What a list of semantic duplicates was made from. The list is ``<root>/semantic/<sha256>.parquet``; this stands in its Parquet metadata."""

import pyarrow as pa
from pydantic import Field

from schemas.record import Record

METADATA_KEY = b"headrace.semantic"
"""Key of the Parquet metadata under which the JSON of a SemanticList stands."""
DEFAULT_THRESHOLD = 0.9

DUPLICATES = pa.schema(
    [
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("duplicate_of", pa.string(), nullable=False),  # the kept document that is most similar
        pa.field("similarity", pa.float32(), nullable=False),  # cosine
        pa.field("version", pa.int64(), nullable=False),  # that took the document in
    ]
)
"""One row per document to leave out, in commit order: a view takes the file as an exclusion list."""


class SemanticList(Record):
    """Everything that the rows of a list follow from, and how many they are."""

    dataset_version: int = Field(ge=1)
    """The documents are those that this version keeps."""
    manifest_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of its manifest."""
    model_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Pins the embedding model and how many tokens of a text it reads."""
    threshold: float = Field(DEFAULT_THRESHOLD, gt=0, le=1)
    """Cosine from which a document is a duplicate of a kept one."""
    num_documents: int = Field(ge=0)
    """Documents that the version keeps."""
    num_unreadable: int = Field(ge=0)
    """Of these, documents that the model cannot read: too many of their tokens are unknown to it. They are never duplicates."""
    num_duplicates: int = Field(ge=0)
    """Rows of the list."""
    num_ambiguous: int = Field(ge=0)
    """Duplicates that are not listed, because a document that stays has the same id."""
