"""Lists of documents to leave out."""

from pathlib import Path

import polars as pl

from pipelines.views.lists import keep_list, read_list


def test_a_list_says_how_many_documents_it_holds_each_counted_once(tmp_path: Path) -> None:
    pl.DataFrame({"doc_id": ["b", "a", "b", None, "a"]}).write_parquet(tmp_path / "list.parquet")
    entry = keep_list(tmp_path / "root", "view", tmp_path / "list.parquet")
    assert entry.rows == 2
    assert read_list(tmp_path / "root", entry)["doc_id"].to_list() == ["a", "b"]
