"""``headrace datasets view create|list|show``, ``diff`` and ``export``: choices of a dataset's documents, and taking them elsewhere."""

import argparse
import sys
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ops.cli.arguments import positive_int, whole_number
from ops.cli.output import print_json, print_table, say, tell
from schemas.counting import counted
from schemas.errors import SettingsError
from schemas.settings import Settings

if TYPE_CHECKING:
    from pipelines.views.decontamination import EvaluationTexts
    from pipelines.views.selection import OpenView
    from schemas.view import ViewSpec

MAX_HITS_SHOWN = 20
OFTEN = 20
"""A group whose share is this many times larger than its part of the documents gets a warning."""


def add_actions(actions: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser) -> None:
    """Add the actions to ``headrace datasets``."""
    views = actions.add_parser("view", help="named choices of documents, with weights")
    _add_view_actions(views.add_subparsers(dest="view_action", metavar="ACTION", required=True), common)
    comparing = actions.add_parser("diff", parents=[common], help="documents and tokens that differ between two versions or views")
    comparing.add_argument("before", help="a dataset version, or a view NAME[@N]")
    comparing.add_argument("after", help="another one")
    comparing.add_argument("--json", action="store_true", help="one JSON document on standard output")
    comparing.set_defaults(run=run_diff)
    exporting = actions.add_parser("export", parents=[common], help="write a version or a view for other tools, without retracted documents")
    exporting.add_argument("--format", choices=("hf", "parquet", "bin", "jsonl"), required=True, help="hf: Parquet with a Hugging Face card")
    chosen = exporting.add_mutually_exclusive_group()
    chosen.add_argument("--version", type=positive_int, metavar="N", help="dataset version (default: the newest)")
    chosen.add_argument("--view", metavar="NAME[@N]", help="a view")
    exporting.add_argument("--output", required=True, metavar="DIR", help="folder to create; it must not exist yet")
    exporting.add_argument(
        "--include-retracted-later", action="store_true", help="also export documents that a later version retracted (default: they are left out)"
    )
    exporting.add_argument("--json", action="store_true", help="one JSON document on standard output")
    exporting.set_defaults(run=run_export)


def _add_view_actions(actions: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser) -> None:
    making = actions.add_parser("create", parents=[common], help="make a view, or its next version")
    making.add_argument("name", help="lower-case letters, digits, - and _")
    making.add_argument("--file", metavar="VIEW.toml", help="dataset, [filter], [[group]], [[holdout]], exclude, evaluation; flags add to it")
    making.add_argument("--dataset", type=positive_int, metavar="N", help="bind it to this dataset version (default: the newest at each use)")
    many: dict[str, Any] = {"action": "append", "default": []}
    making.add_argument(
        "--filter", metavar="FILTER", help="language=en,zh | domain!=spam | quality>=0.5 | num_tokens<=2000 | A&B (repeatable)", **many
    )
    making.add_argument(
        "--weight",
        metavar="FILTER:SHARE",
        help="a group and its share: domain=tech:0.3; rest:0.4 for all others. A document is in the first group that fits (repeatable)",
        **many,
    )
    making.add_argument(
        "--holdout", metavar="NAME:FILTER", help="documents that are never trained on, as a split of that name: news:source=news (repeatable)", **many
    )
    making.add_argument("--exclude", metavar="FILE.parquet", help="documents to leave out: a column doc_id (repeatable)", **many)
    making.add_argument(
        "--evaluation", metavar="PATH", help="evaluation set: documents that repeat a document of it, or a passage, are left out (repeatable)", **many
    )
    making.add_argument(
        "--min-passage-tokens",
        type=whole_number,
        metavar="N",
        help="leave out documents that repeat N tokens in a row of an evaluation document; 0: do not look for passages",
    )
    listing = actions.add_parser("list", parents=[common], help="all views")
    showing = actions.add_parser("show", parents=[common], help="documents, tokens, shares, and which rule leaves out how much")
    showing.add_argument("view", metavar="NAME[@N]", help="default: the newest version of the view")
    showing.add_argument("--dataset", type=positive_int, metavar="N", help="use this dataset version (default: the newest)")
    for action, function in ((making, run_create), (listing, run_list), (showing, run_show)):
        action.add_argument("--json", action="store_true", help="one JSON document on standard output")
        action.set_defaults(run=function)


def run_create(args: argparse.Namespace, settings: Settings) -> int:
    """Publish the view and show what it comes to."""
    from pipelines.views.making import create_view
    from pipelines.views.selection import open_view

    spec = _spec(args)
    evaluations = [_read_evaluation(path, settings) for path in spec.evaluation]
    root = Path(settings.root)
    view, is_new = create_view(root, args.name, spec, evaluations, settings.dedup, datetime.now(UTC))
    say(f"made view {view.label}" if is_new else f"view {view.label} is the same already; no new version was made")
    total = sum(group.weight for group in view.groups)
    if view.groups and abs(total - 1) > 1e-6:
        shares = ", ".join(f"{name} {share:.1%}" for name, share in zip(view.group_names, view.shares, strict=True))
        say(f"the weights sum to {total:g}; each is divided by that: {shares}")
    _print_view(open_view(root, view.label), as_json=args.json)
    return 0


def _spec(args: argparse.Namespace) -> "ViewSpec":
    from pipelines.views.terms import merged, parse_filter, parse_holdout, parse_weight
    from schemas.view import ViewSpec

    given = _read_toml(Path(args.file)) if args.file else {}
    try:
        asked = ViewSpec.model_validate(given).model_dump(exclude_none=True, exclude_unset=True)
        asked["filter"] = merged([asked.get("filter", {}), *map(parse_filter, args.filter)])
        asked["group"] = [*asked.get("group", ()), *map(parse_weight, args.weight)]
        asked["holdout"] = [*asked.get("holdout", ()), *map(parse_holdout, args.holdout)]
        asked["exclude"] = [*asked.get("exclude", ()), *args.exclude]
        asked["evaluation"] = [*asked.get("evaluation", ()), *args.evaluation]
        single = {"dataset": args.dataset, "min_passage_tokens": args.min_passage_tokens}
        return ViewSpec.model_validate(asked | {name: value for name, value in single.items() if value is not None})
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, item['loc']))}: {item['msg'].removeprefix('Value error, ')}" for item in error.errors())
        raise SettingsError(f"this cannot be a view: {'; '.join(problem.removeprefix(': ') for problem in problems)}") from error


def _read_toml(path: Path) -> dict[str, Any]:
    """The file; paths in it are relative to its folder."""
    try:
        value = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{path} cannot be read as TOML: {error}") from error
    for name in ("exclude", "evaluation"):
        if isinstance(value.get(name), list):
            value[name] = [str(path.parent / entry) for entry in value[name]]
    return value


def _read_evaluation(path: str, settings: Settings) -> "EvaluationTexts":
    """Every document of a file or folder. One that cannot be read is an error: it would count as clean."""
    from ops.producing.findings import Found, Skipped
    from ops.producing.readers import ReadOptions, read_paths
    from pipelines.views.decontamination import EvaluationTexts
    from pipelines.views.lists import name_of

    doc_ids, texts = [], []
    options = ReadOptions(max_bytes=settings.ingest.max_document_bytes, max_damage=settings.formats.max_damaged_fraction)
    for finding in read_paths([path], options, sys.stdin.buffer):
        if isinstance(finding, Found):
            if finding.document.format == "html":
                raise SettingsError(f"{finding.origin} is an HTML page; give the evaluation set as text, JSON Lines or Parquet")
            doc_ids.append(str(finding.document.id))
            texts.append(finding.document.text)
        elif isinstance(finding, Skipped):
            say(f"{finding.origin} is skipped: files of this kind cannot be read")
        else:
            raise SettingsError(f"the evaluation set cannot be read: {finding.origin}: {getattr(finding, 'error', 'it is too large')}")
    if not texts:
        raise SettingsError(f"evaluation set {path} holds no documents")
    return EvaluationTexts(name_of(Path(path)), doc_ids, texts)


def run_list(args: argparse.Namespace, settings: Settings) -> int:
    """All views, their newest versions."""
    from pipelines.views.store import read_view, view_names

    views = [read_view(Path(settings.root), name)[0] for name in view_names(Path(settings.root))]
    if args.json:
        print_json({"views": [view.model_dump(mode="json", exclude_none=True) for view in views]})
        return 0
    columns = ("view", "versions", "created (UTC)", "dataset", "groups", "holdouts")
    rows = [
        (
            view.name,
            view.version,
            f"{view.created_at:%Y-%m-%d %H:%M:%S}",
            view.dataset_version or "newest",
            ", ".join(view.group_names),
            ", ".join(view.splits[2:]) or "none",
        )
        for view in views
    ]
    print_table(columns, rows, title=f"views of {settings.root}")
    return 0


def run_show(args: argparse.Namespace, settings: Settings) -> int:
    """One view of a dataset version."""
    from pipelines.views.selection import open_view

    _print_view(open_view(Path(settings.root), args.view, args.dataset), as_json=args.json)
    return 0


def _print_view(opened: "OpenView", *, as_json: bool) -> None:
    from pipelines.views.summary import describe

    told = describe(opened)
    for group in told["groups"]:
        _warn_of(group)
    for holdout in opened.view.holdouts:
        if not told["splits"][holdout.name]["documents"]:
            say(f"holdout {holdout.name} holds no document")
    if as_json:
        print_json(told)
        return
    groups = [
        (
            group["name"],
            group["documents"],
            group["tokens"],
            f"{group['wanted']:.1%}",
            f"{group['available']:.1%}",
            "no rows" if group["epochs_per_million_tokens"] is None else f"{group['epochs_per_million_tokens']:.3g}",
        )
        for group in told["groups"]
    ]
    columns = ("group", "documents", "tokens", "wanted", "available", "epochs per 1 M tokens")
    print_table(columns, groups, title=f"{opened.label}: {counted(told['documents'], 'document')}, {counted(told['tokens'], 'token')}")
    print_table(("split", "documents", "tokens"), _counts(told["splits"]))
    print_table(("left out by", "documents", "tokens"), _counts(told["excluded"]))
    if hits := told["contaminated"]:
        shown = [(hit["doc_id"], hit["evaluation"], hit["evaluation_document"], hit["reason"], f"{hit['similarity']:.2f}") for hit in hits]
        headings = ("document", "evaluation set", "its document", "in common", "similarity")
        print_table(headings, shown[:MAX_HITS_SHOWN], title=f"{counted(len(hits), 'document')} with too much in common with evaluation documents")


def _warn_of(group: dict[str, Any]) -> None:
    """Warn of a group that is empty, or so small that its documents would be read many times."""
    if not group["tokens"]:
        say(f"group {group['name']} holds no document to train on: training refuses the view until it does")
    elif group["wanted"] > OFTEN * group["available"]:
        often = f"each of its documents is read {group['epochs_per_million_tokens']:,.0f} times per million tokens"
        say(f"group {group['name']} has a share of {group['wanted']:.1%} but only {counted(group['tokens'], 'token')}: {often}")


def _counts(by_name: dict[str, dict[str, int]]) -> list[tuple[str, int, int]]:
    return [(name, counts["documents"], counts["tokens"]) for name, counts in by_name.items()]


def run_diff(args: argparse.Namespace, settings: Settings) -> int:
    """Print what differs."""
    from pipelines.views.summary import diff, open_any

    told = diff(*(open_any(Path(settings.root), label) for label in (args.before, args.after)))
    if args.json:
        print_json(told)
        return 0
    rows: list[tuple[object, ...]] = []
    for name in ("added", "removed", "retracted", "moved"):
        rows.append((name, "all", told[name]["documents"], told[name]["tokens"]))
        for kind in ("language", "source"):
            rows += [(name, f"{kind} {value}", *counts) for value, *counts in _counts(told[name][f"by_{kind}"])]
    print_table(("", "which", "documents", "tokens"), rows, title=f"from {told['from']} to {told['to']}")
    print_table(("outcome", "more records"), [(name, count) for name, count in told["outcomes"].items() if count])
    return 0


def run_export(args: argparse.Namespace, settings: Settings) -> int:
    """Write the folder and print its path."""
    from pipelines.dataset.dataset import Dataset
    from pipelines.views.export import export
    from pipelines.views.selection import open_view, whole

    root = Path(settings.root)
    opened = open_view(root, args.view) if args.view else whole(Dataset(root, args.version))
    written = export(opened, args.format, Path(args.output), with_later_retracted=args.include_retracted_later)
    counts = ", ".join(
        f"{name} {counted(split['documents'], 'document')}, {counted(split['tokens'], 'token')}" for name, split in written["splits"].items()
    )
    say(f"{opened.label}: {counts}")
    if later := written["retracted_later"]["documents"]:
        fate = "exports them" if args.include_retracted_later else "leaves them out (--include-retracted-later exports them)"
        say(f"later versions retracted {counted(later, 'document')} of this version; the export {fate}")
    if args.json:
        print_json({"view": opened.label, "format": args.format, "output": args.output, **written})
    else:
        tell(args.output)
    return 0
