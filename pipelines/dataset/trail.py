"""The audit trail of several versions as one lazy table, however old its files are: a column that a file lacks is null in its rows.

Cost: nothing until it is collected; predicates and columns are pushed down into Parquet.
"""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from pipelines.storage.store import all_local
from schemas.arrow import DOCUMENTS, Outcome


def scan_trail(paths: Sequence[Path], file_column: str | None = None) -> pl.LazyFrame:
    """Rows of DOCUMENTS, in the order of the files and of their rows; ``file_column`` names the file of each."""
    empty = pl.from_arrow(DOCUMENTS.empty_table())
    assert isinstance(empty, pl.DataFrame)
    if not paths:
        return empty.with_columns(pl.lit("").alias(file_column)).lazy() if file_column else empty.lazy()
    # missing and extra columns: files of an older and of a newer Headrace
    return pl.scan_parquet(all_local(paths), schema=empty.schema, missing_columns="insert", extra_columns="ignore", include_file_paths=file_column)


def commit_order(file_column: str) -> list[pl.Expr]:
    """What to sort rows of the trail by. A version's files do not sort by their names; within a version commit order is that of the offsets."""
    version = pl.col(file_column).str.extract(r"v(\d{8})-[^/]*$")
    return [version, pl.col("partition"), pl.col("offset")]


def read_kept(paths: Sequence[Path], columns: Sequence[str]) -> pl.DataFrame:
    """Columns of the kept documents in these parts of the audit trail, in commit order."""
    return scan_trail(paths).filter(pl.col("outcome") == Outcome.KEPT).select(columns).collect()
