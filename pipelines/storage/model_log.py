"""The log of the registered models, for those who ask which dataset and tokenizer a model rests on: lineage, and the garbage collection."""

from pipelines.storage.commit_log import CommitLog
from pipelines.storage.entries import parse_entry
from schemas.manifest import ModelManifest

MODEL_LOG = "models/log"


def read_model_manifest(log: CommitLog, number: int) -> ModelManifest:
    """Manifest of a model version. Raises ManifestCorrupt, ManifestNewer."""
    return parse_entry(ModelManifest, log.read(number), log.path(number))
