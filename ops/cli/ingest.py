"""``headrace ingest --once | --follow``: documents from Kafka into the next dataset versions, each offset exactly once.

``--accept-loss``: a person's decision to go on where records are lost (pipelines/ingest/acceptance.py).
"""

import argparse
import getpass
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from ops.cli.datasets import loss_sentences, outcome_counts, summary
from ops.cli.output import print_json, print_table, progress_bar, say, tell
from schemas.counting import counted
from schemas.errors import SettingsError
from schemas.settings import Settings

if TYPE_CHECKING:
    from pipelines.ingest.freshness import VersionTimes
    from pipelines.ingest.progress import Progress
    from pipelines.kafka.transactions import Held
    from schemas.manifest import DatasetManifest


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "ingest",
        parents=[common],
        help="read documents from Kafka into the dataset, exactly once",
        epilog='examples: headrace ingest --once; after a loss, as the error says it: headrace ingest --accept-loss 0@1500 --reason "retention"',
    )
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--once", action="store_true", help="ingest what is there now, then end")
    mode.add_argument("--follow", action="store_true", help="go on until stopped (Ctrl-C, SIGTERM or SIGHUP)")
    mode.add_argument(
        "--accept-loss",
        nargs="+",
        type=_resumption,
        metavar="PARTITION@OFFSET",
        help="accept that records are lost: commit a version that records it, and go on at these offsets (@gone: the partition is gone)",
    )
    parser.add_argument("--reason", help="with --accept-loss: why you accept it; the version records it with your user name")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output at the end: the versions that were committed")
    parser.set_defaults(run=run, check=_check)


def _check(args: argparse.Namespace) -> None:
    if (args.accept_loss is None) != (not (args.reason or "").strip()):
        raise SettingsError('--accept-loss and --reason go together: say why the loss is accepted, such as --reason "retention was too short"')
    partitions = [partition for partition, _ in args.accept_loss or ()]
    if twice := sorted({partition for partition in partitions if partitions.count(partition) > 1}):
        raise SettingsError(f"--accept-loss names partition {twice[0]} twice; a partition goes on at one offset")


def _resumption(text: str) -> tuple[int, int | None]:
    partition, at, offset = text.partition("@")
    if not (at and partition.isdecimal() and (offset.isdecimal() or offset == "gone")):
        raise argparse.ArgumentTypeError(f"{text!r} is not PARTITION@OFFSET, such as 0@1500, or PARTITION@gone")
    return int(partition), None if offset == "gone" else int(offset)


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Ingest; 0 when all that was there, or all until the stop, is committed."""
    if args.accept_loss is not None:
        return _accept_loss(args, settings)
    from pipelines.ingest.following import ingest_follow
    from pipelines.ingest.presence import ingest_lock
    from pipelines.ingest.stream import ingest_once

    told: dict[int, dict[str, Any]] = {}
    with _shown_progress(told) as progress, ingest_lock(Path(settings.root)):
        if args.once:
            manifests = ingest_once(settings, progress)
        else:
            with _stopped_by_signals() as stop:
                manifests = ingest_follow(settings, stop, progress)
    _print(manifests, told, _held(settings) if args.once else [], as_json=args.json)
    return 0


def _held(settings: Settings) -> "list[Held]":
    """What waits behind open transactions; nothing if the broker went away meanwhile, for what was taken in is committed."""
    from pipelines.kafka.topics import topic_names
    from pipelines.kafka.transactions import held_back
    from schemas.errors import HeadraceError

    try:
        return held_back(settings, topic_names(settings).documents)
    except HeadraceError as error:
        say(f"it is not known whether open transactions hold back records: {error}")
        return []


def _accept_loss(args: argparse.Namespace, settings: Settings) -> int:
    """Commit the version that records the loss."""
    from datetime import UTC, datetime

    from pipelines.ingest.acceptance import accept_loss

    manifest = accept_loss(settings, dict(args.accept_loss), by=_user_name(), reason=args.reason.strip(), now=datetime.now(UTC))
    if args.json:
        print_json({"versions": [summary(manifest)]})
        return 0
    for sentence in loss_sentences(manifest):
        tell(f"version {manifest.version}: {sentence}")
    say("run `headrace ingest --once` or `--follow` to go on after the gap; `headrace datasets show` shows the gap")
    return 0


def _user_name() -> str:
    """Who runs this; a container may know only the number."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return f"uid {os.getuid()}"


@contextmanager
def _stopped_by_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM, SIGHUP and the first Ctrl-C set; a second Ctrl-C interrupts at once."""
    from pipelines.runtime.stopping import handle_stops

    stop = threading.Event()

    def ask_to_stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = handle_stops(ask_to_stop, signal.SIGTERM, signal.SIGINT)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _shown_progress(told: dict[int, dict[str, Any]]) -> "Iterator[Progress]":
    """A bar per version on a terminal; one line per version in any case. Puts each version's times into ``told``."""
    from pipelines.ingest.progress import FOLLOWING, WAITING, Progress

    with progress_bar() as bar:
        task = bar.add_task("waiting", total=None)

        class Shown(Progress):
            waiting_for = ""

            def started(self, version: int, num_records: int) -> None:
                bar.reset(task, total=num_records, description=f"version {version}")

            def advanced(self, num_records: int) -> None:
                bar.advance(task, num_records)

            def committed(self, manifest: "DatasetManifest", times: "VersionTimes") -> None:
                self.waiting_for = ""
                told[manifest.version] = times.told()
                counts = f"{counted(manifest.num_records, 'record')}, {outcome_counts(manifest.outcomes)}, {counted(manifest.num_tokens, 'token')}"
                say(f"version {manifest.version}: {counts}; {_timing(times)}")

            def following(self, topic: str) -> None:
                say(f"{FOLLOWING}{topic}")

            def waiting(self, reason: str) -> None:
                if reason != self.waiting_for:
                    self.waiting_for = reason
                    say(f"{WAITING}{reason}")

        yield Shown()


def _timing(times: "VersionTimes") -> str:
    """``3.1 MB in 2.4 s; fresh within 1.2 s (median), 4.0 s (95 %), 4.2 s (all); 120 records behind``."""
    parts = [f"{times.size_bytes / 1e6:,.1f} MB in {times.commit_s:.1f} s"]
    if times.freshness:
        p50_s, p95_s, max_s = times.freshness
        parts.append(f"fresh within {p50_s:,.1f} s (median), {p95_s:,.1f} s (95 %), {max_s:,.1f} s (all)")
    behind = sum(lag.num_records for lag in times.lag.values())
    longest_s = max((lag.seconds for lag in times.lag.values()), default=0.0)
    parts.append(f"{counted(behind, 'record')} and {longest_s:,.1f} s behind" if behind else "nothing behind")
    return "; ".join(parts)


def _print(manifests: "list[DatasetManifest]", told: dict[int, dict[str, Any]], held: "list[Held]", *, as_json: bool) -> None:
    from pipelines.kafka.transactions import told as sentence

    versions: list[dict[str, Any]] = [summary(manifest) | {"times": told.get(manifest.version)} for manifest in manifests]
    for one in held:
        say(f"{sentence(one)}; they are ingested when it ends")
    if as_json:
        print_json({"versions": versions, "held": [_held_as_json(one) for one in held]})
    elif not versions:
        say("nothing new that can be read yet" if held else "nothing new")
    else:
        rows = [(item.version, item.num_records, outcome_counts(item.outcomes), item.num_tokens) for item in manifests]
        print_table(("version", "records", "outcomes", "tokens"), rows)


def _held_as_json(held: "Held") -> dict[str, Any]:
    holders = [holder._asdict() | {"since": holder.since.isoformat() if holder.since else None} for holder in held.holders]
    return held._asdict() | {"holders": holders}
