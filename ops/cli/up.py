"""``headrace up``: broker, Ray, ingest, training, serving and rollouts on this machine, until Ctrl-C."""

import argparse
import json
import logging
import os
import signal
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ops.cli.output import print_json, say
from pipelines.storage.mirror import host_folder, is_mirror, url_of
from schemas.settings import Settings

if TYPE_CHECKING:
    from ops.supervisor.services import Stack
    from ops.supervisor.supervisor import Supervisor


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser) -> None:
    """Define the command."""
    parser = subparsers.add_parser("up", parents=[common], help="run everything on this machine: documents in, models out, until Ctrl-C")
    parser.add_argument("--json", action="store_true", help="print one JSON document with the addresses when everything is ready")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Run until SIGINT, SIGTERM or SIGHUP."""
    from ops.supervisor.up import run_up
    from pipelines.runtime.stopping import handle_stops

    quieten()
    stop = threading.Event()
    handle_stops(lambda _number, _frame: stop.set(), signal.SIGINT, signal.SIGTERM)

    def on_ready(stack: "Stack", supervisor: "Supervisor") -> None:
        if args.json:
            print_json(addresses(stack) | {"pids": {name: supervisor.pid(name) for name in stack.names}})
        else:
            print("\n".join(summary(stack)))
        sys.stdout.flush()

    run_up(settings, stop, tell, on_ready)
    return 0


def quieten() -> None:
    """Leave out what clients say about every single request, and kafka-python's complaint that the machine is busy."""
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("kafka.net.selector").setLevel(logging.ERROR)


def tell(line: str) -> None:
    """A line with the time, on standard error."""
    say(f"{datetime.now(UTC):%H:%M:%S} {line}")


def addresses(stack: "Stack") -> dict[str, object]:
    """Where everything is."""
    settings = stack.settings
    return {
        "root": settings.root,
        "kafka": settings.kafka.bootstrap_servers,
        "ray": settings.ray.address,
        "dashboard": stack.dashboard_url,
        "api": stack.api_url,
    }


def _how_to_stop() -> str:
    from pipelines.runtime.cluster import JOB_VARIABLE

    job = json.loads(os.environ.get(JOB_VARIABLE, "{}")).get("metadata", {}).get("job_submission_id")
    return f"`ray job stop {job}` stops it; submit the same command again" if job else "Ctrl-C stops it; run the same command again"


def summary(stack: "Stack") -> list[str]:
    """The same in words."""
    kafka, documents = stack.settings.kafka.bootstrap_servers, f"{stack.settings.kafka.topic_prefix}.documents"
    lines = [
        f"Headrace is up. {_how_to_stop()} and it goes on.",
        f"  documents   headrace produce --bootstrap-servers {kafka} PATH…   (topic {documents})",
        f"  API         {stack.api_url}/v1",
    ]
    if stack.dashboard_url is not None:
        lines += [
            f"  Ray         {stack.dashboard_url}   (it asks for the token that `ray get-auth-token` prints)",
            f"  Ray jobs    RAY_AUTH_MODE=token ray job submit --address {stack.dashboard_url} -- COMMAND",
        ]
    root = Path(stack.settings.root)
    if is_mirror(root):
        return [*lines, f"  data        {url_of(root)}", f"  logs        {host_folder(root)}"]
    return [*lines, f"  data, logs  {root}"]
