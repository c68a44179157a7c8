"""Lists of documents to leave out: Parquet files with a column ``doc_id``, and perhaps ``duplicate_of`` and ``similarity``, that say why.

A view keeps a copy of the ids, so that it means the same when the file is gone.
"""

import io
import re
from pathlib import Path

import polars as pl

from pipelines.views.store import checked_file, store_file
from schemas.errors import SettingsError
from schemas.view import ExclusionList

REASONS = ("duplicate_of", "similarity")


def keep_list(root: Path, view_name: str, path: Path) -> ExclusionList:
    """Copy the list into the view; it is named after the file. Raises SettingsError if the file is no such list."""
    try:
        names = pl.read_parquet_schema(path)
        if names.get("doc_id") != pl.String:
            raise SettingsError(f"{path} has no column doc_id of strings; its columns are {', '.join(names)}")
        table = pl.read_parquet(path, columns=["doc_id", *(name for name in REASONS if name in names)])
    except (OSError, pl.exceptions.PolarsError) as error:
        raise SettingsError(f"{path} cannot be read as Parquet: {error}") from error
    buffer = io.BytesIO()
    table = table.drop_nulls("doc_id").unique("doc_id", keep="first", maintain_order=True).sort("doc_id")
    table.write_parquet(buffer, compression="zstd")
    entry = store_file(root, view_name, "list", ".parquet", buffer.getvalue(), len(table))
    return ExclusionList(**entry.model_dump(), name=name_of(path))


def read_list(root: Path, entry: ExclusionList) -> pl.DataFrame:
    """The documents of a list. Raises ManifestCorrupt if its bytes are not those that the view was made with."""
    return pl.read_parquet(io.BytesIO(checked_file(root, entry)))


def name_of(path: Path) -> str:
    """A name made from a file's."""
    return name_of_text(path.name.split(".")[0])


def name_of_text(text: str) -> str:
    """A name made from a text: letters and digits of any script, - and _."""
    return re.sub(r"[^\w-]+", "-", text.lower()).strip("-_")[:64] or "unnamed"
