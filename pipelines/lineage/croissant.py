"""The dataset's card in Croissant 1.1 (JSON-LD): what files there are, what is in them, and how to check them.

The card of version N lists every file of versions 1 to N with its SHA-256, and for merged shards the file that has their rows. Paths are
relative to the root, where the card is meant to be stored.
``documents`` reads the audit trail; ``shards`` lists the token files, because Croissant has no reader for Arrow IPC.
Written by hand: mlcroissant (1.1) takes 1.2 s to import and 120 MB more on disk (scipy, rdflib). The tests validate and read the card with it.
Source: https://docs.mlcommons.org/croissant/docs/croissant-spec-1.1.html
"""

from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.dataset.columns import documents_by_language
from pipelines.dataset.dataset import Dataset
from pipelines.dataset.names import version_of
from pipelines.dataset.placement import FIRST_ROW
from pipelines.dataset.shard_maps import files_in
from pipelines.storage.store import local
from schemas.arrow import DOCUMENTS, Split
from schemas.errors import ShardCorrupt
from schemas.manifest import DatasetManifest

CONFORMS_TO = "http://mlcommons.org/croissant/1.1"
PARQUET = "application/x-parquet"
ARROW = "application/vnd.apache.arrow.file"
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "dct": "http://purl.org/dc/terms/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "sc": "https://schema.org/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "conformsTo": "dct:conformsTo",
}
CONTEXT |= {
    name: f"cr:{name}"
    for name in (
        *("citeAs", "column", "equivalentProperty", "extract", "field", "fileProperty", "fileObject", "fileSet", "format", "includes"),
        *("isLiveDataset", "jsonPath", "key", "md5", "parentField", "path", "recordSet", "references", "regex", "repeated", "replace"),
        *("samplingRate", "separator", "source", "subField", "transform"),
    )
}
_TYPES = {
    pa.string(): "sc:Text",
    pa.int32(): "cr:Int32",
    pa.int64(): "cr:Int64",
    pa.uint64(): "cr:UInt64",
    pa.float32(): "cr:Float32",
    pa.bool_(): "sc:Boolean",
}
_DOCUMENTS, _SHARDS = "documents", "shards"
_MEANING = {
    "doc_id": "The document's id.",
    "topic": "Kafka topic, partition and offset are where its record stands.",
    "outcome": "kept, rejected, duplicate, dead, retracted or control: every offset has exactly one.",
    "reason": "The rule that decided.",
    "duplicate_of": "Id of the kept document that this one repeats.",
    "similarity": "Estimated Jaccard similarity with it.",
    "shard": "Path of the shard in which its tokens begin.",
    "replay_of": "Where the record stood that died and was published again as this one.",
    "url": "Where the document came from.",
    "license": "The licence that its producer named.",
    "meta": "What else its producer said, as a JSON object.",
    "num_replaced": "U+FFFD in the text: characters that were lost in decoding.",
    "num_tokens": "Tokens, the end-of-text token included.",
}


def croissant(dataset: Dataset) -> dict[str, Any]:
    """The card of a dataset version as JSON values; a pure function of the manifests and of the oldest file's columns.

    Raises ShardCorrupt if that file cannot be read.
    """
    manifest, columns = dataset.manifest, dataset.columns
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS_TO,
        "name": f"headrace-dataset-v{manifest.version}",
        "description": _description(manifest),
        "version": f"{manifest.version}.0.0",
        "datePublished": manifest.created_at.isoformat(),
        "dateCreated": columns["created_at"][0].as_py().isoformat(),
        "isLiveDataset": True,
        "inLanguage": sorted(documents_by_language(columns)),
        "identifier": f"sha256:{dataset.sha256}",
        "distribution": [*_files(dataset), _file_set(dataset)],
        "recordSet": [_documents(_columns(dataset)), _shards(dataset)],
    }


def _description(manifest: DatasetManifest) -> str:
    kept = sum(count for outcome, count in manifest.totals.outcomes.items() if outcome == "kept")
    topics = ", ".join(sorted(manifest.topic_ids))
    return (
        f"Token shards and the audit trail of Kafka topic {topics}, versions 1 to {manifest.version}: {manifest.totals.num_records} records, "
        f"{kept} documents kept, {manifest.totals.num_tokens} tokens of a tokenizer with {manifest.tokenizer.vocab_size} ids "
        f"(tokenizer.json has SHA-256 {manifest.tokenizer.sha256}), packed into rows of {manifest.sequence_length}."
    )


def _files(dataset: Dataset) -> list[dict[str, Any]]:
    """Version by version, the audit trail first."""
    trail = [(entry["version"], 0, _file(entry, PARQUET)) for entry in dataset.files(_DOCUMENTS).to_pylist()]
    shards = [(version_of(entry["path"]), 1, _file(entry, ARROW)) for entry in _shard_files(dataset)]
    return [file for _, _, file in sorted(trail + shards, key=lambda placed: placed[:2])]


def _shard_files(dataset: Dataset) -> list[dict[str, Any]]:
    """Files in which the rows of versions 1 to N lie now, train rows first."""
    placement = dataset.newest_placement()
    numbers = [files_in(placement, *dataset.row_range(split)) for split in Split]
    return [entry for some in numbers for entry in placement.files.take(pa.array(some)).to_pylist()]


def _file(entry: dict[str, Any], encoding: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": entry["path"],
        "name": entry["path"],
        "contentUrl": entry["path"],
        "contentSize": f"{entry['size_bytes']} B",
        "encodingFormat": encoding,
        "sha256": entry["sha256"].hex(),
    }


def _file_set(dataset: Dataset) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": "audit-trail",
        "name": "audit-trail",
        "description": "One row per Kafka offset that was read.",
        "encodingFormat": PARQUET,
        "includes": dataset.files(_DOCUMENTS)["path"].to_pylist(),
    }


def _columns(dataset: Dataset) -> list[pa.Field]:
    """What every file of the audit trail has: columns are only ever added, and a reader of Croissant wants each of them in each file."""
    path = dataset.root / dataset.files(_DOCUMENTS)["path"][0].as_py()
    try:
        there = set(pq.read_schema(local(path)).names)
    except (OSError, pa.ArrowInvalid) as error:
        raise ShardCorrupt(f"{path} is missing or not Parquet ({error}); restore the file from a copy") from error
    return [field for field in DOCUMENTS if field.type in _TYPES and field.name in there]


def _documents(columns: Iterable[pa.Field]) -> dict[str, Any]:
    fields = [
        {
            "@type": "cr:Field",
            "@id": f"{_DOCUMENTS}/{field.name}",
            "name": field.name,
            "description": _MEANING.get(field.name, field.name.replace("_", " ")),
            "dataType": _TYPES[field.type],
            "source": {"fileSet": {"@id": "audit-trail"}, "extract": {"column": field.name}},
        }
        for field in columns
    ]
    key = [{"@id": f"{_DOCUMENTS}/{name}"} for name in ("topic", "partition", "offset")]
    return {"@type": "cr:RecordSet", "@id": _DOCUMENTS, "name": _DOCUMENTS, "description": "What became of each offset.", "key": key, "field": fields}


def _shards(dataset: Dataset) -> dict[str, Any]:
    names = {
        "path": "sc:Text",
        "split": "sc:Text",
        "rows": "cr:Int64",
        "tokens": "cr:Int64",
        "documents": "cr:Int64",
        "sha256": "sc:Text",
        "first_row": "cr:Int64",
    }
    fields = [{"@type": "cr:Field", "@id": f"{_SHARDS}/{name}", "name": name, "dataType": kind} for name, kind in names.items()]
    shards = [entry | {"first_row": entry["first_row"] - FIRST_ROW[Split(entry["split"])]} for entry in _shard_files(dataset)]
    data = [{f"{_SHARDS}/{name}": entry[name] for name in names} | {f"{_SHARDS}/sha256": entry["sha256"].hex()} for entry in shards]
    about = (
        "Packed rows of token ids: Arrow IPC files with columns tokens (rows of S ids) and starts (positions at which documents begin). "
        "first_row is the number of a file's first row among the rows of its split. The last file may hold rows of later versions behind them."
    )
    return {"@type": "cr:RecordSet", "@id": _SHARDS, "name": _SHARDS, "description": about, "field": fields} | ({"data": data} if data else {})
