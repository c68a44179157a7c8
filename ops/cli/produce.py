"""``headrace produce``: documents from files, folders, standard input or this machine's own documentation onto the documents topic."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from ops.cli.arguments import positive_float, positive_int
from ops.cli.output import print_json, progress_bar, say, tell
from schemas.counting import counted
from schemas.errors import SettingsError
from schemas.settings import Settings

if TYPE_CHECKING:
    from ops.producing.findings import Finding
    from ops.producing.publish import PublishCounts, Publisher

INTERRUPTED = 130
SHOWN_PROBLEMS = 20
"""Problems that are printed one by one; --json lists them all."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser) -> None:
    """Declare the command."""
    description = (
        "Publish documents as CloudEvents on <prefix>.documents. Reads JSON Lines (.jsonl, .ndjson), Parquet, text (.txt, .md, .rst), HTML, WARC, "
        "all but Parquet also compressed (.gz, .zst); folders recursively; - is standard input with one JSON object per line."
    )
    parser = subparsers.add_parser("produce", parents=[common], help="publish documents to Kafka", description=description)
    parser.add_argument("paths", nargs="*", metavar="PATH", help="file or folder, or - for standard input")
    parser.add_argument("--sample", action="store_true", help="publish documents that every machine has: Python's and its packages' documentation")
    parser.add_argument("--limit", type=positive_int, metavar="N", help="publish at most N documents")
    parser.add_argument("--part", type=_share, metavar="I/N", help="with --sample: only part I of N disjoint parts")
    parser.add_argument("--rate-limit", type=positive_float, metavar="R", help="at most R documents per second")
    parser.add_argument("--text-field", default="text", metavar="NAME", help="field of JSON Lines and Parquet that holds the text (default: text)")
    parser.add_argument("--blobs", type=Path, metavar="DIR", help="where documents too large for a record go (default: blobs under the root)")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.set_defaults(run=run, check=_check)


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Publish; 0 if every document went out, 1 if some were too large or could not be read, 130 after Ctrl-C."""
    from ops.producing.publish import Publisher

    was_interrupted = False
    with Publisher(settings, args.rate_limit, args.blobs) as publisher:
        try:
            _publish_all(args, settings, publisher)
        except KeyboardInterrupt:
            was_interrupted = True
            say("headrace produce: interrupted; waiting until the broker has acknowledged the documents that were sent")
        publisher.drain()
    _report(publisher.tally, publisher.topic, settings.formats.max_dataref_bytes, as_json=args.json)
    if was_interrupted:
        return INTERRUPTED
    return 1 if publisher.tally.too_large or publisher.tally.failed else 0


def _check(args: argparse.Namespace) -> None:
    if bool(args.paths) == args.sample:
        raise SettingsError("give either paths (- for standard input) or --sample")
    if args.part is not None and not args.sample:
        raise SettingsError("--part goes with --sample")
    if args.blobs is not None and args.blobs.exists() and not args.blobs.is_dir():
        raise SettingsError(f"--blobs {args.blobs} is not a folder")
    if args.paths:
        _check_paths(args.paths)


def _check_paths(paths: Sequence[str]) -> None:
    """Raise SettingsError if nothing can come of any path. If something can of one, it goes out, and the others are told at the end."""
    from ops.producing.readers import unreadable

    problems = [(path, unreadable(path)) for path in dict.fromkeys(paths)]
    if all(problem is not None for _, problem in problems):
        shown = "; ".join(f"{path}: {problem}" for path, problem in problems[:SHOWN_PROBLEMS])
        raise SettingsError(f"nothing to publish: {shown}{'; …' if len(problems) > SHOWN_PROBLEMS else ''}")


def _findings(args: argparse.Namespace, settings: Settings) -> "Iterator[Finding]":
    if args.sample:
        from ops.producing.samples import WHOLE, Share, sample_documents

        return sample_documents(Share(*args.part) if args.part else WHOLE)
    from ops.producing.readers import ReadOptions, read_paths

    max_bytes = max(settings.kafka.max_request_bytes, settings.formats.max_dataref_bytes)
    options = ReadOptions(args.text_field, max_bytes, settings.formats.max_damaged_fraction)
    return read_paths(args.paths, options, sys.stdin.buffer)


def _publish_all(args: argparse.Namespace, settings: Settings, publisher: "Publisher") -> None:
    from ops.producing.findings import limited

    with progress_bar() as bar, closing(_findings(args, settings)) as findings:  # type: ignore[type-var]
        task = bar.add_task(f"publishing to {publisher.topic}", total=args.limit)
        for finding in limited(findings, args.limit):
            publisher.add(finding)
            bar.advance(task)


def _report(tally: "PublishCounts", topic: str, max_dataref_bytes: int, *, as_json: bool) -> None:
    for large in tally.too_large[:SHOWN_PROBLEMS]:
        if large.size_bytes > max_dataref_bytes:
            limits = f"more than formats.max_dataref_bytes, {max_dataref_bytes:,} bytes: raise the setting, for ingest too, or shorten the document"
        else:
            limits = f"{large.size_bytes:,} bytes: raise the topic's max.message.bytes, lower formats.max_inline_bytes, or shorten the document"
        say(f"too large: {large.origin} ({limits})")
    for failed in tally.failed[:SHOWN_PROBLEMS]:
        say(f"failed: {failed.origin}: {failed.error}")
    hidden = len(tally.too_large[SHOWN_PROBLEMS:]) + len(tally.failed[SHOWN_PROBLEMS:])
    if hidden:
        say(f"… and {counted(hidden, 'more problem')}; --json lists them all")
    if as_json:
        print_json(_summary(tally, topic))
        return
    counts = f"{counted(tally.published, 'document')}, {tally.bytes / 1e6:,.1f} MB, to {topic}"
    skipped = f"{counted(tally.skipped.total(), 'other')} skipped{_reasons(tally)}"
    tell(f"published {counts}; {len(tally.too_large):,} too large, {len(tally.failed):,} failed, {skipped}")


def _reasons(tally: "PublishCounts") -> str:
    """What was skipped, most first."""
    shown = ", ".join(f"{count:,} {reason}" for reason, count in tally.skipped.most_common(SHOWN_PROBLEMS))
    return f" ({shown}{', …' if len(tally.skipped) > SHOWN_PROBLEMS else ''})" if shown else ""


def _summary(tally: "PublishCounts", topic: str) -> dict[str, object]:
    return {
        "topic": topic,
        "published": tally.published,
        "bytes": tally.bytes,
        "too_large": [{"source": large.origin, "bytes": large.size_bytes} for large in tally.too_large],
        "failed": [{"source": failed.origin, "error": failed.error} for failed in tally.failed],
        "skipped": tally.skipped.total(),
        "skipped_kinds": dict(tally.skipped.most_common()),
        "blobs": tally.blobs,
    }


def _share(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 1 to N")
    return int(index), int(count)
