"""The log of the registered models, for those who ask which dataset and tokenizer a model rests on: lineage, and the garbage collection."""

from pydantic import ValidationError

from pipelines.storage.commit_log import CommitLog
from schemas.errors import ManifestCorrupt
from schemas.manifest import ModelManifest

MODEL_LOG = "models/log"


def read_model_manifest(log: CommitLog, number: int) -> ModelManifest:
    """Manifest of a model version. Raises ManifestCorrupt."""
    try:
        return ModelManifest.model_validate_json(log.read(number))
    except ValidationError as error:
        raise ManifestCorrupt(f"{log.path(number)} is not a valid manifest: {error.errors()[0]['msg']}; restore it from a copy") from error
