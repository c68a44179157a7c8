"""``headrace datasets list | show | verify``: the committed versions under the root.

Reports, drift and cards: dataset_report.py; views, differences and exports: dataset_views.py.
"""

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ops.cli.arguments import positive_int
from ops.cli.dataset_report import add_actions as add_report_actions
from ops.cli.dataset_semantic import add_actions as add_semantic_actions
from ops.cli.dataset_views import add_actions as add_view_actions
from ops.cli.output import print_json, print_json_list, print_table, progress_bar, say, tell
from schemas.counting import counted
from schemas.settings import Settings

if TYPE_CHECKING:
    from pipelines.dataset.dataset import Dataset
    from pipelines.dataset.verify import Report
    from schemas.manifest import DatasetManifest


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser) -> None:
    """Add the command."""
    parser = subparsers.add_parser("datasets", help="list, show and verify dataset versions")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", parents=[common], help="all versions, or the last of them")
    listing.add_argument("--last", type=positive_int, metavar="N", help="only the newest N versions")
    showing = actions.add_parser("show", parents=[common], help="one version: offsets, outcomes, shards")
    showing.add_argument("version", nargs="?", type=positive_int, help="default: the newest")
    verifying = actions.add_parser("verify", parents=[common], help="hash every file, add up every count, decode a sample")
    add_report_actions(actions, common)
    add_semantic_actions(actions, common)
    add_view_actions(actions, common)
    for action, function in ((listing, run_list), (showing, run_show), (verifying, run_verify)):
        action.add_argument("--json", action="store_true", help="one JSON document on standard output")
        action.set_defaults(run=function)


def outcome_counts(outcomes: Mapping[Any, int]) -> str:
    """``kept 12, duplicate 3``: the outcomes that occurred."""
    return ", ".join(f"{outcome} {count:,}" for outcome, count in outcomes.items() if count)


def summary(manifest: "DatasetManifest") -> dict[str, Any]:
    """A version as ``show --json`` prints it; the first fields are a contract (DESIGN §9)."""
    value = manifest.model_dump(mode="json")
    first = ("version", "parent", "offsets", "outcomes", "num_records", "num_tokens", "shards", "tokenizer", "settings_fingerprint", "created_at")
    return {name: value[name] for name in first} | {name: value[name] for name in value if name not in first}


def loss_sentences(manifest: "DatasetManifest") -> list[str]:
    """What a version accepts as lost: one sentence for each partition; empty for other versions."""
    from pipelines.kafka.planning import told

    if (accepted := manifest.accepted_loss) is None:
        return []
    return [f"{told(loss)}; accepted by {accepted.by}: {accepted.reason}" for loss in accepted.lost]


def _what_it_did(row: dict[str, Any]) -> str:
    if row["num_losses"]:
        return f"accepted a loss in {counted(row['num_losses'], 'partition')}"
    if row["merged"]:
        return f"merged small shards into {len(row['merged'])} larger {'file' if len(row['merged']) == 1 else 'files'}"
    return "compacted the duplicate index" if row["dedup_base"] else outcome_counts(row["outcomes"])


def run_list(args: argparse.Namespace, settings: Settings) -> int:
    """All versions, oldest first."""
    from pipelines.dataset.dataset import Dataset

    dataset = Dataset(Path(settings.root))
    before = max(0, dataset.version - max(1, args.last)) if args.last is not None else 0
    if args.json:
        print_json_list("versions", map(summary, dataset.manifests()[before:]))
        return 0
    names = ["created_at", "num_records", "num_tokens", "outcomes", "dedup_base", "merged", "num_losses"]
    columns = dataset.columns.slice(before).select(names).to_pylist()
    rows = [
        (version, f"{row['created_at']:%Y-%m-%d %H:%M:%S}", row["num_records"], _what_it_did(row), row["num_tokens"])
        for version, row in enumerate(columns, before + 1)
    ]
    print_table(("version", "created (UTC)", "records", "outcomes", "tokens"), rows, title=f"dataset {dataset.root}")
    return 0


def run_show(args: argparse.Namespace, settings: Settings) -> int:
    """One version."""
    from pipelines.dataset.dataset import Dataset

    dataset = Dataset(Path(settings.root), args.version)
    manifest = dataset.manifest
    if args.json:
        print_json(summary(manifest))
        return 0
    facts: list[tuple[str, object]] = [
        ("created", f"{manifest.created_at:%Y-%m-%d %H:%M:%S} UTC"),
        ("records", manifest.num_records),
        ("tokens", manifest.num_tokens),
        ("retracted documents masked from here on", manifest.num_masked_documents),
        ("their tokens", manifest.num_masked_tokens),
        ("tokens of versions 1..N", manifest.totals.num_tokens),
        ("of these masked", manifest.totals.num_masked_tokens),
        ("train tokens that count", manifest.totals.num_effective_train_tokens),
        ("tokenizer", f"{manifest.tokenizer.sha256[:12]}, {manifest.tokenizer.vocab_size:,} ids"),
        ("settings", manifest.settings_fingerprint[:12]),
        ("offsets lost unread in versions 1..N", manifest.totals.num_lost),
    ]
    facts += [("accepted loss", sentence) for sentence in loss_sentences(manifest)]
    languages = manifest.statistics.total.languages.values() if manifest.statistics else ()
    if num_replaced := sum(sums.replaced for sums in languages):
        facts.append(("characters lost in decoding (U+FFFD)", num_replaced))
    facts += [(f"outcome {outcome}", count) for outcome, count in manifest.outcomes.items()]
    facts += [(f"reason {reason}", count) for reason, count in manifest.reasons.items()]
    facts += [(f"language {language}", count) for language, count in manifest.languages.items()]
    print_table(("", "value"), facts, title=f"version {manifest.version}")
    spans = [(topic, partition, span.start, span.end) for topic, spans in manifest.offsets.items() for partition, span in spans.items()]
    print_table(("topic", "partition", "start", "end"), spans)
    _print_shards(dataset)
    return 0


def _print_shards(dataset: "Dataset") -> None:
    """Print the shards of a version, where their rows lie if they were merged, and the files of a merge."""
    placement, manifest = dataset.newest_placement(), dataset.manifest
    entries = [*manifest.shards, *manifest.merged]
    rows = [(entry.path, entry.rows, entry.tokens, entry.documents) for entry in entries]
    print_table(("shard", "rows", "tokens", "documents"), rows)
    moved = [(entry.path, *place) for entry in entries if (place := placement.place_of(entry.path))[0] != entry.path]
    if moved:
        print_table(("shard", "now in file", "from row"), moved)


def run_verify(args: argparse.Namespace, settings: Settings) -> int:
    """0 if everything is as promised, else 1."""
    from pipelines.dataset.verify import verify

    with progress_bar() as bar:
        task = bar.add_task("verify", total=None)
        report = verify(Path(settings.root), lambda version, newest: bar.update(task, completed=version, total=newest))
    _print_report(report, as_json=args.json)
    return 1 if report.problems else 0


def _print_report(report: "Report", *, as_json: bool) -> None:
    if as_json:
        print_json({"ok": not report.problems} | asdict(report))
        return
    for problem in report.problems:
        tell(f"version {problem.version}: {problem.path}: {problem.what}; {problem.fix}")
    checked = f"{counted(report.versions, 'version')}, {counted(report.files, 'file')}, {report.size_bytes:,} bytes"
    checked += f", {counted(report.documents_decoded, 'document')} decoded"
    say(f"{checked}: {counted(len(report.problems), 'problem')}" if report.problems else f"{checked}: no problems")
