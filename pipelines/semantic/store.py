"""What is kept on disk about meanings: embeddings, by model and content hash, and lists of duplicates, named by their own hash.

    <root>/semantic/embeddings/<model sha256>/<sha256>.arrow   content_hash, embedding (float16): a text is embedded once per model
    <root>/semantic/<sha256>.parquet                           schemas.semantic.DUPLICATES, with what they follow from

Both are immutable and named after the hash of their content, which is compared when they are read. A view can name a list (headrace datasets view).
Embeddings may be deleted at any time; they are computed again. Like shards, they keep the embeddings of retracted documents, which later lists do
not name. Cosines are computed from the stored float16 numbers, so the same documents give the same list, whatever was embedded before. (Another
root may have embedded its texts in other batches, which changes cosines by about 0.0001.)
"""

import hashlib
import io
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.storage.durable import create_durably, sha256_file
from pipelines.storage.store import all_local, file_names
from schemas.arrow import CONTENT_HASH_BYTES
from schemas.errors import ManifestCorrupt
from schemas.semantic import DUPLICATES, METADATA_KEY, SemanticList

FOLDER = "semantic"
Stored = npt.NDArray[np.float16]
_EMBEDDINGS = re.compile(r"[^.].*\.arrow")


class EmbeddingStore:
    """The embeddings of one model under a root. Holds 24 bytes and one entry of a dictionary per text; the numbers stay in mapped files."""

    def __init__(self, root: Path, model_sha256: str, dimension: int) -> None:
        """Raises ManifestCorrupt if a file is not what it should be."""
        self._folder = root / FOLDER / "embeddings" / model_sha256
        self._schema = _embeddings(dimension)
        self._parts: list[Stored] = []
        self._places: dict[bytes, tuple[int, int]] = {}
        for path in all_local(self._folder / name for name in sorted(file_names(self._folder, _EMBEDDINGS))):
            self._take_in(self._read(path))

    def __contains__(self, content_hash: bytes) -> bool:
        return content_hash in self._places

    def add(self, content_hashes: list[bytes], vectors: npt.NDArray[np.float32]) -> None:
        """Keep embeddings; durable when this returns."""
        flat = pa.array(vectors.astype(np.float16).reshape(-1))
        embeddings = pa.FixedSizeListArray.from_arrays(flat, type=self._schema.field("embedding").type)
        table = pa.table([pa.array(content_hashes, pa.binary(CONTENT_HASH_BYTES)), embeddings], schema=self._schema)
        sink = io.BytesIO()
        with pa.ipc.new_file(sink, self._schema) as writer:
            writer.write_table(table)
        data = sink.getvalue()
        with suppress(FileExistsError):
            create_durably(self._folder / f"{hashlib.sha256(data).hexdigest()}.arrow", data)
        self._take_in(table)

    def vectors(self, content_hashes: list[bytes]) -> npt.NDArray[np.float32]:
        """float32 [n, dimension]. Raises KeyError for a text that was not added."""
        out = np.empty((len(content_hashes), self._schema.field("embedding").type.list_size), np.float32)
        for row, content_hash in enumerate(content_hashes):
            part, place = self._places[content_hash]
            out[row] = self._parts[part][place]
        lengths = np.linalg.norm(out, axis=1, keepdims=True)
        out /= np.where(lengths > 0, lengths, 1)
        return out

    def _read(self, path: Path) -> pa.Table:
        try:
            _check_name(path)
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        except (OSError, ValueError) as error:
            raise ManifestCorrupt(f"{path} holds no embeddings: {error}; delete it, and its texts are embedded again") from error
        if table.schema != self._schema:
            raise ManifestCorrupt(f"{path} has other columns than {self._schema.names}; delete it, and its texts are embedded again")
        return table

    def _take_in(self, table: pa.Table) -> None:
        numbers = table["embedding"].combine_chunks().flatten().to_numpy()
        for place, content_hash in enumerate(table["content_hash"].to_pylist()):
            self._places.setdefault(content_hash, (len(self._parts), place))
        self._parts.append(numbers.reshape(len(table), -1))


def _embeddings(dimension: int) -> pa.Schema:
    numbers = pa.list_(pa.float16(), dimension)
    return pa.schema([pa.field("content_hash", pa.binary(CONTENT_HASH_BYTES), nullable=False), pa.field("embedding", numbers, nullable=False)])


def write_list(root: Path, rows: Mapping[str, object], made_from: SemanticList) -> Path:
    """Keep a list of duplicates (columns of DUPLICATES); the same rows made from the same things have the same name."""
    metadata = {METADATA_KEY: made_from.model_dump_json().encode()}
    sink = io.BytesIO()
    pq.write_table(pa.table(rows, schema=DUPLICATES).replace_schema_metadata(metadata), sink, compression="zstd")
    path = root / FOLDER / f"{hashlib.sha256(sink.getvalue()).hexdigest()}.parquet"
    with suppress(FileExistsError):
        create_durably(path, sink.getvalue())
    return path


def _check_name(path: Path) -> None:
    """Raise ValueError unless the name of the file is the hash of its content."""
    if (found := sha256_file(path)) != path.stem:
        raise ValueError(f"its SHA-256 is {found}, which is not the one in its name")


def read_made_from(path: Path) -> SemanticList:
    """What a list was made from. Raises ManifestCorrupt for any other file, and for a list whose name is not its hash."""
    try:
        if re.fullmatch("[0-9a-f]{64}", path.stem):
            _check_name(path)
        metadata = pq.read_schema(path).metadata or {}
        return SemanticList.model_validate_json(metadata[METADATA_KEY])
    except (OSError, pa.ArrowInvalid, KeyError, ValueError) as error:
        raise ManifestCorrupt(f"{path} is not a list of semantic duplicates: {error}") from error
