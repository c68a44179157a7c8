"""``headrace settings``: every setting with the value in force, as ``headrace.toml`` would say it. Secrets are not printed."""

import argparse
import sys
from pathlib import Path

from ops.cli.output import print_json
from schemas.settings import Settings


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser) -> None:
    """Add the command."""
    parser = subparsers.add_parser("settings", parents=[common], help="show every setting with its value and what it means")
    parser.add_argument("--changed", action="store_true", help="only those that the file, the environment or a flag changes")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Print them."""
    from pipelines.storage.mirror import shown
    from schemas.settings_file import render

    if args.json:
        print_json(_changed(settings) if args.changed else settings.model_dump(mode="json"))
    elif args.changed:
        print("\n".join(f"{name} = {value!r}" for name, value in _changed(settings).items()) or "every setting is at its default")
    else:
        sys.stdout.write(shown(render(settings)))
    return 0


def _changed(settings: Settings) -> dict[str, object]:
    """Dotted names and values of what is not at its default."""
    default = Settings(root=str(Path(Settings().root).resolve()))  # as the command line has it
    values, defaults = (_flat(each.model_dump(mode="json")) for each in (settings, default))
    return {name: value for name, value in values.items() if value != defaults[name]}


def _flat(tree: dict[str, object]) -> dict[str, object]:
    found: dict[str, object] = {}
    for section, value in tree.items():
        found |= {f"{section}.{key}": inner for key, inner in value.items()} if isinstance(value, dict) else {section: value}
    return found
