"""What a view comes to: documents and tokens by split and group, what is left out by which rule, and how two views or versions differ."""

from pathlib import Path
from typing import Any

import polars as pl

from pipelines.dataset.dataset import Dataset
from pipelines.views.decontamination import HITS, contaminated
from pipelines.views.rows import ViewRows
from pipelines.views.selection import RETRACTED, OpenView, open_view, whole
from schemas.arrow import Outcome, Split

MILLION = 1_000_000
_COUNTS = (pl.len().alias("documents"), pl.col("length").sum().alias("tokens"))


def open_any(root: Path, label: str) -> OpenView:
    """A dataset version by its number, or a view ``NAME[@N]``."""
    return whole(Dataset(root, int(label))) if label.isascii() and label.isdigit() else open_view(root, label)


def describe(opened: OpenView) -> dict[str, Any]:
    """Everything that ``datasets view show`` prints, as plain JSON values. ``available`` is a group's part of the train tokens that there are."""
    documents = opened.documents
    chosen = documents.filter(pl.col("rule").is_null())
    return {
        "view": opened.view.model_dump(mode="json", exclude_none=True),
        "sha256": opened.sha256,
        "dataset_version": opened.dataset.version,
        "documents": len(chosen),
        "tokens": int(chosen["length"].sum()),
        "splits": {name: {"documents": 0, "tokens": 0} for name in opened.view.splits} | _counted(chosen, "split"),
        "groups": _groups(opened),
        "excluded": _counted(documents.filter(pl.col("rule").is_not_null()), "rule"),
        "contaminated": hits_of(opened).to_dicts(),
    }


def hits_of(opened: OpenView) -> pl.DataFrame:
    """Documents that are duplicates of evaluation documents: HITS."""
    return contaminated(opened.dataset.root, opened.view, opened.dataset) if opened.view.decontamination else HITS.to_frame()


def _groups(opened: OpenView) -> list[dict[str, Any]]:
    rows, train = ViewRows(opened), opened.chosen(Split.TRAIN)
    mixture, counts = rows.mixture, dict(train.group_by("group").len().iter_rows())
    epochs = mixture.epochs(MILLION)
    return [
        {
            "name": name,
            "documents": counts.get(number, 0),
            "tokens": rows.group_tokens[number],
            "rows": mixture.num_rows[number],
            "wanted": mixture.shares[number],
            "available": rows.group_tokens[number] / max(1, rows.num_tokens),
            "epochs_per_million_tokens": epochs[number] / rows.sequence_length if mixture.num_rows[number] else None,
        }
        for number, name in enumerate(mixture.names)
    ]


def _counted(documents: pl.DataFrame, column: str) -> dict[str, dict[str, int]]:
    """Value -> documents and tokens, most tokens first."""
    key = pl.col(column).cast(pl.String).fill_null("(none)")
    counted = documents.group_by(key).agg(*_COUNTS).sort("tokens", column, descending=[True, False])
    return {row[column]: {"documents": row["documents"], "tokens": row["tokens"]} for row in counted.to_dicts()}


def diff(before: OpenView, after: OpenView) -> dict[str, Any]:
    """What ``after`` has and has not in comparison with ``before``, as plain JSON values; both of one root.

    ``removed`` are documents that a rule leaves out now; those that were retracted since count apart. ``outcomes``: records that the one
    dataset version has read and the other has not.
    """
    old, new = (opened.documents.filter(pl.col("rule").is_null()) for opened in (before, after))
    gone = old.join(new, on="ordinal", how="anti")
    now_retracted = after.documents.filter(pl.col("rule") == RETRACTED).select("ordinal")
    both = old.join(new.select("ordinal", other_split="split"), on="ordinal")
    changes = {
        "added": new.join(old, on="ordinal", how="anti"),
        "removed": gone.join(now_retracted, on="ordinal", how="anti"),
        "retracted": gone.join(now_retracted, on="ordinal", how="semi"),
        "moved": both.filter(pl.col("split") != pl.col("other_split")),
    }
    first, second = (opened.dataset.manifest.totals.outcomes for opened in (before, after))
    return {
        "from": before.label,
        "to": after.label,
        "documents": [len(old), len(new)],
        "tokens": [int(old["length"].sum()), int(new["length"].sum())],
        **{name: _change(documents) for name, documents in changes.items()},
        "outcomes": {str(outcome): second.get(outcome, 0) - first.get(outcome, 0) for outcome in Outcome},
        "excluded": [_counted(opened.documents.filter(pl.col("rule").is_not_null()), "rule") for opened in (before, after)],
    }


def _change(documents: pl.DataFrame) -> dict[str, Any]:
    totals = {"documents": len(documents), "tokens": int(documents["length"].sum())}
    return totals | {f"by_{column}": _counted(documents, column) for column in ("language", "source", "split")}
