"""``headrace demo``: everything on this machine in a few minutes: documents through Kafka, two models, a trial, a promotion."""

import argparse
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ops.cli.output import print_json, say
from ops.cli.up import quieten
from schemas.errors import SettingsError
from schemas.settings import Settings

if TYPE_CHECKING:
    from pipelines.runtime.child import Child

MARKER = ".headrace-demo"
"""A folder without it is not ours to wipe."""
STOP_TIMEOUT_S = 60.0
ATTEMPTS = 3


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser) -> None:
    """Define the command."""
    text = "run the whole loop on this machine: documents, two models, shadow, canary, promotion"
    description = f"{text.capitalize()}. It works in ROOT/demo and first removes the data of an earlier demo. If a port is taken, it uses a free one."
    parser = subparsers.add_parser("demo", parents=[common], help=text, description=description)
    parser.add_argument("--exit", action="store_true", help="stop everything at the end instead of leaving the service running")
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON document")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Run the demo; a stage that fails ends it with exit code 1 and the end of the log that says why."""
    from pipelines.runtime.stopping import handle_stops

    quieten()
    handle_stops(_interrupt, signal.SIGTERM)
    with_free_ports(settings, lambda chosen: _run(args, chosen))
    return 0


def with_free_ports(settings: Settings, go: Callable[[Settings], None]) -> None:
    """Run the demo. If it fails and a port that it chose is in use, run it again with other ports, ATTEMPTS times at most."""
    from ops.demo.settings import demo_settings, taken_ports
    from ops.demo.watching import StageFailed

    for attempt in range(1, ATTEMPTS + 1):
        chosen = demo_settings(settings)
        try:
            go(chosen)
        except StageFailed as error:
            taken = ", ".join(map(str, taken_ports(chosen)))
            if not taken or attempt == ATTEMPTS:
                raise
            say(f"{error}\nin use by another program now: port {taken}; the demo starts again with free ports")
        else:
            return


def _run(args: argparse.Namespace, settings: Settings) -> None:
    from ops.demo.screen import Screen
    from ops.demo.story import NUM_STAGES, tell_story
    from ops.demo.summary import summarize
    from ops.demo.watching import Watch

    screen = Screen(NUM_STAGES)
    _wipe(Path(settings.root))
    screen.line(f"the demo's data and logs: {settings.root}")
    with _up(settings) as up:
        settings = _with_address(settings)
        story = tell_story(settings, Watch(Path(settings.root), up, screen), screen)
        _print(summarize(settings, story, screen.elapsed_s), as_json=args.json)
        if not args.exit:
            say(f"The service goes on at {story.addresses['api']}/v1; Ctrl-C stops it. `headrace up --root {settings.root}` takes it up again.")
            _wait(up)


def _with_address(settings: Settings) -> Settings:
    """The address at which `up` starts the embedded broker, where no other Kafka is given."""
    kafka = settings.kafka
    servers = kafka.bootstrap_servers or settings.broker.listen
    return settings.model_copy(update={"kafka": kafka.model_copy(update={"bootstrap_servers": servers})})


def _interrupt(number: int, frame: object) -> None:  # noqa: ARG001
    raise KeyboardInterrupt


def _wipe(root: Path) -> None:
    """Begin in an empty folder. Raises SettingsError if what is there was not made by a demo, ServiceFailed if a demo runs in it."""
    from ops.supervisor.root_lock import root_lock

    if root.is_dir() and any(root.iterdir()) and not (root / MARKER).is_file():
        raise SettingsError(f"{root} is not empty and was not made by a demo; choose another --root")
    with root_lock(root):
        (root / MARKER).touch()
        for entry in root.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)


@contextmanager
def _up(settings: Settings) -> "Iterator[Child]":
    """``headrace up`` as a child, stopped at the end."""
    from pipelines.runtime.child import Child
    from ray_apps.loop.commands import child_environment, headrace

    log = Path(settings.root) / "logs" / "up.log"
    up = Child(headrace(settings, "up", "--json"), log, environment=child_environment(settings), capture_output=True)
    try:
        yield up
    finally:
        say("stopping …")
        up.stop(STOP_TIMEOUT_S)
        up.close()


def _wait(up: "Child") -> None:
    """Until Ctrl-C."""
    pause = threading.Event()
    try:
        while up.poll() is None:
            pause.wait(0.5)
    except KeyboardInterrupt:
        return


def _print(summary: dict[str, Any], *, as_json: bool) -> None:
    from ops.demo.summary import lines

    if as_json:
        print_json(summary)
    else:
        from rich.console import Console
        from rich.table import Table

        table = Table(show_header=False, title="Headrace demo", title_justify="left")
        for name, value in lines(summary):
            table.add_row(name, value)
        Console(highlight=False).print(table)
    sys.stdout.flush()
