"""Entry point of the ``headrace`` command.

Reads the settings (file, environment, flags), calls the command's ``check(args)`` if it has one, starts the broker that the command needs, and
calls its ``run(args, settings)``, which returns the exit code. A HeadraceError becomes one line on standard error.
Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted by Ctrl-C.
Command modules import Ray and torch only when they run, so that ``headrace --help`` answers at once; this one imports nothing of ours before
``main`` runs, so that Ctrl-C in the first second is one line too.
"""

import argparse
import importlib
import importlib.metadata
import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from schemas.settings import Settings

GROUPS = {
    "start": ("demo", "up", "settings"),
    "data": ("produce", "ingest", "datasets", "deadletter", "retract", "trace", "tokenizer", "quality"),
    "models": ("train", "models", "serve", "rollout"),
    "operate": ("broker", "gc"),
}
"""Modules of ops.cli, in the order in which ``headrace --help`` lists them."""
NEEDS_FOLDER = frozenset({"demo", "broker", "up", "serve", "train"})
"""Commands that do not work with a root on an object store yet; `demo` and `broker` keep the embedded broker's log in a folder."""
DEFAULT_CONFIG = "headrace.toml"


def common_flags() -> argparse.ArgumentParser:
    """Flags that every command has."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--config", metavar="FILE", help=f"settings file (default: {DEFAULT_CONFIG} if it is there)")
    common.add_argument("--root", metavar="DIR", help="folder, or s3:// URL, for all durable data (default: the setting root, ./headrace-data)")
    common.add_argument(
        "--bootstrap-servers",
        metavar="HOST:PORT",
        help="Kafka to use (default: that of the running `up` or `broker` of the root, else the embedded broker)",
    )
    common.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override any setting (repeatable)")
    return common


class _Actions(argparse._SubParsersAction):  # type: ignore[type-arg]  # it is generic for type checkers only
    """The help of a command, or of an action of one, begins with what the list says of it."""

    def add_parser(self, name: str, *, help: str, **kwargs: Any) -> argparse.ArgumentParser:  # type: ignore[override]
        kwargs.setdefault("description", f"{help[0].upper()}{help[1:]}.")
        parser: argparse.ArgumentParser = super().add_parser(name, help=help, **kwargs)
        parser.register("action", "parsers", _Actions)
        return parser


class _Commands(_Actions):
    """Keeps what each command says of itself, because argparse lists commands in one flat list only."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.told: dict[str, str] = {}

    def add_parser(self, name: str, *, help: str, **kwargs: Any) -> argparse.ArgumentParser:  # type: ignore[override]
        self.told[name] = help
        parser = super().add_parser(name, help=help, **kwargs)
        self._choices_actions.clear()
        return parser


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="headrace",
        description="Headrace turns a Kafka stream of raw documents into a served language model.",
        usage="headrace COMMAND … (headrace COMMAND --help shows its flags and an example)",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"headrace {importlib.metadata.version('headrace')}")
    commands = parser.add_subparsers(prog="headrace", dest="command", metavar="COMMAND", required=True, action=_Commands, help=argparse.SUPPRESS)
    common = common_flags()
    for name in chain.from_iterable(GROUPS.values()):
        importlib.import_module(f"ops.cli.{name}").add_parser(commands, common)
    parser.epilog = "\n\n".join(_group(title, names, commands.told) for title, names in GROUPS.items())  # type: ignore[attr-defined]
    _add_examples(parser, ())
    return parser


def _group(title: str, names: Sequence[str], told: Mapping[str, str]) -> str:
    return "\n".join([f"{title}:", *(f"  {name:<12}{told[name]}" for name in names)])


def _add_examples(parser: argparse.ArgumentParser, words: tuple[str, ...]) -> None:
    """End the help text of every command and action with an example."""
    from ops.cli.examples import EXAMPLES

    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                _add_examples(inner, (*words, name))
    example = next((example for name, example in EXAMPLES.items() if words and name.split()[: len(words)] == list(words)), None)
    if example is not None:
        parser.epilog = f"example: {example}"


def settings_from(args: argparse.Namespace) -> "Settings":
    """File, then environment, then flags. Raises SettingsError if a named file is not there, or the root is a file."""
    from schemas.errors import SettingsError
    from schemas.settings_sources import load_settings

    path = Path(args.config or DEFAULT_CONFIG)
    if args.config and not path.is_file():
        raise SettingsError(f"there is no settings file {path}; leave --config out to use the defaults")
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8, or name another file with --config") from error
    overrides: dict[str, object] = {"root": args.root, "kafka.bootstrap_servers": args.bootstrap_servers}
    for assignment in args.set:
        name, sign, value = assignment.partition("=")
        if not sign or not name.strip():
            raise SettingsError(f"--set takes SECTION.KEY=VALUE, not {assignment!r}")
        overrides[name] = value
    settings = load_settings(text, os.environ, overrides, source=str(path))
    if "://" not in settings.root and Path(settings.root).exists() and not Path(settings.root).is_dir():
        raise SettingsError(f"the root {settings.root} is not a folder; give another --root")
    return _with_whole_paths(settings)


def _with_whole_paths(settings: "Settings") -> "Settings":
    """Tasks on Ray work in another folder, where a relative path means something else."""
    from pipelines.storage.mirror import LIMIT_VARIABLE, root_folder

    model = settings.quality_model
    if os.sep in model.path:
        model = model.model_copy(update={"path": str(Path(model.path).absolute())})
    if "://" in settings.root:
        os.environ[LIMIT_VARIABLE] = str(settings.storage.cache_bytes)  # for the processes that this one starts, too
    return settings.model_copy(update={"root": str(root_folder(settings.root, settings.storage.cache)), "quality_model": model})


def start_logging(level: str) -> None:
    """Log lines go to standard error."""
    from pipelines.text.log_lines import FORMAT, EscapingFormatter, quieten_libraries

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(EscapingFormatter(FORMAT))
    logging.basicConfig(level=level, handlers=[handler])
    quieten_libraries(level)


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """argparse takes names and files from one run of arguments only: `inspect SHA --against OTHER FILE` leaves FILE over. The error explains this."""
    parser = build_parser()
    args, left = parser.parse_known_args(argv)
    if left:
        hint = "" if left[0].startswith("-") else "; names and files go together, before or after the flags"
        parser.error(f"unrecognized arguments: {' '.join(left)}{hint}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    name = " ".join(["headrace", *(sys.argv[1:] if argv is None else argv)[:1]])
    _hear_interrupts()
    try:
        return _run(argv)
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _hear_interrupts() -> None:
    """A shell without job control starts background processes with SIGINT ignored, and Python keeps that: Ctrl-C and `kill -INT` do nothing."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _run(argv: Sequence[str] | None) -> int:
    from ops.cli.kafka_of_root import NEEDS, with_kafka
    from ops.cli.output import say
    from pipelines.storage.store import needs_folder
    from schemas.errors import HeadraceError

    args = _parsed(argv)
    try:
        settings = settings_from(args)
        if args.command in NEEDS_FOLDER:
            needs_folder(Path(settings.root), f"headrace {args.command}")
        if check := getattr(args, "check", None):
            check(args)  # what is wrong with the flags is told before anything is started
        start_logging(settings.telemetry.log_level)
        with with_kafka(settings, NEEDS.get(args.command, "no")) as settings:
            return int(args.run(args, settings))
    except HeadraceError as error:
        say(f"headrace {args.command}: {error}")
        return error.exit_code
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        logging.getLogger(__name__).debug("an operating-system error", exc_info=True)
        place = f"{error.filename}: " if error.filename else ""
        say(f"headrace {args.command}: {place}{error.strerror}; name another path (--root) or change its permissions")
        return 1


if __name__ == "__main__":
    sys.exit(main())
