"""A dataset version or a view as files for other tools: documents once each, in commit order, by split.

What was retracted is not there: neither what the version says is retracted, nor what any later version took out. A person who needs the
version as it was asks for the latter.

parquet  <split>/00000.parquet …: id, text, token ids (end-of-text not counted), and what is known of the document
hf       the same without token ids, and a README.md with the card that ``datasets.load_dataset(<folder>)`` goes by
jsonl    <split>.jsonl: id, text, and what is known of the document
bin      <split>.bin: token ids, little-endian uint16 or uint32, each document closed by the end-of-text token; <split>.idx: int64, where
         documents begin, and where the last one ends

Beside them stands ``headrace.json``: where it all comes from, with the hash of every file. Weights are told there, not applied. The folder
appears when it is complete; the same version or view gives the same bytes until something in it is retracted. Memory: one batch of documents
and its text.
"""

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.dataset.shard_maps import FEW_MAPS, ShardMaps
from pipelines.dataset.shards import Tokens
from pipelines.storage.durable import durable_folder, sha256_file
from pipelines.storage.store import is_folder, local_folder
from pipelines.tokenizers.tokenizer import BatchTokenizer, load_tokenizer
from pipelines.views.card import card
from pipelines.views.selection import OpenView
from schemas.arrow import token_type
from schemas.errors import NotEnoughData, SettingsError

SIDECAR = "headrace.json"
BATCH_TOKENS = 1_000_000
FILE_TOKENS = 100_000_000
"""A Parquet file ends after so many."""
MAX_LICENSES = 50
"""Licences of a split that are counted by name, the most frequent first; the empty name counts documents without one."""
METADATA = {
    "language": pa.string(),
    "source": pa.string(),
    "domain": pa.string(),
    "url": pa.string(),
    "title": pa.string(),
    "license": pa.string(),
    "created_at": pa.string(),
    "meta": pa.string(),
    "group": pa.string(),
    "timestamp_ms": pa.int64(),
    "num_chars": pa.int64(),
    "quality": pa.float32(),
    "perplexity": pa.float32(),
    "informativeness": pa.float32(),
    "topic": pa.string(),
    "partition": pa.int32(),
    "offset": pa.int64(),
}
"""What is known of a document besides id and text; null where it is not. ``meta`` is JSON text, in JSON Lines the object itself."""


@dataclass
class Output:
    """One split on its way into a folder."""

    opened: OpenView
    folder: Path
    split: str
    documents: pl.DataFrame
    files: list[str] = field(default_factory=list)

    @property
    def tokenizer(self) -> BatchTokenizer:
        """The dataset's tokenizer."""
        return load_tokenizer(self.opened.dataset.root, self.opened.dataset.tokenizer)

    def new_file(self, name: str) -> Path:
        """Path of the next file of the split."""
        self.files.append(name)
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


@dataclass(frozen=True)
class Batch:
    """Some documents and their tokens, the end-of-text tokens included."""

    documents: pl.DataFrame
    spans: list[Tokens]


def export(opened: OpenView, kind: str, output: Path, *, with_later_retracted: bool = False) -> dict[str, Any]:
    """Write the folder; returns what ``headrace.json`` says. ``with_later_retracted``: also what a later version took out.

    Raises SettingsError if something is at ``output`` already, NotEnoughData if there is no document, TokenizerMismatch if there is no
    tokenizer to write texts with.
    """
    if output.exists() or output.is_symlink():
        raise SettingsError(f"{output} exists already; name a folder that does not exist, or remove it")
    current = opened.without_later_retractions()
    retracted_later = {"documents": len(current.retracted_later), "included": with_later_retracted}
    opened = opened if with_later_retracted else current
    with durable_folder(output, SIDECAR) as folder:
        splits = _write_splits(opened, kind, folder)
        told = _provenance(opened, kind, splits, folder) | {"retracted_later": retracted_later}
        (folder / SIDECAR).write_text(json.dumps(told, ensure_ascii=False, indent=1) + "\n", "utf-8")
        if kind == "hf":
            (folder / "README.md").write_text(card(told, _schema(opened, with_tokens=False)), "utf-8")
    return told


def _write_splits(opened: OpenView, kind: str, folder: Path) -> list[Output]:
    columns = [name for name in METADATA if name != "group"]
    outputs = [Output(opened, folder, split, opened.chosen(split, columns)) for split in opened.view.splits]
    outputs = [output for output in outputs if len(output.documents)]
    if not outputs:
        raise NotEnoughData(f"{opened.label} holds none of its {len(opened.documents):,} kept documents; there is nothing to export")
    for output in outputs:
        WRITERS[kind](output)
    if kind in ("bin", "parquet"):
        tokenizer = opened.dataset.root / opened.dataset.tokenizer.path
        if is_folder(tokenizer):
            shutil.copytree(local_folder(tokenizer), folder / "tokenizer")
    return outputs


def _provenance(opened: OpenView, kind: str, splits: list[Output], folder: Path) -> dict[str, Any]:
    dataset, view = opened.dataset, opened.view
    own = {"name": view.name, "version": view.version, "sha256": opened.sha256, "weights": dict(zip(view.group_names, view.shares, strict=True))}
    return {
        "format": kind,
        "dataset_version": dataset.version,
        "manifest_sha256": dataset.sha256,
        "view": own if opened.sha256 else None,
        "tokenizer": dataset.tokenizer.model_dump(mode="json", include={"sha256", "vocab_size", "eos_token_id", "pad_token_id"}),
        "token_type": str(token_type(dataset.tokenizer.vocab_size)),
        "splits": {output.split: _told(output, folder) for output in splits},
    }


def _told(output: Output, folder: Path) -> dict[str, Any]:
    files = [{"path": name, "size_bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)} for name in output.files]
    by_license = output.documents["license"].fill_null("").value_counts(sort=True).sort("count", "license", descending=[True, False])
    return {
        "documents": len(output.documents),
        "tokens": int(output.documents["length"].sum()),
        "licenses": dict(by_license.head(MAX_LICENSES).iter_rows()),
        "files": files,
    }


def _batches(output: Output) -> Iterator[Batch]:
    """The split's documents, BATCH_TOKENS at a time; files of shards are mapped one after the other."""
    maps = ShardMaps(output.opened.dataset, FEW_MAPS)
    batch_of = (pl.col("length").cum_sum() - pl.col("length")) // BATCH_TOKENS
    for batch in output.documents.with_columns(batch=batch_of).partition_by("batch", maintain_order=True):
        places = batch.select(pl.col("shard").cast(pl.String), "row", "start", "length").iter_rows()
        yield Batch(batch, [maps.span(*place).copy() for place in places])  # a view would keep its file mapped, and a batch may read many files


def _schema(opened: OpenView, *, with_tokens: bool) -> pa.Schema:
    tokens = [pa.field("tokens", pa.list_(token_type(opened.dataset.tokenizer.vocab_size)))] if with_tokens else []
    return pa.schema([pa.field("id", pa.string()), pa.field("text", pa.string()), *itertools.starmap(pa.field, METADATA.items()), *tokens])


def _table(batch: Batch, output: Output, tokenizer: BatchTokenizer, schema: pa.Schema) -> pa.Table:
    """Documents with texts."""
    names = dict(enumerate(output.opened.view.group_names))
    group = pl.col("group").replace_strict(names, default=None, return_dtype=pl.String)
    known = batch.documents.with_columns(group=group).select(pl.col(METADATA.keys() & {"language", "source", "domain"}).cast(pl.String), "group")
    columns: dict[str, Any] = {name: known[name].to_arrow() if name in known.columns else batch.documents[name].to_arrow() for name in METADATA}
    columns["id"] = batch.documents["doc_id"].to_arrow()
    columns["text"] = pa.array([tokenizer.decode(span[:-1]) for span in batch.spans], pa.string())
    if "tokens" in schema.names:
        ends = np.cumsum([0, *(len(span) - 1 for span in batch.spans)], dtype=np.int32)
        flat = np.concatenate([span[:-1] for span in batch.spans])
        columns["tokens"] = pa.ListArray.from_arrays(pa.array(ends), pa.array(flat))
    return pa.table([columns[entry.name].cast(entry.type) for entry in schema], schema=schema)


def _write_parquet(output: Output, *, with_tokens: bool = True) -> None:
    schema, tokenizer = _schema(output.opened, with_tokens=with_tokens), output.tokenizer
    batches = _batches(output)
    for number in itertools.count():
        first = next(batches, None)
        if first is None:
            return
        with pq.ParquetWriter(output.new_file(f"{output.split}/{number:05d}.parquet"), schema, compression="zstd") as writer:
            for batch in itertools.chain([first], itertools.islice(batches, FILE_TOKENS // BATCH_TOKENS - 1)):
                writer.write_table(_table(batch, output, tokenizer, schema))


def _write_hf(output: Output) -> None:
    _write_parquet(output, with_tokens=False)


def _write_jsonl(output: Output) -> None:
    schema, tokenizer = _schema(output.opened, with_tokens=False), output.tokenizer
    with output.new_file(f"{output.split}.jsonl").open("w", encoding="utf-8") as file:
        for batch in _batches(output):
            for row in _table(batch, output, tokenizer, schema).to_pylist():
                row["meta"] = json.loads(row["meta"] or "null")
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_bin(output: Output) -> None:
    dtype = np.dtype(token_type(output.opened.dataset.tokenizer.vocab_size).to_pandas_dtype()).newbyteorder("<")
    with output.new_file(f"{output.split}.bin").open("wb") as file:
        for batch in _batches(output):
            np.concatenate(batch.spans).astype(dtype, copy=False).tofile(file)
    starts = np.cumsum([0, *output.documents["length"].to_list()], dtype=np.int64)
    starts.astype("<i8").tofile(output.new_file(f"{output.split}.idx"))


WRITERS: dict[str, Callable[[Output], None]] = {"hf": _write_hf, "parquet": _write_parquet, "bin": _write_bin, "jsonl": _write_jsonl}
