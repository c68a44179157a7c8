"""Checks that the masks of a dataset are what its retractions ask for: no document too few, none too many, each span the document's own.

Reads the mask files, and the audit trail once for the ids that were retracted. What a retraction takes out is told in retractions.py.
"""

from collections.abc import Iterator

import polars as pl
import pyarrow as pa

from pipelines.dataset.dataset import Dataset
from pipelines.dataset.history import Holds
from pipelines.dataset.names import version_of
from pipelines.dataset.retractions.masks import is_train_shard, read_masks
from pipelines.dataset.trail import scan_trail
from schemas.arrow import MASKS, Outcome
from schemas.errors import DatasetError
from schemas.manifest import DatasetManifest

START_AGAIN = "something other than Headrace changed the dataset; start a new dataset under another --root"
Found = tuple[int, str, str, str]
"""version, path, what, fix"""
_SPAN = ["doc_id", "version", "ordinal", "shard", "row", "start", "length"]
_RETRACTION = ["topic", "partition", "offset"]


def mask_problems(dataset: Dataset) -> Iterator[Found]:
    """What is wrong with the masks of versions 1..N."""
    manifests = [dataset.read(version) for version in dataset.versions_with(Holds.MASKS | Holds.RETRACTIONS)]
    if not manifests:
        return
    masks = pl.concat([_masks(dataset, manifest) for manifest in manifests])
    for manifest in manifests:
        yield from _count_problems(dataset, manifest, masks.filter(pl.col("in") == manifest.version))
    for row in masks.filter(~pl.col("ordinal").is_first_distinct()).to_dicts():
        path = dataset.manifests()[row["in"] - 1].masks[0].path
        yield row["in"], path, f"document {row['doc_id']!r} is masked a second time", START_AGAIN
    expected = _expected(dataset)
    for row in masks.join(expected, on=[*_SPAN, *_RETRACTION, "in"], how="anti").to_dicts():
        path = dataset.manifests()[row["in"] - 1].masks[0].path
        yield row["in"], path, f"document {row['doc_id']!r} is masked, but no retraction in this version takes such a span out", START_AGAIN
    for row in expected.join(masks, on=[*_SPAN, *_RETRACTION, "in"], how="anti").to_dicts():
        place = f"{row['topic']}/{row['partition']}/{row['offset']}"
        yield row["in"], row["shard"], f"document {row['doc_id']!r} was retracted at {place}, but its span is not masked", START_AGAIN


def _masks(dataset: Dataset, manifest: DatasetManifest) -> pl.DataFrame:
    frame = pl.DataFrame(read_masks(dataset.root, manifest).cast(MASKS))
    return frame.with_columns(pl.lit(manifest.version, pl.Int64).alias("in"))


def _count_problems(dataset: Dataset, manifest: DatasetManifest, masks: pl.DataFrame) -> Iterator[Found]:
    before = dataset.manifests()[manifest.version - 2].totals if manifest.version > 1 else None
    num_train_tokens = int(masks.filter(pl.Series([is_train_shard(shard) for shard in masks["shard"]], dtype=pl.Boolean))["length"].sum())
    found = (len(masks), int(masks["length"].sum()), num_train_tokens)
    added = manifest.totals.num_masked_train_tokens - (before.num_masked_train_tokens if before else 0)
    if found != (listed := (manifest.num_masked_documents, manifest.num_masked_tokens, added)):
        path = f"log/{manifest.version:08d}.json"
        yield manifest.version, path, f"masked documents, tokens and train tokens are {found}, the manifest says {listed}", START_AGAIN


def _expected(dataset: Dataset) -> pl.DataFrame:
    """The masks that the audit trail asks for: each kept document of a retracted id with the first retraction behind it."""
    paths = dataset.paths("documents")
    trail = scan_trail(paths, "file").filter(pl.col("outcome").is_in([str(Outcome.KEPT), str(Outcome.RETRACTED)]))
    trail = trail.with_columns(ordinal=(pl.col("outcome") == Outcome.KEPT).cast(pl.Int64).cum_sum() - 1).with_row_index("place")
    retracted = scan_trail(paths).filter(pl.col("outcome") == Outcome.RETRACTED).select("doc_id").unique()
    rows = trail.join(retracted, on="doc_id", how="semi").select("place", "outcome", "file", *set(_SPAN) - {"version"}, *_RETRACTION).collect()
    rows = rows.with_columns(version=pl.col("file").map_elements(version_of, pl.Int64)).sort("place")
    kept = rows.filter(pl.col("outcome") == Outcome.KEPT).drop("outcome", "file", *_RETRACTION)
    behind = rows.filter(pl.col("outcome") == Outcome.RETRACTED).select("place", "doc_id", *_RETRACTION, pl.col("version").alias("in"))
    return kept.join_asof(behind, on="place", by="doc_id", strategy="forward", check_sortedness=False).drop_nulls("in")


def checked_masks(dataset: Dataset) -> list[Found]:
    """``mask_problems``, or that they cannot be looked for because a file is damaged."""
    try:
        return list(mask_problems(dataset))
    except (OSError, DatasetError, pa.ArrowException, pl.exceptions.PolarsError) as error:
        return [(dataset.version, "masks", f"the masks cannot be checked: {error}", "restore the files that are damaged from a copy")]
