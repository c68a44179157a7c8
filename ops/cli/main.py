"""Entry point of the ``headrace`` command.

Reads the settings (file, environment, flags), hands them to the command's ``run(args, settings) -> exit code``, and turns a
HeadraceError into one line on standard error. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted by Ctrl-C.
Command modules import Ray and torch only when they run, so that ``headrace --help`` answers at once; this one imports nothing of ours before
``main`` runs, so that Ctrl-C in the first second is one line too.
"""

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from schemas.settings import Settings

COMMANDS = (
    "broker",
    "produce",
    "ingest",
    "datasets",
    "deadletter",
    "retract",
    "trace",
    "tokenizer",
    "quality",
    "gc",
    "train",
    "models",
    "serve",
    "rollout",
    "up",
    "demo",
)
"""Modules of ops.cli, in the order in which ``headrace --help`` lists them."""
DEFAULT_CONFIG = "headrace.toml"


def common_flags() -> argparse.ArgumentParser:
    """Flags that every command has."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--config", metavar="FILE", help=f"settings file (default: {DEFAULT_CONFIG} if it is there)")
    common.add_argument("--root", metavar="DIR", help="folder in which everything durable lives")
    common.add_argument("--bootstrap-servers", metavar="HOST:PORT", help="Kafka to use; without it, the embedded broker")
    common.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override any setting (repeatable)")
    return common


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(prog="headrace", description="A Kafka stream of raw documents in, a served language model out.")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    common = common_flags()
    for name in COMMANDS:
        importlib.import_module(f"ops.cli.{name}").add_parser(subparsers, common)
    return parser


def settings_from(args: argparse.Namespace) -> "Settings":
    """File, then environment, then flags. Raises SettingsError if a named file is not there."""
    from schemas.errors import SettingsError
    from schemas.settings_sources import load_settings

    path = Path(args.config or DEFAULT_CONFIG)
    if args.config and not path.is_file():
        raise SettingsError(f"there is no settings file {path}; leave --config out to use the defaults")
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    overrides: dict[str, object] = {"root": args.root, "kafka.bootstrap_servers": args.bootstrap_servers}
    for assignment in args.set:
        name, sign, value = assignment.partition("=")
        if not sign:
            raise SettingsError(f"--set takes SECTION.KEY=VALUE, not {assignment!r}")
        overrides[name] = value
    return load_settings(text, os.environ, overrides, source=str(path))


def start_logging(level: str) -> None:
    """Log lines go to standard error. Left out: each request to an OpenLineage receiver, what faiss tries, and what kafka-python logs of its
    sockets, event loop, metadata and retries: what matters of it raises.
    """
    from ops.cli.output import EscapingFormatter

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(EscapingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    if level != "DEBUG":
        logging.getLogger("kafka").setLevel(logging.WARNING)
        for name in ("kafka.net", "kafka.cluster", "kafka.coordinator"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        for name in ("httpx", "faiss"):
            logging.getLogger(name).setLevel(logging.WARNING)


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """argparse takes names and files in one run only: `inspect SHA --against OTHER FILE` leaves FILE over, and that is said."""
    parser = build_parser()
    args, left = parser.parse_known_args(argv)
    if left:
        hint = "" if left[0].startswith("-") else "; names and files go together, before or after the flags"
        parser.error(f"unrecognized arguments: {' '.join(left)}{hint}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    name = " ".join(["headrace", *(sys.argv[1:] if argv is None else argv)[:1]])
    try:
        return _run(argv)
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(argv: Sequence[str] | None) -> int:
    from ops.cli.output import say
    from schemas.errors import HeadraceError

    args = _parsed(argv)
    try:
        settings = settings_from(args)
        start_logging(settings.telemetry.log_level)
        return int(args.run(args, settings))
    except HeadraceError as error:
        say(f"headrace {args.command}: {error}")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
