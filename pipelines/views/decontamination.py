"""Keeping evaluation sets out of training: documents that are duplicates of an evaluation document, or contain a passage of one.

The evaluation documents are normalized and fingerprinted as ingest does it, with the dataset's own settings, and put into an index; then
the stored fingerprints of every kept document are looked up in it. So no text is read again, and it costs what looking up
duplicates costs: two seconds for a million documents. That compares whole documents; passages of them inside others are looked for in the
tokens (passages.py).

Invariant: the answer is a pure function of (view version, dataset version). It is stored beside the view the first time somebody asks; what
a later dataset version adds is looked up when that is used. Ids are left out, so what comes again under such an id is left out too.
"""

import io
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from pipelines.dataset.dataset import Dataset
from pipelines.dataset.shard_maps import FEW_MAPS, ShardMaps
from pipelines.dataset.trail import read_kept
from pipelines.dedup.fingerprint import content_hashes, fingerprint_texts, sketch_array
from pipelines.dedup.index import FingerprintIndex
from pipelines.dedup.kept import Columns, columns_of
from pipelines.dedup.sketch import sketch_similarity
from pipelines.steps.normalize import normalize
from pipelines.storage.durable import create_durably
from pipelines.storage.pinned import verify_pinned
from pipelines.storage.store import file_names, local
from pipelines.tokenizers.tokenizer import load_tokenizer
from pipelines.views.passages import Passages, find_passages, open_passages
from pipelines.views.store import FOLDER, checked_file, store_file
from schemas.arrow import SEGMENT
from schemas.errors import TokenizerMismatch
from schemas.manifest import DatasetManifest, FileEntry
from schemas.settings_dedup import DedupSettings
from schemas.view import Decontamination, EvaluationSet, View

KEPT = ("doc_id", "shard", "row", "start")
HITS = pl.Schema(
    {
        "version": pl.Int64,  # dataset version that took the document in
        "doc_id": pl.String,
        "evaluation": pl.String,
        "evaluation_document": pl.String,
        "reason": pl.String,  # exact, near or passage
        "similarity": pl.Float32,  # of a passage: its share of the evaluation document
    }
)
"""One row per document that has too much in common with an evaluation document: the most similar one, of equals the first."""


class EvaluationTexts(NamedTuple):
    """An evaluation set as it was read."""

    name: str
    doc_ids: list[str]
    texts: list[str]


def keep_evaluations(
    dataset: Dataset, view_name: str, sets: Sequence[EvaluationTexts], settings: DedupSettings, min_passage_tokens: int
) -> Decontamination:
    """Keep the evaluation sets' fingerprints in the view, and their tokens if passages are looked for. Raises TokenizerMismatch."""
    texts = [normalize(pa.array(part.texts, pa.large_string())).texts for part in sets]
    segments = [_fingerprinted(part.doc_ids, chunk, settings) for part, chunk in zip(sets, texts, strict=True)]
    passages = None
    if min_passage_tokens:
        tokens = load_tokenizer(dataset.root, dataset.tokenizer).encode(pa.concat_arrays(texts))
        passages = stored_table(dataset.root, view_name, "passages", pa.table({"tokens": tokens}))
    return Decontamination(
        sets=tuple(EvaluationSet(name=part.name, documents=len(part.texts)) for part in sets),
        file=stored_table(dataset.root, view_name, "evaluation", pa.concat_tables([SEGMENT.empty_table(), *segments])),
        min_passage_tokens=min_passage_tokens,
        passages=passages,
        tokenizer_sha256=dataset.tokenizer.sha256 if passages else None,
        near=settings.near,
        max_hamming=settings.max_hamming,
        min_similarity=settings.min_similarity,
        feature_cap=settings.feature_cap,
    )


def stored_table(root: Path, view_name: str, kind: str, table: pa.Table) -> FileEntry:
    """Keep a table in the view."""
    buffer = io.BytesIO()
    with pa.ipc.new_file(buffer, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return store_file(root, view_name, kind, ".arrow", buffer.getvalue(), len(table))


def read_table(root: Path, entry: FileEntry) -> pa.Table:
    """A table that a view names. Raises ManifestCorrupt."""
    return pa.ipc.open_file(pa.py_buffer(checked_file(root, entry))).read_all()


def _fingerprinted(doc_ids: list[str], texts: pa.Array, settings: DedupSettings) -> pa.Table:
    found = fingerprint_texts(texts, settings)
    columns = [pa.array(found.fingerprint), content_hashes(texts), sketch_array(found.sketch), pa.array(doc_ids, pa.string())]
    return pa.table(columns, schema=SEGMENT)


def contaminated(root: Path, view: View, dataset: Dataset) -> pl.DataFrame:
    """Rows of HITS for the dataset version, in commit order; computed for what no earlier answer covers, and stored."""
    assert view.decontamination is not None
    stored = _stored(root, view)
    later = [number for number in stored if number >= dataset.version]
    if later:
        return pl.read_parquet(local(stored[later[0]])).filter(pl.col("version") <= dataset.version)
    known = max(stored, default=0)
    parts = [pl.read_parquet(local(stored[known]))] if known else []
    matcher = _Matcher(dataset, view)
    parts += [matcher.hits(manifest) for manifest in dataset.manifests()[known:]]
    hits = pl.concat([HITS.to_frame(), *parts])
    _store(_path(root, view, dataset.version), hits)
    return hits


_STORED = re.compile(r"contaminated-\d{8}\.parquet")


def _folder(root: Path, view: View) -> Path:
    return root / FOLDER / view.name / f"{view.version:08d}"


def _path(root: Path, view: View, dataset_version: int) -> Path:
    return _folder(root, view) / f"contaminated-{dataset_version:08d}.parquet"


def _stored(root: Path, view: View) -> dict[int, Path]:
    """Dataset version -> answer, ascending."""
    folder = _folder(root, view)
    return {int(name[-16:-8]): folder / name for name in sorted(file_names(folder, _STORED))}


def _store(path: Path, hits: pl.DataFrame) -> None:
    buffer = io.BytesIO()
    hits.write_parquet(buffer, compression="zstd")
    with suppress(FileExistsError):  # somebody else has found the same meanwhile
        create_durably(path, buffer.getvalue())


def _open_passages(dataset: Dataset, view: View) -> Passages:
    """The evaluation sets' tokens. Raises TokenizerMismatch if the dataset has got another tokenizer since."""
    settings = view.decontamination
    assert settings is not None and settings.passages is not None
    if settings.tokenizer_sha256 != dataset.tokenizer.sha256:
        raise TokenizerMismatch(
            f"view {view.label} looks for passages in tokens of tokenizer {str(settings.tokenizer_sha256)[:12]}, dataset version "
            f"{dataset.version} has {dataset.tokenizer.sha256[:12]}; make the view again"
        )
    return open_passages(read_table(dataset.root, settings.passages)["tokens"].combine_chunks())


class _Matcher:
    """The evaluation documents, ready to be looked up."""

    def __init__(self, dataset: Dataset, view: View) -> None:
        assert view.decontamination is not None
        self._root = root = dataset.root
        self._maps = ShardMaps(dataset, FEW_MAPS)
        self._settings = settings = view.decontamination
        self._passages = _open_passages(dataset, view) if settings.passages else None
        segment = read_table(root, settings.file)
        self._doc_ids = segment["doc_id"].to_pylist()
        self._columns = columns_of(segment)
        names = [part.name for part in settings.sets for _ in range(part.documents)]
        self._sets = pl.Series("evaluation", names, pl.String)
        rows = np.flatnonzero(self._columns.sketch.any(axis=1)).astype(np.uint32)
        self._index = FingerprintIndex(settings.max_hamming, self._columns.fingerprint[rows], rows)

    def hits(self, manifest: DatasetManifest) -> pl.DataFrame:
        """HITS among the documents that a version added, in commit order; a duplicate is not told again as a passage."""
        kept = read_kept([verify_pinned(self._root, entry) for entry in manifest.documents], KEPT) if manifest.documents else pl.DataFrame()
        found = [HITS.to_frame()]
        if self._passages is not None and len(kept):
            found += self._passage_hits(manifest, kept, self._passages)
        whole = pl.concat(self._whole_hits(manifest))
        hits = pl.concat([whole, *found]).unique("doc_id", keep="first", maintain_order=True)
        if hits.is_empty():
            return hits
        order = kept.select("doc_id", place=pl.int_range(pl.len())).unique("doc_id", keep="first")
        return hits.join(order, on="doc_id", how="left").sort("place", maintain_order=True).drop("place")

    def _whole_hits(self, manifest: DatasetManifest) -> list[pl.DataFrame]:
        found = [HITS.to_frame()]
        for entry in manifest.dedup_segments:
            with pa.memory_map(str(verify_pinned(self._root, entry))) as source:
                segment = pa.ipc.open_file(source).read_all().select(SEGMENT.names)
                found.append(self._hits(segment, manifest.version))
        return found

    def _passage_hits(self, manifest: DatasetManifest, kept: pl.DataFrame, passages: Passages) -> list[pl.DataFrame]:
        """For each document the passage that is the largest share of its evaluation document."""
        found = []
        for entry in manifest.shards:
            matches = find_passages(self._maps.rows(entry.path, entry.rows).reshape(-1), passages, self._settings.min_passage_tokens)
            documents = kept.filter(pl.col("shard") == entry.path).with_columns(first=pl.col("row") * manifest.sequence_length + pl.col("start"))
            places = np.searchsorted(documents["first"].to_numpy(), matches.positions, side="right") - 1
            columns = {"place": places, "row": matches.documents, "similarity": matches.shares}
            best = pl.DataFrame(columns).sort("similarity", descending=True, maintain_order=True).unique("place", keep="first", maintain_order=True)
            doc_ids = documents["doc_id"].gather(best["place"].to_list())
            found.append(self._told(manifest.version, doc_ids, best.with_columns(reason=pl.lit("passage"))))
        return found

    def _told(self, version: int, doc_ids: pl.Series, best: pl.DataFrame) -> pl.DataFrame:
        """Rows of HITS from rows of evaluation documents."""
        rows = best["row"].to_list()
        columns = {
            "version": pl.Series([version] * len(best), dtype=pl.Int64),
            "doc_id": doc_ids,
            "evaluation": self._sets.gather(rows),
            "evaluation_document": pl.Series([self._doc_ids[row] for row in rows], dtype=pl.String),
            "reason": best["reason"],
            "similarity": best["similarity"],
        }
        return pl.DataFrame(columns, schema=HITS)

    def _hits(self, segment: pa.Table, version: int) -> pl.DataFrame:
        columns = columns_of(segment)
        pairs = pl.concat([_exact(columns, self._columns), *([self._near(columns)] if self._settings.near else [])])
        best = pairs.sort("position", "similarity", "is_exact", "row", descending=[False, True, True, False]).unique(
            "position", keep="first", maintain_order=True
        )
        doc_ids = pl.Series(segment["doc_id"].take(pa.array(best["position"].to_numpy())).to_pylist(), dtype=pl.String)
        reason = pl.when("is_exact").then(pl.lit("exact")).otherwise(pl.lit("near"))
        return self._told(version, doc_ids, best.with_columns(reason=reason))

    def _near(self, columns: Columns) -> pl.DataFrame:
        """Pairs within the distance whose sketches agree enough."""
        candidates = np.flatnonzero(columns.sketch.any(axis=1))
        places, rows = self._index.query(columns.fingerprint[candidates])
        positions = candidates[places]
        similarity = _similarities(columns.sketch, positions, self._columns.sketch, rows)
        enough = similarity >= np.float32(self._settings.min_similarity)
        return _pairs(positions[enough], rows[enough], similarity[enough], is_exact=False)


def _exact(columns: Columns, evaluation: Columns) -> pl.DataFrame:
    """Pairs with the same text."""
    left, right = (
        pl.DataFrame({"high": part.content_hash[:, 0], "low": part.content_hash[:, 1], name: np.arange(len(part.content_hash))})
        for part, name in ((columns, "position"), (evaluation, "row"))
    )
    both = left.join(right, on=["high", "low"], how="inner")
    return _pairs(both["position"].to_numpy(), both["row"].to_numpy(), np.ones(len(both), np.float32), is_exact=True)


def _pairs(positions: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], similarity: npt.NDArray[np.float32], *, is_exact: bool) -> pl.DataFrame:
    columns = {"position": positions.astype(np.int64), "row": rows.astype(np.int64), "similarity": similarity}
    return pl.DataFrame(columns).with_columns(is_exact=pl.lit(is_exact))


@numba.njit(cache=True, nogil=True)
def _similarities(left, positions, right, rows):  # type: ignore[no-untyped-def]
    """Estimated Jaccard similarity of each pair of sketches."""
    found = np.empty(len(positions), np.float32)
    for index in range(len(positions)):
        found[index] = sketch_similarity(left[positions[index]], right[rows[index]])
    return found
