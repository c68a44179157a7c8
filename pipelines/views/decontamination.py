"""Keeping evaluation sets out of training: documents that are duplicates of an evaluation document, found by the duplicate index.

The evaluation documents are normalized and fingerprinted as ingest does it, with the dataset's own settings, and put into an index; then
the stored fingerprints of every kept document are looked up in it. So no text is read again, and it costs what looking up
duplicates costs: two seconds for a million documents. A whole document is compared with a whole one: a question of one sentence
inside a long page is not found.

Invariant: the answer is a pure function of (view version, dataset version). It is stored beside the view the first time somebody asks; what
a later dataset version adds is looked up when that is used. Ids are left out, so what comes again under such an id is left out too.
"""

import io
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
from pipelines.dataset.durable import create_durably
from pipelines.dedup.fingerprint import content_hashes, fingerprint_texts, sketch_array
from pipelines.dedup.index import FingerprintIndex
from pipelines.dedup.kept import Columns, columns_of
from pipelines.dedup.sketch import sketch_similarity
from pipelines.steps.normalize import normalize
from pipelines.views.store import FOLDER, checked_file, store_file
from schemas.arrow import SEGMENT
from schemas.manifest import DatasetManifest
from schemas.settings_dedup import DedupSettings
from schemas.view import Decontamination, EvaluationSet, View

HITS = pl.Schema(
    {
        "version": pl.Int64,  # dataset version that took the document in
        "doc_id": pl.String,
        "evaluation": pl.String,
        "evaluation_document": pl.String,
        "reason": pl.String,  # exact or near
        "similarity": pl.Float32,
    }
)
"""One row per document that is a duplicate of an evaluation document: of the most similar one, of equals the first."""


class EvaluationTexts(NamedTuple):
    """An evaluation set as it was read."""

    name: str
    doc_ids: list[str]
    texts: list[str]


def keep_evaluations(root: Path, view_name: str, sets: Sequence[EvaluationTexts], settings: DedupSettings) -> Decontamination:
    """Fingerprint the evaluation sets and keep that, not their texts, in the view."""
    segment = pa.concat_tables([SEGMENT.empty_table(), *(_fingerprinted(part, settings) for part in sets)]).combine_chunks()
    buffer = io.BytesIO()
    with pa.ipc.new_file(buffer, SEGMENT) as writer:
        writer.write_table(segment)
    return Decontamination(
        sets=tuple(EvaluationSet(name=part.name, documents=len(part.texts)) for part in sets),
        file=store_file(root, view_name, "evaluation", ".arrow", buffer.getvalue(), len(segment)),
        near=settings.near,
        max_hamming=settings.max_hamming,
        min_similarity=settings.min_similarity,
        feature_cap=settings.feature_cap,
    )


def _fingerprinted(part: EvaluationTexts, settings: DedupSettings) -> pa.Table:
    texts = normalize(pa.array(part.texts, pa.large_string())).texts
    found = fingerprint_texts(texts, settings)
    columns = [pa.array(found.fingerprint), content_hashes(texts), sketch_array(found.sketch), pa.array(part.doc_ids, pa.string())]
    return pa.table(columns, schema=SEGMENT)


def contaminated(root: Path, view: View, dataset: Dataset) -> pl.DataFrame:
    """Rows of HITS for the dataset version, in commit order; computed for what no earlier answer covers, and stored."""
    assert view.decontamination is not None
    stored = _stored(root, view)
    later = [number for number in stored if number >= dataset.version]
    if later:
        return pl.read_parquet(stored[later[0]]).filter(pl.col("version") <= dataset.version)
    known = max(stored, default=0)
    parts = [pl.read_parquet(stored[known])] if known else []
    matcher = _Matcher(root, view.decontamination)
    parts += [matcher.hits(manifest) for manifest in dataset.manifests()[known:]]
    hits = pl.concat([HITS.to_frame(), *parts])
    _store(_path(root, view, dataset.version), hits)
    return hits


def _folder(root: Path, view: View) -> Path:
    return root / FOLDER / view.name / f"{view.version:08d}"


def _path(root: Path, view: View, dataset_version: int) -> Path:
    return _folder(root, view) / f"contaminated-{dataset_version:08d}.parquet"


def _stored(root: Path, view: View) -> dict[int, Path]:
    """Dataset version -> answer, ascending."""
    return {int(path.stem.rpartition("-")[2]): path for path in sorted(_folder(root, view).glob("contaminated-????????.parquet"))}


def _store(path: Path, hits: pl.DataFrame) -> None:
    buffer = io.BytesIO()
    hits.write_parquet(buffer, compression="zstd")
    with suppress(FileExistsError):  # somebody else has found the same meanwhile
        create_durably(path, buffer.getvalue())


class _Matcher:
    """The evaluation documents, ready to be looked up."""

    def __init__(self, root: Path, settings: Decontamination) -> None:
        self._root = root
        self._settings = settings
        segment = pa.ipc.open_file(pa.py_buffer(checked_file(root, settings.file))).read_all()
        self._doc_ids = segment["doc_id"].to_pylist()
        self._columns = columns_of(segment)
        names = [part.name for part in settings.sets for _ in range(part.documents)]
        self._sets = pl.Series("evaluation", names, pl.String)
        rows = np.flatnonzero(self._columns.sketch.any(axis=1)).astype(np.uint32)
        self._index = FingerprintIndex(settings.max_hamming, self._columns.fingerprint[rows], rows)

    def hits(self, manifest: DatasetManifest) -> pl.DataFrame:
        """HITS among the documents that a version added."""
        found = [HITS.to_frame()]
        for entry in manifest.dedup_segments:
            with pa.memory_map(str(self._root / entry.path)) as source:
                segment = pa.ipc.open_file(source).read_all().select(SEGMENT.names)
                found.append(self._hits(segment, manifest.version))
        return pl.concat(found)

    def _hits(self, segment: pa.Table, version: int) -> pl.DataFrame:
        columns = columns_of(segment)
        pairs = pl.concat([_exact(columns, self._columns), *([self._near(columns)] if self._settings.near else [])])
        best = pairs.sort("position", "similarity", "is_exact", "row", descending=[False, True, True, False]).unique(
            "position", keep="first", maintain_order=True
        )
        rows = best["row"].to_list()
        return pl.DataFrame(
            {
                "version": [version] * len(best),
                "doc_id": segment["doc_id"].take(pa.array(best["position"].to_numpy())).to_pylist(),
                "evaluation": self._sets.gather(rows),
                "evaluation_document": [self._doc_ids[row] for row in rows],
                "reason": best.select(pl.when("is_exact").then(pl.lit("exact")).otherwise(pl.lit("near"))).to_series(),
                "similarity": best["similarity"],
            },
            schema=HITS,
        )

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
