"""``headrace gc``: remove files of crashed or fenced attempts, shards that were merged into another file, and tokenizers that nothing names."""

import argparse
from pathlib import Path

from ops.cli.output import print_json, tell
from schemas.settings import Settings


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser) -> None:
    """Add the command."""
    parser = subparsers.add_parser("gc", parents=[common], help="remove files that no dataset version needs or can still list")
    parser.add_argument(
        "--grace-s",
        type=_seconds,
        metavar="SECONDS",
        help="keep files that are younger (default: ingest.gc_grace_s, and ingest.merged_grace_s for shards that a merge replaced); "
        "a file that is being written always stays",
    )
    parser.add_argument("--dry-run", action="store_true", help="only list what would be removed")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    parser.set_defaults(run=run)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not 0 seconds or more")
    return value


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Print what is removed, one path a line."""
    from pipelines.dataset.gc import collect_garbage

    grace_s = settings.ingest.gc_grace_s if args.grace_s is None else args.grace_s
    merged_grace_s = settings.ingest.merged_grace_s if args.grace_s is None else args.grace_s
    removed = collect_garbage(Path(settings.root), grace_s=grace_s, merged_grace_s=merged_grace_s, by_hand=True, dry_run=args.dry_run)
    if args.json:
        print_json({"dry_run": args.dry_run, "grace_s": grace_s, "merged_grace_s": merged_grace_s, "removed": removed})
        return 0
    for path in removed:
        tell(path)
    tell(f"{len(removed):,} files and temporary folders {'would be ' if args.dry_run else ''}removed")
    return 0
