"""Documents that are too large for a record: the data goes to a file named after its SHA-256, the event says where (CloudEvents dataref).

Invariant: when ``put_blob`` returns, the file is whole and on disk: an event never names what a power cut can take back. Equal data is one
file, however often it is published. Source: https://github.com/cloudevents/spec/blob/main/cloudevents/extensions/dataref.md
"""

import hashlib
from pathlib import Path

from pipelines.steps.formats.references import BLOBS, blobs_folder
from pipelines.storage.durable import create_durably, replace_durably, sha256_file
from pipelines.storage.store import local
from schemas.envelope import KafkaRecord
from schemas.settings import Settings


def put_blob(record: KafkaRecord, settings: Settings, folder: Path | None = None) -> KafkaRecord:
    """The record with its value in the blob store. Below the root the reference is relative, so that the root may be mounted elsewhere."""
    data = record.value or b""
    digest = hashlib.sha256(data).hexdigest()
    path = (folder or blobs_folder(settings.root)).resolve() / digest
    try:
        create_durably(path, data)
    except FileExistsError:
        if sha256_file(local(path)) != digest:  # damaged, or somebody else's
            replace_durably(path, data)
    is_ours = path.parent == blobs_folder(settings.root).resolve()
    uri = f"{BLOBS}/{digest}" if is_ours else path.as_uri()
    reference = {"dataref": uri, "datarefsha256": digest, "datarefsize": str(len(data))}
    return record._replace(value=b"", headers=[*record.headers, *((f"ce_{name}", text.encode()) for name, text in reference.items())])
