"""``headrace datasets report | drift | release | card``: a version as a page, its difference to those before, and its card."""

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ops.cli.arguments import positive_int, whole_number
from ops.cli.output import print_json, print_table, say, tell
from schemas.errors import SettingsError
from schemas.settings import Settings

if TYPE_CHECKING:
    from pipelines.drift.drift import DriftReport

DEFAULT_OUTPUT = "reports/v{version:08d}.html"
"""Relative to the root."""


def add_actions(actions: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser) -> None:
    """Add the actions to ``headrace datasets``."""
    report = actions.add_parser("report", parents=[common], help="one HTML page about a version")
    report.add_argument("--version", type=positive_int, help="default: the newest")
    report.add_argument("--last", type=positive_int, default=1, metavar="N", help="report on the last N versions up to this one together (default 1)")
    report.add_argument("--output", metavar="FILE.html", help="default: reports/ under the root; - writes to standard output")
    report.add_argument(
        "--examples", type=whole_number, default=0, metavar="N", help="show the texts of N rejected documents per rule, read from Kafka"
    )
    report.add_argument("--json", action="store_true", help="one JSON document on standard output: the path of the page, and what could not be shown")
    report.set_defaults(run=run_report)
    drift = actions.add_parser("drift", parents=[common], help="how much a version differs from the versions before it")
    drift.add_argument("version", nargs="?", type=positive_int, help="default: the newest")
    drift.add_argument("--json", action="store_true", help="one JSON document on standard output")
    drift.set_defaults(run=run_drift)
    releasing = actions.add_parser(
        "release", parents=[common], help="accept a version that drifted: training uses it, and later versions are compared with it"
    )
    releasing.add_argument("version", type=positive_int, help="version to release")
    releasing.add_argument("--reason", default="no reason was given", help="why; is recorded")
    releasing.add_argument("--json", action="store_true", help="one JSON document on standard output")
    releasing.set_defaults(run=run_release)
    card = actions.add_parser("card", parents=[common], help="the Croissant 1.1 card (JSON-LD) of a version")
    card.add_argument("--version", type=positive_int, help="default: the newest")
    card.add_argument(
        "--output", metavar="FILE.json", help="default: standard output; keep the file in the root, because its paths are relative to it"
    )
    card.set_defaults(run=run_card)


def run_report(args: argparse.Namespace, settings: Settings) -> int:
    """Write the page and print where it is."""
    from pipelines.report.facts import collect
    from pipelines.report.page import render
    from pipelines.storage.durable import replace_durably

    if args.output == "-" and args.json:
        raise SettingsError("--output - writes the page to standard output, where --json would write too; give one of them")
    facts = collect(settings, args.version, last=args.last, num_examples=args.examples)
    for note in facts.notes:
        say(note)
    page = render(facts)
    if args.output == "-":
        sys.stdout.write(page)
        return 0
    path = Path(args.output) if args.output else Path(settings.root) / DEFAULT_OUTPUT.format(version=facts.manifest.version)
    replace_durably(path, page.encode())
    if args.json:
        print_json({"version": facts.manifest.version, "path": str(path), "size_bytes": len(page.encode()), "notes": list(facts.notes)})
    else:
        tell(str(path))
    return 0


def run_drift(args: argparse.Namespace, settings: Settings) -> int:
    """Print both values of every feature, and what differs most."""
    from pipelines.drift.watch import report_on

    report = report_on(Path(settings.root), args.version, settings.drift)
    if args.json:
        print_json(report.as_json())
        return 0
    print_table(("feature", "PSI", "JS", "by chance", "verdict", "largest change"), _rows(report), title=_title(report))
    remedy = f"; if the change is wanted, run `headrace datasets release {report.version}`" if report.is_drifting else ""
    say(report.sentence() + ("; a person released it" if report.is_released else remedy))
    return 0


def _title(report: "DriftReport") -> str:
    compared = _versions(report.baseline[0], report.baseline[-1]) if report.baseline else "nothing: it is the first"
    return f"{_versions(report.first, report.version)} against {compared}"


def _versions(first: int, last: int) -> str:
    return f"version {last}" if first == last else f"versions {first} to {last}"


def _rows(report: "DriftReport") -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for item in report.features:
        top = item.contributions[0] if item.contributions else None
        change = f"{top.bin}: {top.baseline_share:.1%} -> {top.share:.1%}" if top else ""
        rows.append((item.feature, f"{item.psi:.3f}", f"{item.js:.3f}", f"{item.chance_psi:.3f}", "drifted" if item.is_over else "steady", change))
    return rows


def run_release(args: argparse.Namespace, settings: Settings) -> int:
    """Release a version; doing it twice changes nothing."""
    from pipelines.drift.watch import release

    written, is_new = release(Path(settings.root), args.version, args.reason, datetime.now(UTC))
    if args.json:
        print_json(written.model_dump(mode="json") | {"is_new": is_new})
        return 0
    when = f"{written.released_at:%Y-%m-%d %H:%M:%S} UTC: {written.reason}"
    tell(f"version {written.version} {'is released' if is_new else 'was released before'}, {when}")
    return 0


def run_card(args: argparse.Namespace, settings: Settings) -> int:
    """Write the Croissant card."""
    from pipelines.dataset.dataset import Dataset
    from pipelines.lineage.croissant import croissant
    from pipelines.storage.durable import replace_durably

    card = json.dumps(croissant(Dataset(Path(settings.root), args.version)), ensure_ascii=False, indent=2) + "\n"
    if args.output:
        replace_durably(Path(args.output), card.encode())
        tell(args.output)
    else:
        sys.stdout.write(card)
    return 0
